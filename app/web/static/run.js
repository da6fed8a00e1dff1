// The page of a run while it happens: events bring text and news, the server renders what changed.

import { announce, showWaiting } from "./app.js";
import { duration } from "./formats.js";
import { GrowingText } from "./markdown.js";

const root = document.getElementById("run");
const path = `/runs/${root.dataset.run}`;
const PARTS = ["run-head", "run-actions", "run-facts", "run-timeline", "run-deliveries", "run-tabs"];
const END = new Set(["run.succeeded", "run.failed", "run.cancelled"]);
const PAUSE_MS = 250;
const TAIL_CHARACTERS = 240;

const texts = new Map(); // of tasks under way, by index
let growing = null; // the text in the pane
let isLive = root.dataset.live === "yes";
let follows = !new URLSearchParams(location.search).has("report");
let refresh = 0;
let behind = false;
let drawing = 0;

const pane = () => document.querySelector(".report-pane");
const shown = () => Number(pane()?.dataset.index ?? -1);
const tab = (index) => document.querySelector(`#run-tabs [data-report="${index}"]`);

/** Swap an element for its new version; focus and open parts stay. */
function swap(old, fresh) {
  if (old.outerHTML === fresh.outerHTML) return;
  if (old.id === "run-actions" && old.contains(document.activeElement) && old.querySelector("details[open]")) return;
  const open = [...old.querySelectorAll("details[open]")].map((one) => one.id).filter(Boolean);
  const focus = old.contains(document.activeElement) ? key(document.activeElement) : null;
  const left = old.scrollLeft;
  old.replaceWith(fresh);
  fresh.scrollLeft = left;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focus) [...fresh.querySelectorAll("a, summary, button")].find((one) => key(one) === focus)?.focus();
}

const key = (one) => one.getAttribute("href") ?? one.parentElement.id + one.textContent.trim();

async function load(url) {
  const response = await fetch(url, { headers: { Accept: "text/html" } });
  if (response.redirected) location.reload();
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return new DOMParser().parseFromString(await response.text(), "text/html").body;
}

async function update() {
  const news = await load(`${path}/live`);
  const index = shown();
  for (const id of PARTS) {
    const old = document.getElementById(id);
    const fresh = news.querySelector(`#${id}`);
    if (old && fresh) swap(old, fresh);
    else if (fresh) document.getElementById("run-tabs").before(fresh);
  }
  showTails();
  const suggested = Number(document.querySelector("#run-tabs [aria-current]")?.dataset.report ?? -1);
  await show(follows && suggested >= 0 ? suggested : index, false);
  tick();
}

function later(ms = PAUSE_MS) {
  if (refresh) { behind = true; return; }
  refresh = setTimeout(async () => {
    try { await update(); } catch (error) { console.warn(error); }
    refresh = 0;
    if (behind) { behind = false; later(); }
  }, ms);
}

/** Show the report of a task: one that is under way from its stream, another from the server. */
async function show(index, isChosen = true) {
  for (const one of document.querySelectorAll("#run-tabs a")) {
    if (Number(one.dataset.report) === index) one.setAttribute("aria-current", "true");
    else one.removeAttribute("aria-current");
  }
  const state = tab(index)?.dataset.state;
  if (!state || (index === shown() && state === pane().dataset.state)) { attach(); return; }
  const fresh = await load(`${path}/reports/${index}`);
  document.getElementById("report-area").replaceChildren(...fresh.children);
  growing = null;
  attach();
  if (isChosen) history.replaceState(null, "", `?report=${index}`);
}

function attach() {
  const target = document.querySelector("[data-stream]");
  if (!target || growing?.target === target) return;
  growing = new GrowingText(target);
  const text = texts.get(Number(target.dataset.stream));
  if (text) growing.add(text);
}

function receive({ index, text, so_far: soFar }) {
  const isShown = growing && Number(growing.target.dataset.stream) === index;
  texts.set(index, soFar ? text : (texts.get(index) ?? "") + text);
  drawing ||= requestAnimationFrame(showTails);
  if (soFar && isShown) growing = null;
  if (growing && isShown) growing.add(text);
  else attach();
}

/** The lane of a task under way ends with the text that its model wrote last, in one line. */
function showTails() {
  drawing = 0;
  for (const tail of document.querySelectorAll("[data-tail]")) {
    const text = texts.get(Number(tail.dataset.tail)) ?? "";
    const line = text.slice(-TAIL_CHARACTERS).replace(/[\s#*_|`>-]+/g, " ").trim();
    if (tail.textContent !== line) tail.textContent = line;
  }
}

/** Bars and durations of what is under way grow until now. */
function tick() {
  const now = Date.now();
  for (const one of document.querySelectorAll("[data-since]")) {
    one.textContent = duration((now - Date.parse(one.dataset.since)) / 1000);
  }
  const line = document.getElementById("run-timeline");
  const at = ((now - Date.parse(line.dataset.zero)) / 1000 / line.dataset.seconds) * 100;
  for (const one of line.querySelectorAll("[data-open]")) {
    one.setAttribute("width", `${Math.max(0.3, Math.min(at, 100) - parseFloat(one.getAttribute("x")))}%`);
  }
  if (at > 99 && isLive) later();
}

function listen() {
  const events = new EventSource(`/api/runs/${root.dataset.run}/events?texts=true`);
  const on = (type, react) => events.addEventListener(type, (event) => react(JSON.parse(event.data), type));
  on("task.tokens", receive);
  on("task.started", (data) => { texts.delete(data.index); later(); });
  on("task.finished", (data) => { texts.delete(data.index); later(); announce(`${data.name} finished`); });
  for (const type of ["run.queued", "run.running", "run.awaiting_human", "run.resumed"]) on(type, () => later());
  for (const type of ["run.awaiting_human", "run.resumed"]) on(type, showWaiting);
  for (const type of END) {
    on(type, () => {
      isLive = false;
      events.close();
      later(0);
      announce(`The run ${type.slice(4)}`);
    });
  }
  const clock = setInterval(() => { if (isLive) tick(); else clearInterval(clock); }, 500);
}

document.addEventListener("click", async (event) => {
  const link = event.target.closest("#run-tabs a");
  if (link && !event.metaKey && !event.ctrlKey) {
    event.preventDefault();
    follows = false;
    await show(Number(link.dataset.report));
  }
  if (event.target.closest(".task[data-empty] > summary")) event.preventDefault();
  for (const one of document.querySelectorAll(".popup[open]")) if (!one.contains(event.target)) one.open = false;
});

document.addEventListener("keydown", (event) => {
  const popup = document.querySelector(".popup[open]");
  if (event.key === "Escape" && popup) {
    popup.open = false;
    popup.querySelector("summary").focus();
  }
  const current = event.target.closest?.("#run-tabs a");
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  if (current && step) { current[step]?.focus(); event.preventDefault(); }
});

const current = document.querySelector("#run-tabs [aria-current]");
if (current) current.parentElement.scrollLeft = current.offsetLeft - current.parentElement.offsetLeft - 40;
attach();
if (isLive) { tick(); listen(); }
