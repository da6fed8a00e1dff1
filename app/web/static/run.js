// The page of a run while it happens. Events of tasks change it here, at the price of the events
// alone. The server renders it again for other news: a new state of the run, its end.

import { announce, showWaiting } from "./app.js";
import { GrowingText } from "./markdown.js";
import * as timeline from "./timeline.js";

const root = document.getElementById("run");
const path = `/runs/${root.dataset.run}`;
const PARTS = ["run-head", "run-actions", "run-facts", "run-timeline", "run-deliveries", "run-tabs"];
const END = new Set(["run.succeeded", "run.failed", "run.cancelled"]);
const PAUSE_MS = 250;
// Calls that end within a long task are shown after so long.
const RELOAD_MS = 30_000;
const EVENTS_PER_ATTEMPT = 100_000;
const TAIL_CHARACTERS = 240;

const texts = new Map(); // of tasks under way, by index
let growing = null; // the text in the pane
let isLive = root.dataset.live === "yes";
let chosen = new URLSearchParams(location.search).get("report"); // the tab that the reader chose
let timer = 0;
let isLoading = false;
let behind = false;
let loadedAt = Date.now();
let drawing = 0;

const pane = () => document.querySelector(".report-pane");
const shown = () => Number(pane()?.dataset.index ?? -1);
const head = () => document.getElementById("run-head").dataset;
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
  const index = chosen;
  const query = new URLSearchParams({ has: `${shown()}.${pane()?.dataset.state}` });
  if (index !== null) query.set("report", index);
  const news = await load(`${path}/live?${query}`);
  loadedAt = Date.now();
  for (const id of PARTS) {
    const old = document.getElementById(id);
    const fresh = news.querySelector(`#${id}`);
    if (old && fresh) swap(old, fresh);
    else if (fresh) document.getElementById("run-tabs").before(fresh);
  }
  showTails();
  const fresh = news.querySelector("#report-area");
  if (index !== chosen) await show(Number(chosen));
  else if (fresh) exchange(fresh.children);
  if (isLive) timeline.grow();
}

/** Have the server render the page again, soon; at most four times a second. */
function later(ms = PAUSE_MS) {
  if (isLoading) { behind = true; return; }
  if (timer && ms) return;
  clearTimeout(timer);
  timer = setTimeout(async () => {
    timer = 0;
    isLoading = true;
    behind = false;
    try { await update(); } catch (error) { console.warn(error); }
    isLoading = false;
    if (behind) later(isLive ? PAUSE_MS : 0);
  }, ms);
}

/** Show the report of a task: one that is under way from its stream, another from the server. */
async function show(index) {
  for (const one of document.querySelectorAll("#run-tabs a")) {
    if (Number(one.dataset.report) === index) one.setAttribute("aria-current", "true");
    else one.removeAttribute("aria-current");
  }
  const state = tab(index)?.dataset.state;
  if (!state || (index === shown() && state === pane().dataset.state)) attach();
  else if (state === "running") exchange([streamed(index)]);
  else exchange((await load(`${path}/reports/${index}`)).children);
}

function exchange(elements) {
  document.getElementById("report-area").replaceChildren(...elements);
  growing = null;
  attach();
}

/** The pane of a task under way. */
function streamed(index) {
  const made = document.getElementById("streamed").content.firstElementChild.cloneNode(true);
  made.dataset.index = index;
  made.setAttribute("aria-label", tab(index).dataset.label);
  made.querySelector(".report").dataset.stream = index;
  return made;
}

/** Show the task that is under way, unless the reader chose another. */
function follow() {
  const running = document.querySelector('#run-tabs [data-state="running"]');
  const index = chosen === null && running ? running.dataset.report : shown();
  show(Number(index)).catch(console.warn);
}

function attach() {
  const target = document.querySelector("[data-stream]");
  if (!target || growing?.target === target) return;
  growing = new GrowingText(target);
  const text = texts.get(Number(target.dataset.stream));
  if (text) growing.add(text);
}

function receive({ index, text, so_far: soFar }) {
  const grows = growing && Number(growing.target.dataset.stream) === index;
  texts.set(index, soFar ? text : (texts.get(index) ?? "") + text);
  drawing ||= requestAnimationFrame(showTails);
  if (soFar && grows) growing = null;
  if (growing && grows) growing.add(text);
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

let following = 0;

/** Act on the start or the end of a task; the server is only called for what the event lacks. */
function react(change, data, attempt) {
  if (attempt < head().attempt) return; // the page was rendered after it
  texts.delete(data.index);
  const isKnown = attempt === Number(head().attempt) && head().status === "running" && change(data);
  const needsCalls = document.querySelector(".task[open]") !== null;
  // Tokens and cost of a task with several attempts are sums.
  const needsSums = attempt > 1 && change === timeline.finish;
  if (!isKnown || needsCalls || needsSums || isLoading) later();
  else following ||= setTimeout(() => { following = 0; if (isLive) follow(); }, PAUSE_MS);
}

function tick() {
  if (!isLive) return;
  timeline.grow();
  if (Date.now() - loadedAt > RELOAD_MS && !document.hidden) { loadedAt = Date.now(); later(); }
}

function listen() {
  const events = new EventSource(`/api/runs/${root.dataset.run}/events?texts=true`);
  const attemptOf = (event) => Math.floor(Number(event.lastEventId) / EVENTS_PER_ATTEMPT);
  const on = (type, act) => events.addEventListener(type, (event) => act(JSON.parse(event.data), attemptOf(event)));
  on("task.tokens", receive);
  on("task.started", (data, attempt) => react(timeline.start, data, attempt));
  on("task.finished", (data, attempt) => {
    react(timeline.finish, data, attempt);
    announce(`${data.name} finished`);
  });
  on("run.running", (data) => {
    const isKnown = data.attempt < head().attempt || (data.attempt === Number(head().attempt) && head().status !== "queued");
    if (!isKnown) later();
  });
  on("run.queued", (data) => { if ((data.attempt ?? 0) > head().attempt) later(); });
  for (const type of ["run.awaiting_human", "run.resumed"]) on(type, () => { later(); showWaiting(); });
  for (const type of END) {
    on(type, (data, attempt) => {
      if (attempt < head().attempt) return; // it was retried since
      isLive = false;
      events.close();
      later(0);
      announce(`The run ${type.slice(4)}`);
    });
  }
  setInterval(tick, 500);
}

document.addEventListener("click", async (event) => {
  const link = event.target.closest("#run-tabs a");
  if (link && !event.metaKey && !event.ctrlKey) {
    event.preventDefault();
    chosen = link.dataset.report;
    history.replaceState(null, "", `?report=${chosen}`);
    await show(Number(chosen));
  }
  const task = event.target.closest(".task > summary")?.parentElement;
  if (task && "empty" in task.dataset) event.preventDefault();
  else if (task && isLive && !task.open) later(0); // it opens: its calls are needed
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
