// The page of operations: charts of the last hour as SVG, and numbers that follow the service.

import { element, request } from "./app.js";
import { count, duration, money, relative, size } from "./formats.js";

const HOUR = 3600;
// A young service fills its charts, too: they span the shortest of these that has all its points.
const SPANS = [300, 900, 1800, HOUR];
const WIDTH = 400;
const HEIGHT = 132;
const PADDING = { top: 8, right: 4, bottom: 18, left: 40 };
const SVG = "http://www.w3.org/2000/svg";

// Each chart: series of the API, their names and colours.
const CHARTS = {
  amounts: [["in_flight", "in flight", 1], ["queued", "queued", 2], ["awaiting_human", "waiting for humans", 3]],
  rates: [["submitted_per_second", "submitted", 1], ["succeeded_per_second", "succeeded", 2], ["failed_per_second", "failed", 3]],
  time: [["run_p50_seconds", "p50", 1], ["run_p95_seconds", "p95", 2]],
  wait: [["queue_p50_seconds", "p50", 1], ["queue_p95_seconds", "p95", 2]],
  calls: [["model_calls_per_second", "calls", 1], ["model_errors_per_second", "failed", 3]],
  "call-time": [["model_p50_seconds", "p50", 1], ["model_p95_seconds", "p95", 2]],
  requests: [["requests_per_second", "requests", 1]],
  latency: [["request_p95_seconds", "requests", 1], ["commit_p95_seconds", "commits", 2]],
  cpu: [["cpu_cores", "all processes", 1]],
};

const rounded = (value) => count(value === null ? null : Math.round(value));
const KINDS = { count: rounded, seconds: duration, money, size };

const number = (value, unit) => {
  if (value === null || value === undefined) return "–";
  if (unit === "s") return duration(value);
  const text = value >= 100 ? rounded(value) : String(Number(value.toPrecision(2)));
  return unit === "cores" || !unit ? text : `${text}${unit}`;
};

