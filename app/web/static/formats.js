// Numbers and times as `app/web/formats.py` writes them: a test compares both.

const NOTHING = "–";
const STEPS = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"], [30 * 86400, 86400, "d"]];

const isNothing = (value) => value === null || value === undefined;
const grouped = (text) => text.replace(/^\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ","));

/** A time as its distance from now, such as `5 min ago`; after a month, the date. */
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

/** A duration in at most two units: `0.42 s`, `12.3 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`. */
export function duration(seconds) {
  if (isNothing(seconds)) return NOTHING;
  seconds = Math.max(seconds, 0);
  if (seconds < 0.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return twoUnits(minutes, "min", whole % 60, "s");
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return twoUnits(hours, "h", minutes % 60, "min");
  return twoUnits(Math.floor(hours / 24), "d", hours % 24, "h");
}

function twoUnits(amount, unit, rest, smaller) {
  return rest ? `${amount} ${unit} ${rest} ${smaller}` : `${amount} ${unit}`;
}

/** An amount in US dollars; small ones with three significant digits. */
export function money(usd) {
  if (isNothing(usd)) return NOTHING;
  let digits = 2;
  if (usd !== 0 && usd < 0.995) while (digits < 9 && usd < 10 ** (2 - digits)) digits += 1;
  return `$${grouped(usd.toFixed(digits))}`;
}

/** A number with separators: `12,345`. */
export function count(number) {
  return isNothing(number) ? NOTHING : grouped(String(number));
}

/** A number of bytes: `512 B`, `4.2 kB`, `1.3 GB`. */
export function size(number) {
  if (isNothing(number)) return NOTHING;
  if (number < 999.5) return `${number.toFixed(0)} B`;
  let unit = "";
  for (unit of ["kB", "MB", "GB", "TB"]) {
    number /= 1000;
    if (number < 999.5) break;
  }
  return `${number.toFixed(1)} ${unit}`;
}
