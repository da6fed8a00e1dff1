// Lists of runs: filters without empty parameters, rows that follow the runs, keys, and deletion in place.

import { announce, request } from "./app.js";
import { count, duration } from "./formats.js";

const POLL_MILLISECONDS = 2000;
// While no run of the list can change, only new ones are looked for.
const IDLE_POLL_MILLISECONDS = 5000;

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

const list = document.querySelector("[data-rows]");
const rows = () => [...(list?.querySelectorAll("tr[data-run]") ?? [])];
const rowOf = (id) => list.querySelector(`tr[data-run="${id}"]`);
let tag = list?.dataset.tag;

/** Read the rows again, with one request; rows that did not change stay as they are. */
async function refresh() {
  const response = await fetch(list.dataset.rows, { headers: { Accept: "text/html", "If-None-Match": tag } });
  if (response.status === 304) return;
  if (response.redirected) location.reload();
  if (!response.ok) throw new Error(`${list.dataset.rows}: ${response.status}`);
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html").body;
  tag = response.headers.get("ETag");
  const news = [];
  let added = 0;
  for (const row of fresh.querySelectorAll("tr[data-run]")) {
    const shown = rowOf(row.dataset.run);
    if (!shown) added += 1;
    else if (shown.dataset.version === row.dataset.version) row.replaceWith(shown.cloneNode(true));
    else news.push(`${row.querySelector(".cell-run").textContent.trim()}: ${row.querySelector(".cell-state").textContent.trim()}`);
  }
  if (added) news.unshift(added === 1 ? "1 new run" : `${count(added)} new runs`);
  const focused = document.activeElement.closest?.("tr[data-run]")?.dataset.run;
  const selector = document.activeElement.matches(".cell-delete") ? ".cell-delete" : ".cell-run a";
  list.replaceChildren(...fresh.children);
  document.querySelector("[data-no-rows]")?.toggleAttribute("hidden", rows().length > 0);
  if (focused) rowOf(focused)?.querySelector(selector)?.focus({ preventScroll: true });
  if (news.length) announce(news.join(", "));
}

function tick() {
  for (const row of list.querySelectorAll("tr[data-started]")) {
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

async function poll() {
  try {
    if (!document.hidden) {
      await refresh();
      tick();
    }
    if (batch && !document.hidden && !("ended" in batch.dataset)) {
      showBatch(await request("GET", `/api/batches/${batch.dataset.batch}`));
    }
  } catch {
    // The next one tries again.
  }
  const canChange = list.querySelector("[data-open]") || (batch && !("ended" in batch.dataset));
  setTimeout(poll, canChange ? POLL_MILLISECONDS : IDLE_POLL_MILLISECONDS);
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
  else if (event.key === "x") document.activeElement.closest("tr[data-run]")?.querySelector(".cell-delete")?.click();
});

const dialog = document.getElementById("delete-dialog");
let doomed = "";

list?.addEventListener("click", (event) => {
  const link = event.target.closest(".cell-delete");
  if (!link) return;
  event.preventDefault();
  doomed = link.closest("tr").dataset.run;
  document.getElementById("delete-id").textContent = doomed;
  document.getElementById("delete-problem").hidden = true;
  dialog.returnValue = "";
  dialog.showModal();
});

dialog?.addEventListener("submit", async (event) => {
  if (event.submitter.value !== "delete") return;
  event.preventDefault();
  const problem = document.getElementById("delete-problem");
  try {
    await request("DELETE", `/api/runs/${doomed}`);
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
    return;
  }
  const row = rowOf(doomed);
  const neighbour = row?.nextElementSibling ?? row?.previousElementSibling;
  row?.remove();
  dialog.close();
  announce("The run is deleted");
  (neighbour?.querySelector(".cell-run a") ?? document.getElementById("main")).focus();
});

if (list) {
  setInterval(tick, 1000);
  tick();
  setTimeout(poll, POLL_MILLISECONDS);
}