/** A round number of at least the value: 1, 2 or 5 times a power of ten. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= value * 0.999);
}

function svg(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

class Chart {
  constructor(figure) {
    this.unit = figure.dataset.unit;
    this.series = CHARTS[figure.dataset.chart];
    this.title = figure.querySelector("figcaption").textContent;
    this.legend = element("ul", "legend");
    this.values = this.series.map(([, name, colour]) => {
      const item = element("li", `series-${colour}`);
      const value = element("b");
      item.append(name, " ", value);
      this.legend.append(item);
      return value;
    });
    this.drawing = svg("svg", { role: "img", "aria-label": this.title });
    this.table = element("details");
    this.table.append(element("summary", "", "As a table"), element("div", "scroll"));
    this.table.querySelector("summary").setAttribute("aria-label", `${this.title}, as a table`);
    this.table.addEventListener("toggle", () => this.fill());
    figure.append(this.legend, this.drawing, this.table);
    this.at = null;
    this.drawing.addEventListener("pointermove", (event) => {
      const box = this.drawing.getBoundingClientRect();
      this.at = (event.clientX - box.left - PADDING.left) / (box.width - PADDING.left - PADDING.right);
      this.draw();
    });
    this.drawing.addEventListener("pointerleave", () => { this.at = null; this.draw(); });
  }

  show(times, series, now) {
    Object.assign(this, { times, data: this.series.map(([name]) => series[name]), now });
    this.draw();
    if (this.table.open) this.fill();
  }

  draw() {
    if (!this.times) return;
    const { times, data, now } = this;
    const width = this.drawing.clientWidth || WIDTH;
    const highest = ceiling(Math.max(0, ...data.flat().filter((value) => value !== null)));
    const span = SPANS.find((each) => now - times[0] <= each) ?? HOUR;
    const x = (time) => PADDING.left + ((time - now + span) / span) * (width - PADDING.left - PADDING.right);
    const y = (value) => HEIGHT - PADDING.bottom - (value / highest) * (HEIGHT - PADDING.top - PADDING.bottom);
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      parts.push(svg("line", { class: "grid", x1: PADDING.left, x2: width - PADDING.right, y1: y(share * highest), y2: y(share * highest) }));
      parts.push(svg("text", { x: PADDING.left - 6, y: y(share * highest) + 4, "text-anchor": "end" }, number(share * highest, "")));
    }
    for (const [share, anchor] of [[1, "start"], [0.5, "middle"], [0, "end"]]) {
      parts.push(svg("text", { x: x(now - share * span), y: HEIGHT - 2, "text-anchor": anchor }, share ? `−${Number((share * span / 60).toPrecision(2))} min` : "now"));
    }
    data.forEach((values, index) => {
      let path = "";
      let last = null;
      values.forEach((value, at) => {
        if (value === null || times[at] < now - span) { last = null; return; }
        // A gap in time is a gap in the line.
        path += `${last !== null && times[at] - last < 60 ? "L" : "M"}${x(times[at]).toFixed(1)} ${y(value).toFixed(1)}`;
        last = times[at];
      });
      parts.push(svg("path", { class: `series-${this.series[index][2]}`, d: path || "M0 0" }));
    });
    let shown = times.length - 1;
    if (this.at !== null) {
      const time = now - span + this.at * span;
      shown = times.reduce((best, each, at) => (Math.abs(each - time) < Math.abs(times[best] - time) ? at : best), 0);
      parts.push(svg("line", { class: "cursor", x1: x(times[shown]), x2: x(times[shown]), y1: PADDING.top, y2: HEIGHT - PADDING.bottom }));
    }
    this.drawing.replaceChildren(...parts);
    this.values.forEach((value, index) => { value.textContent = number(data[index][shown], this.unit); });
    const texts = this.series.map(([, name], index) => `${name} ${number(data[index].at(-1), this.unit)}`);
    this.drawing.setAttribute("aria-label", `${this.title} over the last hour; now ${texts.join(", ")}`);
  }

  /** The chart as a table: a row for each five minutes. */
  fill() {
    const table = element("table");
    const head = table.createTHead().insertRow();
    for (const name of ["Time", ...this.series.map(([, name]) => name)]) {
      const cell = element("th", name === "Time" ? "" : "num", name);
      cell.scope = "col";
      head.append(cell);
    }
    const body = table.createTBody();
    let next = Infinity;
    for (let at = this.times.length - 1; at >= 0; at -= 1) {
      if (this.times[at] > next) continue;
      next = this.times[at] - 300;
      const row = body.insertRow();
      row.insertCell().textContent = new Date(this.times[at] * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      for (const values of this.data) {
        const cell = row.insertCell();
        cell.className = "num";
        cell.textContent = number(values[at], this.unit);
      }
    }
    this.table.querySelector(".scroll").replaceChildren(table);
  }
}

const charts = [...document.querySelectorAll("[data-chart]")].map((figure) => new Chart(figure));
let times = [];
let series = {};
let step = 10;

/** Add the moment of a state to the charts: as a new point, or in place of the last moment. */
function follow(state) {
  const last = times.length - 1;
  const isMoment = last > 0 && times[last] % step !== 0;
  if (isMoment) times.pop();
  const aligned = Math.floor(state.time / step) * step;
  const isNew = !times.length || aligned > times.at(-1);
  for (const [name, values] of Object.entries(series)) {
    if (isMoment) values.pop();
    if (isNew) values.push(state.now[name] ?? null);
    values.push(state.now[name] ?? null);
    while (values.length > HOUR / step + 2) values.shift();
  }
  if (isNew) times.push(aligned);
  times.push(state.time % step === 0 ? state.time + 0.001 : state.time);
  while (times.length > HOUR / step + 2) times.shift();
  for (const chart of charts) chart.show(times, series, state.time);
}

function cell(row, text, className = "", href = "") {
  const made = row.insertCell();
  made.className = className;
  if (href) {
    const link = element("a", "", text);
    link.href = href;
    made.append(link);
  } else made.textContent = text;
  return made;
}

function fill(name, items, write) {
  const body = document.querySelector(`[data-rows=${name}]`);
  body.replaceChildren();
  for (const item of items) write(body.insertRow(), item);
  const empty = document.querySelector(`[data-empty=${name}]`);
  if (empty) empty.hidden = items.length > 0;
}

