// The form of a new run: suggestions fill fields, and the same call as code stays current.

const form = document.getElementById("inputs");

function parsed(text) {
  try { return JSON.parse(text); } catch { return text; }
}

function inputs() {
  const found = {};
  for (const field of form.querySelectorAll("[data-kind]")) {
    const text = field.value;
    if (!text.trim()) continue;
    const kind = field.dataset.kind;
    if (kind === "extra") {
      const more = parsed(text);
      if (more !== null && typeof more === "object") Object.assign(found, more);
    } else {
      found[field.name.replace("input.", "")] = kind === "text" || kind === "long" ? text : parsed(text);
    }
  }
  return found;
}

/** The options as fields of the API's request. */
function options() {
  const found = {};
  for (const field of form.querySelectorAll("[data-option]")) {
    const text = field.value.trim();
    if (!text) continue;
    if (field.dataset.option === "metadata") {
      const pairs = text.split("\n").filter((line) => line.includes("="));
      found.metadata = Object.fromEntries(pairs.map((line) => {
        const at = line.indexOf("=");
        return [line.slice(0, at).trim(), line.slice(at + 1).trim()];
      }));
    } else found[field.name] = field.dataset.option === "number" ? parsed(text) : text;
  }
  return found;
}

/** A JSON value as Python, as `app/web/snippets.py` writes it. */
function python(value, indent) {
  const inner = " ".repeat(indent + 4);
  const outer = " ".repeat(indent);
  if (Array.isArray(value) && value.length) {
    return `[\n${value.map((one) => `${inner}${python(one, indent + 4)},\n`).join("")}${outer}]`;
  }
  if (value && typeof value === "object" && Object.keys(value).length) {
    const items = Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${python(one, indent + 4)},\n`);
    return `{\n${items.join("")}${outer}}`;
  }
  return { true: "True", false: "False", null: "None" }[String(value)] ?? JSON.stringify(value);
}

function show() {
  const body = { crew: form.dataset.crew, inputs: inputs(), ...options() };
  document.querySelector("[data-body=curl]").textContent = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  document.querySelector("[data-body=python]").textContent = python(body, 4);
  for (const chip of form.querySelectorAll("[data-fill]")) {
    chip.setAttribute("aria-pressed", String(document.getElementById(chip.dataset.fill).value === chip.textContent));
  }
}

if (form) {
  form.addEventListener("input", show);
  form.addEventListener("click", (event) => {
    const chip = event.target.closest("[data-fill]");
    if (!chip) return;
    const field = document.getElementById(chip.dataset.fill);
    field.value = field.value === chip.textContent ? "" : chip.textContent;
    field.focus({ preventScroll: true });
    show();
  });
  // Ctrl or Command with Enter submits, also from a field of several lines.
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", () => { form.querySelector(".button.primary").setAttribute("aria-disabled", "true"); });
  addEventListener("pageshow", () => { form.querySelector(".button.primary").removeAttribute("aria-disabled"); show(); });
  show();
}
