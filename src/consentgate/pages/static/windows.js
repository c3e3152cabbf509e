/** What the report's answers come to as lines over time. Nothing here knows of a page. */

/** @typedef {{jurisdiction: string, reason: string, verdict: string, policy: string, count: number}} Outcome */
/** @typedef {{count: number, effect_ms: {p50: number | null, p95: number | null, max: number | null}, retracted_records: number}} Withdrawals */
/** @typedef {{start_ms: number, outcomes: Outcome[], withdrawals: Withdrawals}} Window */
/** @typedef {{at_ms: number, jurisdiction: string, label: string, basis_before: string | null, basis_after: string | null}} Change */
/** @typedef {{hash: string | null, name: string, first_seen_ms: number | null, timeline: Change[]}} Policy */
/** @typedef {{from_ms: number, until_ms: number, basis: string | null}} Stretch */
/** @typedef {[number, number]} Range From a moment up to another, in epoch milliseconds. */

const HOUR_MS = 3_600_000;
const MINUTES_UP_TO_MS = 6 * HOUR_MS;
const HOURS_UP_TO_MS = 21 * 24 * HOUR_MS;

/**
 * Sum of the counts of outcomes that fit.
 * @param {Outcome[]} outcomes
 * @param {(outcome: Outcome) => boolean} fits
 */
export function sum(outcomes, fits) {
  return outcomes.reduce((total, each) => (fits(each) ? total + each.count : total), 0);
}

/**
 * The windows as steps over a range: a window in which nothing was has the values of `empty`.
 * @param {Window[]} windows In the order of time.
 * @param {number} sizeMs
 * @param {Range} range
 * @param {(window: Window) => (number | null)[]} pick One value for each line.
 * @param {number | null} empty
 * @returns {import("./chart.js").Data}
 */
export function steps(windows, sizeMs, [fromMs, untilMs], pick, empty) {
  /** @type {{x: number, y: (number | null)[] | null}[]} */
  const points = [];
  let end = fromMs;
  for (const window of windows) {
    if (window.start_ms > end || points.length === 0) points.push({ x: end, y: null });
    if (points.at(-1)?.x === window.start_ms) points.pop();
    points.push({ x: window.start_ms, y: pick(window) });
    end = window.start_ms + sizeMs;
  }
  const lastY = points.at(-1)?.y ?? null;
  if (end < untilMs) points.push({ x: end, y: null }, { x: untilMs, y: null });
  else points.push({ x: end, y: lastY });
  const lines = windows[0] === undefined ? 0 : pick(windows[0]).length;
  const ys = Array.from({ length: lines }, (_, i) => points.map(({ y }) => (y === null ? empty : y[i] ?? null)));
  return { xs: points.map(({ x }) => x), ys };
}

/**
 * The size of windows that shows something of what the ledger holds: neither one bar, nor thousands.
 * @param {{policies: Policy[], through: {ledger_time_ms: number}[]}} report
 * @returns {"minute" | "hour" | "day"}
 */
export function sizeFor({ policies, through }) {
  const begun = Math.min(...policies.map((each) => each.first_seen_ms ?? Infinity));
  const spanMs = Math.max(...through.map((each) => each.ledger_time_ms)) - begun;
  if (spanMs < MINUTES_UP_TO_MS) return "minute";
  return spanMs < HOURS_UP_TO_MS ? "hour" : "day";
}

/**
 * From the first window up to the end of the last.
 * @param {Window[]} windows
 * @param {number} sizeMs
 * @returns {Range | null}
 */
export function rangeOf(windows, sizeMs) {
  const [first, last] = [windows[0], windows.at(-1)];
  return first && last ? [first.start_ms, last.start_ms + sizeMs] : null;
}

/**
 * Which basis held when for a jurisdiction, in a range; nothing where no policy says that it changed.
 * @param {Policy[]} policies
 * @param {string} jurisdiction
 * @param {Range} range
 * @returns {Stretch[]}
 */
export function stretches(policies, jurisdiction, [fromMs, untilMs]) {
  /** @type {Stretch[]} */
  const found = [];
  for (const { policy, from_ms, until_ms } of terms(policies)) {
    const own = policy.timeline.filter((each) => each.jurisdiction === jurisdiction);
    own.forEach((change, i) => {
      const start = i === 0 ? from_ms : Math.max(from_ms, change.at_ms);
      if (i === 0) found.push({ from_ms, until_ms: Math.min(change.at_ms, until_ms), basis: change.basis_before });
      found.push({ from_ms: Math.max(start, change.at_ms), until_ms: Math.min(own[i + 1]?.at_ms ?? Infinity, until_ms), basis: change.basis_after });
    });
  }
  return found
    .map((each) => ({ ...each, from_ms: Math.max(each.from_ms, fromMs), until_ms: Math.min(each.until_ms, untilMs) }))
    .filter((each) => each.from_ms < each.until_ms);
}

/**
 * The changes that took place while their policy decided, in the order of time.
 * @param {Policy[]} policies
 * @returns {Change[]}
 */
export function changes(policies) {
  return terms(policies)
    .flatMap(({ policy, from_ms, until_ms }) =>
      policy.timeline.filter((each) => from_ms <= each.at_ms && each.at_ms < until_ms),
    )
    .sort((a, b) => a.at_ms - b.at_ms);
}

/**
 * The changes of a configured policy that no entry names, where entries name others: it may be one of them,
 * if its hash is not known here.
 * @param {Policy[]} policies
 * @returns {Change[]}
 */
export function changesBeside(policies) {
  const held = terms(policies);
  return policies.filter((policy) => !held.some((each) => each.policy === policy)).flatMap(({ timeline }) => timeline);
}

/**
 * Each policy with the time for which the ledger names it. The first is taken to have held before, one that
 * was not seen yet holds for none unless it is alone.
 * @param {Policy[]} policies
 */
function terms(policies) {
  const seen = policies.filter((each) => each.first_seen_ms !== null);
  const told = seen.length === 0 ? policies : seen;
  return told.map((policy, i) => ({
    policy,
    from_ms: i === 0 ? -Infinity : policy.first_seen_ms ?? -Infinity,
    until_ms: told[i + 1]?.first_seen_ms ?? Infinity,
  }));
}

/**
 * The labels of jurisdictions, the one with most records first; those of a policy that have none last.
 * @param {Outcome[]} outcomes
 * @param {Policy[]} policies
 */
export function jurisdictions(outcomes, policies) {
  return byCount(outcomes, (each) => each.jurisdiction, policies.flatMap(({ timeline }) => timeline.map((each) => each.jurisdiction)));
}

/**
 * The values of outcomes, the one with most records first.
 * @param {Outcome[]} outcomes
 * @param {(outcome: Outcome) => string} valueOf
 * @param {string[]} [others] Which may have no records.
 */
export function byCount(outcomes, valueOf, others = []) {
  /** @type {Map<string, number>} */
  const counts = new Map(others.map((each) => [each, 0]));
  for (const each of outcomes) counts.set(valueOf(each), (counts.get(valueOf(each)) ?? 0) + each.count);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([value]) => value);
}

/**
 * Outcomes that differ in their policy only, as one.
 * @param {Outcome[]} outcomes
 * @returns {Outcome[]}
 */
export function merged(outcomes) {
  /** @type {Map<string, Outcome>} */
  const rows = new Map();
  for (const each of outcomes) {
    const key = JSON.stringify([each.jurisdiction, each.reason, each.verdict]);
    const row = rows.get(key) ?? { ...each, count: 0 };
    row.count += each.count;
    rows.set(key, row);
  }
  return [...rows.values()];
}
