// The timeline of a run under way: the lanes follow its events, as the server would render them.

import { count, duration, money } from "./formats.js";

const LEAST_WIDTH = 0.3;
const ROOM = 1.3;
const TICKS = 4;
const STEPS = [1, 2, 2.5, 5, 10];

const line = () => document.getElementById("run-timeline");
const lane = (index) => document.getElementById(`task-${index}`);
const secondsAt = (time) => (time - Date.parse(line().dataset.zero)) / 1000;
const words = (state) => state.replaceAll("_", " ");

/** The marks of an axis, each with its position in percent: about four, at round numbers. */
export function ticks(seconds) {
  const rough = seconds / TICKS;
  const magnitude = 10 ** Math.floor(Math.log10(rough));
  const step = magnitude * STEPS.find((one) => one * magnitude >= rough);
  const marks = [];
  for (let number = 0; number * step <= seconds * 0.93; number += 1) {
    marks.push([Number(((number * step * 100) / seconds).toFixed(2)), mark(number * step)]);
  }
  return marks;
}

function mark(seconds) {
  if (seconds < 120) return `${Number(seconds.toPrecision(6))} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min`;
}

/** A task begins. False if the page lacks it. */
export function start({ index, at }) {
  const task = lane(index);
  if (!task) return false;
  if (task.dataset.state === "running" || task.dataset.state === "finished") return true;
  setState(task, "running");
  delete task.dataset.empty;
  const bar = task.querySelector("summary .bar");
  bar.querySelector("rect")?.remove();
  bar.append(shape("rect", { class: "is-running", x: `${position(Date.parse(at))}%`, width: `${LEAST_WIDTH}%`, "data-open": "" }));
  const [time] = task.querySelectorAll("summary > .num");
  time.dataset.since = at;
  const tail = document.createElement("span");
  tail.className = "tail";
  tail.dataset.tail = index;
  tail.setAttribute("aria-hidden", "true");
  task.querySelector("summary").append(tail);
  return true;
}

/** A task ends. False if the page lacks its start. */
export function finish({ index, at, usage, run_usage: total, cost }) {
  const task = lane(index);
  if (task?.dataset.state === "finished") return true;
  if (task?.dataset.state !== "running") return false;
  setState(task, "finished");
  const end = Date.parse(at);
  const bar = task.querySelector("summary rect");
  if (bar) {
    bar.removeAttribute("data-open");
    bar.setAttribute("class", "is-finished");
    widen(bar, position(end));
  }
  task.querySelector(".tail")?.remove();
  const [time, tokens, price] = task.querySelectorAll("summary > .num");
  if (time.dataset.since) time.textContent = duration((end - Date.parse(time.dataset.since)) / 1000);
  delete time.dataset.since;
  tokens.textContent = count(usage.total_tokens || null);
  price.textContent = money(cost);
  if (total) {
    fact("calls", count(total.model_calls ?? 0));
    fact("tokens", count(total.total_tokens || null));
    fact("cost", money("cost_nano_usd" in total ? total.cost_nano_usd / 1e9 : null));
  }
  return true;
}

/** Bars and durations of what is under way grow until now, and the axis with them. */
export function grow() {
  const now = Date.now();
  for (const one of document.querySelectorAll("[data-since]")) {
    one.textContent = duration((now - Date.parse(one.dataset.since)) / 1000);
  }
  const elapsed = secondsAt(now);
  if (elapsed > line().dataset.seconds * 0.99) scale(elapsed * ROOM + 1);
  for (const one of line().querySelectorAll("[data-open]")) widen(one, position(now));
}

/** Give the axis another length, with room for what follows. */
function scale(seconds) {
  const factor = line().dataset.seconds / seconds;
  line().dataset.seconds = seconds;
  for (const one of line().querySelectorAll("rect")) {
    for (const name of ["x", "width"]) one.setAttribute(name, `${parseFloat(one.getAttribute(name)) * factor}%`);
  }
  const marks = ticks(seconds);
  for (const bar of line().querySelectorAll(".bar")) {
    for (const one of bar.querySelectorAll("line")) one.remove();
    bar.prepend(...marks.map(([x]) => shape("line", { x1: `${x}%`, x2: `${x}%`, y2: "100%" })));
  }
  line().querySelector(".axis").replaceChildren(...marks.map(([x, text]) => shape("text", { x: `${x}%`, y: "15" }, text)));
}

function position(time) {
  return Math.min(Math.max(secondsAt(time) / line().dataset.seconds, 0), 1) * 100;
}

function widen(bar, end) {
  bar.setAttribute("width", `${Math.max(LEAST_WIDTH, end - parseFloat(bar.getAttribute("x")))}%`);
}

function shape(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function fact(name, text) {
  document.querySelector(`#run-facts [data-fact="${name}"]`).textContent = text;
}

/** A task's lane and its tab have the same state. */
function setState(task, state) {
  task.dataset.state = state;
  const dot = task.querySelector(".state");
  dot.className = `state is-${state} dot`;
  dot.title = words(state);
  dot.firstElementChild.textContent = `${words(state)}: `;
  const tab = document.querySelector(`#run-tabs [data-report="${task.id.slice("task-".length)}"]`);
  if (!tab) return;
  tab.dataset.state = state;
  tab.querySelector(".state").className = `state is-${state} dot`;
  tab.querySelector(".visually-hidden").textContent = `, ${words(state)}`;
}
