/** Numbers, spans and moments as text. Everything is in UTC, as it is in the logs. */

const LOCALE = "en-GB";
const WHOLE = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat(LOCALE, {
  notation: "compact",
  maximumSignificantDigits: 3,
});
const PERCENT = new Intl.NumberFormat(LOCALE, { style: "percent", maximumFractionDigits: 1 });
const NUMBER = new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: 3 });

/** @param {Intl.DateTimeFormatOptions} options */
const utc = (options) => new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", ...options });

const DAY = utc({ day: "numeric", month: "short", year: "numeric" });
const SHORT_DAY = utc({ day: "numeric", month: "short" });
const MINUTE = utc({ hour: "2-digit", minute: "2-digit" });
const SECOND = utc({ hour: "2-digit", minute: "2-digit", second: "2-digit" });

const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

/** @param {number} n A whole number. */
export const count = (n) => WHOLE.format(n);

/** @param {number} n A number for a tile or an axis: 12.3K. */
export const short = (n) => (Math.abs(n) < 10_000 ? NUMBER.format(n) : SHORT.format(n));

/** @param {number} part @param {number} whole */
export const percent = (part, whole) => (whole === 0 ? "–" : PERCENT.format(part / whole));

/** @param {number} perSecond */
export const rate = (perSecond) => `${short(perSecond)}/s`;

/**
 * A span in its two largest units.
 * @param {number | null | undefined} ms
 */
export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < SECOND_MS) return `${count(ms)} ms`;
  if (ms < MINUTE_MS) return `${NUMBER.format(ms / SECOND_MS)} s`;
  if (ms < HOUR_MS) return inTwo(ms, MINUTE_MS, "min", SECOND_MS, "s");
  if (ms < DAY_MS) return inTwo(ms, HOUR_MS, "h", MINUTE_MS, "min");
  return inTwo(ms, DAY_MS, "d", HOUR_MS, "h");
}

/** @param {number} ms @param {number} large @param {string} largeName @param {number} small @param {string} smallName */
function inTwo(ms, large, largeName, small, smallName) {
  const rest = Math.floor((ms % large) / small);
  const first = `${count(Math.floor(ms / large))} ${largeName}`;
  return rest === 0 ? first : `${first} ${rest} ${smallName}`;
}

/** @param {number} ms Whole seconds are enough, as for what is counted up. */
export const wholeSeconds = (ms) => span(Math.max(0, Math.floor(ms / SECOND_MS)) * SECOND_MS).replace(/^0 ms$/, "0 s");

/** @param {number} ms A moment in epoch milliseconds. */
export const clock = (ms) => `${SECOND.format(ms)} UTC`;

/** @param {number} ms A moment in epoch milliseconds. */
export const moment = (ms) =>
  `${DAY.format(ms)}, ${(ms % MINUTE_MS === 0 ? MINUTE : SECOND).format(ms)} UTC`;

/** @param {number} ms A moment in epoch milliseconds, down to the day. */
export const day = (ms) => DAY.format(ms);

/**
 * A moment on an axis whose labels are `stepMs` apart.
 * @param {number} ms
 * @param {number} stepMs
 */
export function tick(ms, stepMs) {
  if (stepMs >= DAY_MS || ms % DAY_MS === 0) return SHORT_DAY.format(ms);
  return (stepMs < MINUTE_MS ? SECOND : MINUTE).format(ms);
}

/** @param {number} n @param {string} one @param {string} many */
export const counted = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

/** @param {string} hash */
export const shortHash = (hash) => hash.slice(0, 12);
