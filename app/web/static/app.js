// What every page has: times that stay current, copy buttons, announcements, and requests to the API.

const STEPS = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"], [30 * 86400, 86400, "d"]];

/** A time as its distance from now, as `app/web/formats.py` has it. */
export function relative(date, now = Date.now()) {
  const seconds = (now - date.getTime()) / 1000;
  const distance = Math.abs(seconds);
  if (distance < 5) return "now";
  for (const [below, unit, name] of STEPS) {
    if (distance < below) {
      const amount = `${Math.floor(distance / unit)} ${name}`;
      return seconds > 0 ? `${amount} ago` : `in ${amount}`;
    }
  }
  return date.toISOString().slice(0, 10);
}

/** A duration in at most two units, as `app/web/formats.py` has it. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  seconds = Math.max(seconds, 0);
  if (seconds < 0.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  let minutes = Math.floor(whole / 60);
  if (minutes < 60) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  minutes %= 60;
  return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
}

/** An amount in US dollars, as `app/web/formats.py` has it. */
export function money(usd) {
  if (usd === null || usd === undefined) return "–";
  if (usd === 0 || usd >= 0.995) return `$${usd.toFixed(2)}`;
  let digits = 2;
  while (digits < 9 && usd < 10 ** (2 - digits)) digits += 1;
  return `$${usd.toFixed(digits)}`;
}

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
document.addEventListener("visibilitychange", showTimes);
