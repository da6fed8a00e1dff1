// What every page has: times that stay current, copy buttons, announcements, and requests to the API.

import { relative } from "./formats.js";

const WAITING_MILLISECONDS = 15_000;

/** An element with a class and text; text is never parsed as HTML. */
export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** Announce a change to screen readers. */
export function announce(text) {
  document.getElementById("announcements").textContent = text;
}

/** A request to the API as the caller of this page. Throws an Error with the API's text. */
export async function request(method, path, body) {
  const headers = { "X-CSRF-Token": document.querySelector("meta[name=csrf-token]").content };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: JSON.stringify(body) });
  if (response.status === 401) location.assign("/login?next=" + encodeURIComponent(location.pathname + location.search));
  const answer = response.headers.get("content-type")?.includes("json") ? await response.json() : null;
  if (!response.ok) throw new Error(answer?.error ?? `the service responded with ${response.status}`);
  return answer;
}

function showTimes() {
  for (const time of document.querySelectorAll("time[data-relative]")) {
    const date = new Date(time.dateTime);
    const text = relative(date);
    if (time.textContent !== text) time.textContent = text;
    if (!time.dataset.local) {
      time.title = date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
      time.dataset.local = "yes";
    }
  }
}

/** Show how many runs wait for a human, beside the inbox in the navigation. */
export async function showWaiting() {
  const badge = document.getElementById("inbox-badge");
  if (!badge || document.hidden) return;
  const response = await fetch("/inbox/count").catch(() => null);
  if (!response?.ok || response.redirected) return;
  const text = await response.text();
  if (badge.textContent !== text) badge.textContent = text;
}

// A button with data-copy copies the text of the element with that id, one with data-copy-url the
// text at that address. One with data-print prints.
document.addEventListener("click", async (event) => {
  if (event.target.closest("[data-print]")) print();
  const button = event.target.closest("[data-copy], [data-copy-url]");
  if (!button) return;
  const { copy, copyUrl } = button.dataset;
  const text = copy ? document.getElementById(copy).textContent : await (await fetch(copyUrl)).text();
  await navigator.clipboard.writeText(text);
  announce("Copied");
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
});

// On a phone the navigation scrolls: the current section is in view.
document.querySelector(".top nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

showTimes();
setInterval(showTimes, 10_000);
setInterval(showWaiting, WAITING_MILLISECONDS);
document.addEventListener("visibilitychange", () => { showTimes(); showWaiting(); });
