// Lists of runs: filters without empty parameters, live states, keys, and deletion in place.

import { announce, request } from "./app.js";
import { count, duration, money } from "./formats.js";

const SETTLED = new Set(["succeeded", "failed", "cancelled"]);
const NAMES = { awaiting_human: "waiting for you" };
const POLL_MILLISECONDS = 2000;

const filters = document.getElementById("filters");
// An empty field is no filter: it is left out of the address.
filters?.addEventListener("formdata", (event) => {
  for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
});
// The back button leads to an address: the form shows its filters, not what was entered later.
addEventListener("pageshow", () => filters?.reset());
filters?.addEventListener("change", (event) => {
  if (event.target.matches("select, [type=checkbox]")) filters.requestSubmit();
});

const table = document.querySelector("[data-live-runs]");
const rows = () => [...(table?.querySelectorAll("tr[data-run]") ?? [])];

function badge(status) {
  const made = document.createElement("span");
  made.className = `state is-${status}`;
  made.textContent = NAMES[status] ?? status.replaceAll("_", " ");
  return made;
}

function show(row, run) {
  if (row.dataset.status !== run.status) {
    row.querySelector(".cell-state").replaceChildren(badge(run.status));
    row.dataset.status = run.status;
    row.querySelector(".cell-delete").hidden = !SETTLED.has(run.status);
    announce(`${run.crew} ${run.run_id.slice(0, 8)}: ${NAMES[run.status] ?? run.status}`);
  }
  if (run.started_at) row.dataset.started = run.started_at;
  const time = row.querySelector(".cell-time");
  if (run.finished_at && run.started_at) time.textContent = duration((new Date(run.finished_at) - new Date(run.started_at)) / 1000);
  if (run.usage?.total_tokens !== undefined) row.querySelector(".cell-tokens").textContent = count(run.usage.total_tokens);
  row.querySelector(".cell-cost").textContent = money(run.cost);
}

function tick() {
  for (const row of rows()) {
    if (row.dataset.status !== "running" || !row.dataset.started) continue;
    row.querySelector(".cell-time").textContent = duration((Date.now() - new Date(row.dataset.started)) / 1000);
  }
}

const batch = document.querySelector("[data-batch]");

function showBatch(found) {
  let x = 0;
  for (const bar of batch.querySelectorAll("[data-progress] rect")) {
    const width = (100 * found.counts[bar.dataset.status]) / found.runs;
    bar.setAttribute("x", `${x}%`);
    bar.setAttribute("width", `${width}%`);
    x += width;
  }
  for (const [status, number] of Object.entries(found.counts)) {
    batch.querySelector(`[data-count="${status}"]`).textContent = count(number);
  }
  if (found.finished_at) {
    batch.dataset.ended = "";
    document.getElementById("batch-cancel")?.remove();
    announce("The batch has ended");
  }
}

// One request for all runs that can change, however many they are.
async function poll() {
  try {
    const open = rows().filter((row) => !SETTLED.has(row.dataset.status));
    if (!document.hidden && open.length) {
      const query = open.map((row) => `run_id=${row.dataset.run}`).join("&");
      const { runs } = await request("GET", `/api/runs?limit=200&${query}`);
      const found = new Map(runs.map((run) => [run.run_id, run]));
      for (const row of open) {
        const run = found.get(row.dataset.run);
        if (run) show(row, run);
        else row.remove();
      }
    }
    if (batch && !document.hidden && !("ended" in batch.dataset)) {
      showBatch(await request("GET", `/api/batches/${batch.dataset.batch}`));
    }
  } catch {
    // The next one tries again.
  }
  const isOver = rows().every((row) => SETTLED.has(row.dataset.status)) && (!batch || "ended" in batch.dataset);
  if (!isOver) setTimeout(poll, POLL_MILLISECONDS);
}

function move(step) {
  const all = rows();
  const at = all.findIndex((row) => row.contains(document.activeElement));
  const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + step, 0), all.length - 1)];
  const link = next?.querySelector(".cell-run a");
  link?.focus();
  link?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || dialog?.open) return;
  if (event.target.closest("input, select, textarea, dialog")) return;
  if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "x") document.activeElement.closest("tr[data-run]")?.querySelector(".cell-delete:not([hidden])")?.click();
});

const dialog = document.getElementById("delete-dialog");
let doomed = null;

table?.addEventListener("click", (event) => {
  const link = event.target.closest(".cell-delete");
  if (!link) return;
  event.preventDefault();
  doomed = link.closest("tr");
  document.getElementById("delete-id").textContent = doomed.dataset.run;
  document.getElementById("delete-problem").hidden = true;
  dialog.returnValue = "";
  dialog.showModal();
});

dialog?.addEventListener("submit", async (event) => {
  if (event.submitter.value !== "delete") return;
  event.preventDefault();
  const problem = document.getElementById("delete-problem");
  try {
    await request("DELETE", `/api/runs/${doomed.dataset.run}`);
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
    return;
  }
  const neighbour = doomed.nextElementSibling ?? doomed.previousElementSibling;
  doomed.remove();
  dialog.close();
  announce("The run is deleted");
  (neighbour?.querySelector(".cell-run a") ?? document.getElementById("main")).focus();
});

if (table || batch) {
  setInterval(tick, 1000);
  tick();
  poll();
}
