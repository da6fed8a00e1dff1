// A small renderer of markdown for text that a model is still writing. It makes elements and text
// nodes, and never parses HTML: whatever the text says stays text. The server renders the final text.

const LINK = /^(https?:\/\/|mailto:)/i;
const INLINE = /(`+)([\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|__(?=\S)([\s\S]*?\S)__|\*(?=\S)([^*]*?\S)\*|(?<!\w)_(?=\S)([^_]*?\S)_(?!\w)|\[([^\]\n]*)\]\(([^()\s]*)\)|\\([!-/:-@[-`{-~])/g;

function inline(parent, text) {
  let last = 0;
  for (const found of text.matchAll(INLINE)) {
    parent.append(text.slice(last, found.index));
    last = found.index + found[0].length;
    const [, , code, strong, strong2, em, em2, label, target, escaped] = found;
    if (code !== undefined) parent.append(wrap("code", code, false));
    else if (strong ?? strong2) parent.append(wrap("strong", strong ?? strong2));
    else if (em ?? em2) parent.append(wrap("em", em ?? em2));
    else if (escaped !== undefined) parent.append(escaped);
    else if (LINK.test(target)) {
      const link = wrap("a", label);
      link.href = target;
      link.rel = "noopener noreferrer";
      parent.append(link);
    } else parent.append(found[0]);
  }
  parent.append(text.slice(last));
}

function wrap(name, text, nested = true) {
  const made = document.createElement(name);
  if (nested) inline(made, text);
  else made.textContent = text;
  return made;
}

const FENCE = /^ {0,3}(```+|~~~+)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const ROW = /^\s*\|.*\|?\s*$/;
const DIVIDER = /^\s*\|?(\s*:?-+:?\s*\|)*\s*:?-+:?\s*\|?\s*$/;

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function table(lines) {
  const made = document.createElement("table");
  lines.forEach((line, index) => {
    if (index === 1) return;
    const row = made.insertRow();
    for (const cell of cells(line)) row.append(wrap(index ? "td" : "th", cell));
  });
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  scroll.append(made);
  return scroll;
}

function list(items) {
  const root = document.createElement(/\d/.test(items[0].mark) ? "ol" : "ul");
  const stack = [{ indent: items[0].indent, list: root }];
  for (const { indent, mark, text } of items) {
    while (stack.length > 1 && indent < stack.at(-1).indent) stack.pop();
    if (indent > stack.at(-1).indent + 1 && stack.at(-1).list.lastChild && stack.length < 8) {
      const inner = document.createElement(/\d/.test(mark) ? "ol" : "ul");
      stack.at(-1).list.lastChild.append(inner);
      stack.push({ indent, list: inner });
    }
    stack.at(-1).list.append(wrap("li", text));
  }
  return root;
}

/** The blocks of a text as elements. */
export function blocks(text) {
  const lines = text.split("\n");
  const made = [];
  let at = 0;
  const take = (test) => {
    const from = at;
    while (at < lines.length && test(lines[at], at - from)) at += 1;
    return lines.slice(from, at);
  };
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) at += 1;
    else if ((found = FENCE.exec(line))) {
      at += 1;
      const body = take((one) => !one.trimStart().startsWith(found[1]));
      at += 1;
      const pre = document.createElement("pre");
      pre.append(wrap("code", body.join("\n"), false));
      made.push(pre);
    } else if ((found = HEADING.exec(line))) {
      made.push(wrap(`h${found[1].length}`, found[2]));
      at += 1;
    } else if (RULE.test(line)) {
      made.push(document.createElement("hr"));
      at += 1;
    } else if (ROW.test(line) && DIVIDER.test(lines[at + 1] ?? "")) {
      made.push(table(take((one) => one.includes("|"))));
    } else if (/^ {0,3}>/.test(line)) {
      const quote = document.createElement("blockquote");
      quote.append(wrap("p", take((one) => /^ {0,3}>/.test(one)).map((one) => one.replace(/^ {0,3}> ?/, "")).join("\n")));
      made.push(quote);
    } else if (ITEM.test(line)) {
      const items = [];
      for (const one of take((each) => ITEM.test(each) || /^\s+\S/.test(each))) {
        const item = ITEM.exec(one);
        if (item) items.push({ indent: item[1].length, mark: item[2], text: item[3] });
        else items.at(-1).text += `\n${one.trim()}`;
      }
      made.push(list(items));
    } else {
      const text = take((one, index) => one.trim() && !(index && (HEADING.test(one) || FENCE.test(one) || ITEM.test(one) || RULE.test(one))));
      made.push(wrap("p", text.join("\n")));
    }
  }
  return made;
}

/** A text that grows in an element. Blocks that are complete are rendered once. */
export class GrowingText {
  constructor(target) {
    this.target = target;
    this.rest = "";
    this.tail = [];
    this.frame = 0;
  }

  add(text) {
    if (!this.rest && !this.tail.length) this.target.replaceChildren();
    this.rest += text;
    this.frame ||= requestAnimationFrame(() => this.render());
  }

  render() {
    this.frame = 0;
    const end = complete(this.rest);
    for (const element of this.tail) element.remove();
    if (end) this.target.append(...blocks(this.rest.slice(0, end)));
    this.rest = this.rest.slice(end);
    this.tail = blocks(this.rest);
    this.target.append(...this.tail);
  }
}

/** The index after the last block that no later text can change: after an empty line, outside of
 * code, before text that does not continue a list. */
function complete(text) {
  let end = 0;
  let offset = 0;
  let fence = "";
  let empty = false;
  for (const line of text.split("\n")) {
    const found = FENCE.exec(line);
    if (fence) {
      if (line.trimStart().startsWith(fence)) fence = "";
    } else {
      if (empty && /^\S/.test(line) && !ITEM.test(line)) end = offset;
      if (found) fence = found[1];
    }
    empty = !line.trim();
    offset += line.length + 1;
  }
  return end;
}
