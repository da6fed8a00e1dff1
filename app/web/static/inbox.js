// The inbox: a review is sent in place, the run continues before the eyes, and new reviews appear.

import { announce, element, request, showWaiting } from "./app.js";

const reviews = document.querySelector(".reviews");
const badge = document.getElementById("inbox-badge");

reviews.addEventListener("submit", async (event) => {
  event.preventDefault();
  const item = event.target.closest(".review");
  const approve = event.submitter.value === "approve";
  const words = item.querySelector("textarea").value;
  const problem = item.querySelector(".problem");
  problem.hidden = true;
  if (!approve && !words.trim()) return refuse(item, "Say what to change, so that the task can do it.");
  for (const button of item.querySelectorAll("button")) button.disabled = true;
  try {
    const body = { task: item.dataset.task, approve, feedback: words };
    await request("POST", `/api/runs/${item.dataset.run}/resume`, body);
  } catch (error) {
    for (const button of item.querySelectorAll("button")) button.disabled = false;
    return refuse(item, error.message);
  }
  showWaiting();
  follow(item, approve);
});

/** Runs that wait since the page was loaded, before those that it shows. */
async function addNew() {
  const response = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!response.ok || response.redirected) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  const added = [...fresh.querySelectorAll(".review")].filter((one) => !document.getElementById(one.id));
  reviews.prepend(...added);
  document.querySelector(".empty")?.toggleAttribute("hidden", reviews.children.length > 0);
  if (added.length) announce(added.length === 1 ? "1 more run waits for you" : `${added.length} more runs wait for you`);
}

if (badge) new MutationObserver(addNew).observe(badge, { childList: true });

function refuse(item, text) {
  const problem = item.querySelector(".problem");
  const words = item.querySelector("textarea");
  problem.textContent = text;
  problem.hidden = false;
  words.setAttribute("aria-invalid", "true");
  words.focus();
}

/** Show how the run continues, until it ends or waits again. */
async function follow(item, approve) {
  const id = item.dataset.run;
  const form = item.querySelector("form");
  const live = element("div", "continues");
  const title = element("p");
  title.append(element("strong", "", approve ? "Approved." : "Sent back."), " ");
  const link = element("a", "", "Watch the run");
  link.href = `/runs/${id}`;
  title.append(link);
  const tasks = element("ul", "tasks");
  live.append(title, tasks);
  live.tabIndex = -1;
  form.replaceWith(live);
  item.querySelector(".output").hidden = true;
  live.focus();
  announce(approve ? "Approved. The run continues." : "Sent back. The task is executed again.");
  const show = (run) => {
    tasks.replaceChildren(...run.tasks.map((task) => {
      const line = element("li");
      line.append(element("span", `state is-${task.status}`, task.name.replaceAll("_", " ")), element("span", "muted", ` ${task.status.replaceAll("_", " ")}`));
      return line;
    }));
  };
  const source = new EventSource(`/api/runs/${id}/events`);
  let reading = false;
  let again = false;
  const read = async () => {
    if (reading) { again = true; return; }
    reading = true;
    try {
      const run = await request("GET", `/api/runs/${id}`);
      show(run);
      if (run.status === "awaiting_human") { source.close(); await renew(item, id); }
      if (run.finished_at) { source.close(); end(live, run); }
    } catch (error) {
      announce(error.message);
    }
    reading = false;
    if (again) { again = false; read(); }
  };
  for (const type of ["run.running", "run.resumed", "task.started", "task.finished", "run.awaiting_human", "run.succeeded", "run.failed", "run.cancelled"]) {
    source.addEventListener(type, read);
  }
  read();
}

function end(live, run) {
  if (live.querySelector(".outcome")) return;
  live.append(element("p", `outcome state is-${run.status}`, run.status === "succeeded" ? "The run succeeded" : `The run ${run.status}: ${run.error ?? ""}`));
  announce(`The run ${run.status}`);
}

/** The run waits again, perhaps with a new output: show it. */
async function renew(item, id) {
  const response = await fetch(`/inbox/${id}`, { headers: { Accept: "text/html" } });
  if (!response.ok) return;
  const found = new DOMParser().parseFromString(await response.text(), "text/html").querySelector(".review");
  item.replaceWith(found);
  found.querySelector("textarea").focus();
  announce("The run waits for you again");
  showWaiting();
}