function show(state) {
  for (const shown of document.querySelectorAll("[data-live]")) {
    const value = shown.dataset.live.split(".").reduce((found, name) => found?.[name] ?? null, state);
    const text = KINDS[shown.dataset.kind](value);
    if (shown.textContent !== text) shown.textContent = text;
  }
  document.getElementById("coverage").hidden = state.hour_before.seconds > 3500;
  fill("spend", state.hour.spend, (row, { crew, model, calls, tokens, cost }) => {
    const before = state.hour_before.spend.find((each) => each.crew === crew && each.model === model);
    cell(row, crew, "", `/crews/${encodeURIComponent(crew)}`);
    cell(row, model);
    cell(row, rounded(calls), "num");
    cell(row, rounded(tokens), "num");
    cell(row, money(cost), "num");
    cell(row, money(before?.cost ?? null), "num change");
  });
  fill("errors", Object.entries(state.hour.errors), (row, [name, count]) => {
    cell(row, name.replaceAll("_", " "), "", `/runs?error_type=${encodeURIComponent(name)}`);
    cell(row, rounded(count), "num");
    cell(row, rounded(state.hour_before.errors[name] ?? 0), "num change");
  });
  fill("storage", state.storage, (row, backend) => {
    const name = cell(row, backend.backend);
    if (!backend.up) name.append(" ", element("span", "state is-failed", "can't be reached"));
    cell(row, rounded(backend.outputs), "num");
    cell(row, size(backend.bytes), "num");
    cell(row, duration(backend.oldest_seconds), "num");
    cell(row, size(backend.free_bytes), "num");
  });
  fill("processes", state.processes, (row, process) => {
    const name = cell(row, process.host ? `${process.host}, ${process.pid}` : process.id);
    name.title = process.id;
    if (process.draining) name.append(" ", element("span", "state is-wait", "drains"));
    cell(row, process.version ?? "–");
    cell(row, rounded(process.runs), "num");
    cell(row, rounded(process.slots), "num");
    for (const time of [process.started_at, process.last_seen_at]) cell(row, time ? relative(new Date(time)) : "–", "nowrap");
  });
  const sweeps = state.sweeps.map(({ result, at }) => `${result.replaceAll("_", " ")} ${relative(new Date(at))}`);
  document.querySelector("[data-rows=sweeps]").textContent = sweeps.join(", ") || "none yet";
  const up = state.database_up ? "ok" : "failed";
  document.getElementById("database-state").replaceChildren(element("span", `state is-${up}`, up));
  showHealth(state.problems.length || state.database_up ? state.problems : ["the database is unavailable"]);
}

function showHealth(problems) {
  const health = document.getElementById("health");
  if (health.dataset.problems === problems.join()) return;
  health.dataset.problems = problems.join();
  health.replaceChildren();
  if (!problems.length) return;
  const notice = element("div", "notice is-bad");
  notice.append(element("strong", "", "Not ready"), ...problems.map((problem) => element("span", "", problem)));
  health.append(notice);
}

let source = null;

async function connect() {
  source?.close();
  try {
    const whole = await request("GET", "/api/operations");
    ({ times, series, step_seconds: step } = whole.charts);
    follow(whole);
    show(whole);
  } catch {
    setTimeout(connect, 5000);
    return;
  }
  source = new EventSource("/api/operations/events");
  source.addEventListener("state", (event) => {
    const state = JSON.parse(event.data);
    document.body.dataset.state = state.time;
    follow(state);
    show(state);
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  });
}

document.getElementById("sweep").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  const result = document.getElementById("sweep-result");
  button.disabled = true;
  try {
    const report = await request("POST", "/api/operations/sweep");
    const done = report.result === "done" ? "Swept" : `Not swept: ${report.result}`;
    result.textContent = `${done}: ${rounded(report.removed)} removed (${size(report.removed_bytes)}), ${rounded(report.kept)} kept, ${rounded(report.failed)} failed.`;
  } catch (error) {
    result.textContent = error.message;
  }
  button.disabled = false;
});

addEventListener("resize", () => { for (const chart of charts) chart.draw(); });
// A page that no one sees needs no stream.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) source?.close();
  else connect();
});
connect();
