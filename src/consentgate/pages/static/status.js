/** The status page of a worker: asks for `status.json` again and again, and shows what it says. */

import { figure, preparePrinting } from "./chart.js";
import { byId, setFacts, setText, setTiles, table } from "./dom.js";
import { getJson } from "./fetching.js";
import {
  clock, count, counted, moment, percent, rate, short, shortHash, span, wholeSeconds,
} from "./format.js";
import { BASES, PHASES, REASONS, VERDICTS, place } from "./words.js";

/** @typedef {import("./dom.js").Cell} Cell */
/** @typedef {{at_ms: number, forwarded: number, withheld: number, quarantined: number, lag_records: number, consent_staleness_seconds: number | null}} Sample */
/** @typedef {{partition: number, phase: string, why: string | null, next_offset: number, lag_records: number, lag_seconds: number, consent_staleness_seconds: number}} Partition */
/** @typedef {{jurisdiction: string, reason: string, verdict: string, count: number}} Outcome */
/** @typedef {{jurisdictions: string[], basis: string | null, from_ms: number | null, until_ms: number | null}} InForce */

/**
 * What `status.json` holds.
 * @typedef {object} Status
 * @property {number} now_ms
 * @property {number} started_ms
 * @property {string} version
 * @property {string} group
 * @property {string} content_topic
 * @property {{name: string, hash: string, purpose: string, in_force: InForce[]}} policy
 * @property {Record<string, string>} components
 * @property {Partition[]} partitions
 * @property {{in: number, forwarded: number, withheld: number, quarantined: number}} totals
 * @property {Outcome[]} outcomes
 * @property {{count: number, recent: number, effect_ms: {p50: number | null, max: number | null}}} withdrawals
 * @property {{committed: number, aborted: number, recycled: number}} transactions
 * @property {number} stalls
 * @property {number} rebalances
 * @property {{unreadable: number, misplaced: number}} consent
 * @property {number} sample_ms
 * @property {Sample[]} samples
 */

const SEEN_MS = 2_000;
const HIDDEN_MS = 30_000;
const FAILED_MS_MAX = 15_000;
/** An answer that is older than this is no news of now. */
const STALE_MS = 7_000;
const SAMPLES_MAX = 450;
/** Rates are means over so many samples, since records are committed in batches. */
const RATE_SAMPLES = 4;
const STALE_VIEW_SECONDS = 10;

/** The samples so far: the worker sends those that it took since the last one. @type {Sample[]} */
let samples = [];
/** @type {Status | null} */
let last = null;
/** When the last answer came, by the clock of the browser. */
let heardAt = 0;
let failures = 0;
let why = "";
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

const FLOW = [
  { name: "forwarded", color: "--forward", pattern: /** @type {const} */ ("plain") },
  { name: "withheld", color: "--withhold", pattern: /** @type {const} */ ("hatched") },
  { name: "quarantined", color: "--quarantine", pattern: /** @type {const} */ ("dotted") },
];

const flow = figure({
  title: "Records per second",
  note: "What was decided and committed, and what became of it. The layers add up to all that came in.",
  series: FLOW,
  format: rate,
  axis: short,
  stacked: true,
  heightPx: 230,
  atLeast: 10,
  sync: "status",
  marks: changes,
});
const lag = figure({
  title: "Lag",
  note: "Records in the content topic that wait for a decision.",
  series: [{ name: "records", color: "--plain", pattern: "plain" }],
  format: short,
  whole: true,
  atLeast: 10,
  sync: "status",
});
const age = figure({
  title: "Age of the consent view",
  note: "How long ago the worker last knew the consent topic to its end; the partition where it is longest.",
  series: [{ name: "age", color: "--good", dash: [6, 3] }],
  format: (seconds) => span(Math.round(seconds * 1000)),
  sync: "status",
});
const partitionTable = table("Each as it is now", [
  "partition", "state", "#lag", "#last record's age", "#consent view's age", "#next offset",
]);
const outcomeTable = table("Counted by jurisdiction and reason", [
  "outcome", "reason", "jurisdiction", "#records", "#share",
]);
const inForceTable = table("Rules in force now", ["jurisdictions", "basis", "since", "until"]);

function start() {
  byId("flow").append(flow.element);
  byId("delays").append(lag.element, age.element);
  byId("partitions").append(partitionTable.element);
  byId("outcomes").append(outcomeTable.element);
  byId("in-force").append(inForceTable.element);
  byId("figures").hidden = true;
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) void poll();
  });
  setInterval(showState, 1_000);
  preparePrinting();
  void poll();
}

async function poll() {
  clearTimeout(timer);
  try {
    take(await getJson(`status.json?since_ms=${samples.at(-1)?.at_ms ?? 0}`));
    failures = 0;
  } catch (error) {
    failures += 1;
    why = error instanceof Error ? error.message : String(error);
  }
  showState();
  clearTimeout(timer);
  timer = setTimeout(poll, pauseMs());
}

/** How long until the next question: longer where nobody looks or answers. */
function pauseMs() {
  if (document.hidden) return HIDDEN_MS;
  return Math.min(SEEN_MS * 2 ** Math.min(failures, 3), FAILED_MS_MAX);
}

/** @param {Status} status */
function take(status) {
  // Another process counts from zero.
  if (last !== null && last.started_ms !== status.started_ms) samples = [];
  samples = [...samples, ...status.samples].slice(-SAMPLES_MAX);
  last = status;
  heardAt = Date.now();
  byId("figures").hidden = false;
  show(status);
}

/** The line at the top: how the worker is, and how long ago that was said. */
function showState() {
  const ageMs = Date.now() - heardAt;
  const gone = last !== null && ageMs > STALE_MS;
  document.body.classList.toggle("is-stale", gone);
  const [kind, text, detail] = gone ? lost() : last === null ? unheard() : state(last);
  byId("banner").className = `banner ${kind}`;
  setText(byId("state"), text);
  setText(byId("detail"), detail);
  byId("detail").hidden = detail === "";
  setText(byId("heard"), last === null ? "" : `Last heard ${wholeSeconds(ageMs)} ago`);
}

/** @returns {[string, string, string]} */
function lost() {
  const at = last === null ? "" : clock(last.now_ms);
  return ["bad", "The worker does not answer", `${why} All figures below are of ${at}, and may no longer hold. Asking again.`];
}

/** @returns {[string, string, string]} */
function unheard() {
  if (failures === 0) return ["wait", "Waiting for the worker's first answer", ""];
  return ["bad", "The worker does not answer", `${why} Asking again.`];
}

/** @param {Status} status @returns {[string, string, string]} */
function state({ components, partitions }) {
  const troubles = Object.entries(components)
    .filter(([name, said]) => said !== "ok" && !name.startsWith("partition-"))
    .map(([name, said]) => `${name}: ${said}`);
  const waiting = partitions.filter((each) => !decides(each));
  if (troubles.length > 0) return ["wait", "Not ready", `${troubles.join("; ")}.`];
  if (partitions.length === 0) {
    return ["wait", "Ready, without a partition", "Other workers of the group have them all."];
  }
  if (waiting.length === 0) {
    return ["good", `Deciding on ${counted(partitions.length, "partition", "partitions")}`, ""];
  }
  const numbers = waiting.map(({ partition }) => partition).join(", ");
  return ["wait", `${partitions.length - waiting.length} of ${partitions.length} partitions decide`, `Waiting: ${numbers}. The reasons are in the table of partitions. What waits is not forwarded.`];
}

/** @param {Partition} partition */
function decides({ phase, consent_staleness_seconds }) {
  return phase === "ready" && consent_staleness_seconds < STALE_VIEW_SECONDS;
}

/** @param {Status} status */
function show(status) {
  setText(
    byId("whose"),
    `Group ${status.group}, content topic ${status.content_topic}. Version ${status.version}, up for ${span(status.now_ms - status.started_ms)}.`,
  );
  showTiles(status);
  showCharts();
  partitionTable.setRows(status.partitions.map(partitionRow));
  showOutcomes(status);
  showPolicy(status);
  showOnce(status);
}

/** @param {Status} status */
function showTiles({ partitions, totals, withdrawals }) {
  const rates = perSecond();
  const now = rates.at(-1) ?? null;
  const lagRecords = partitions.reduce((sum, each) => sum + each.lag_records, 0);
  const lagSeconds = Math.max(0, ...partitions.map((each) => each.lag_seconds));
  const deciding = partitions.filter(decides);
  const ages = deciding.map((each) => each.consent_staleness_seconds);
  const effect = withdrawals.effect_ms;
  setTiles(byId("tiles"), [
    ["Throughput", now === null ? "–" : rate(now.all), "records decided, now"],
    ["Lag", counted(lagRecords, "record", "records"), lagRecords === 0 ? "nothing waits" : `last decided ${span(Math.round(lagSeconds * 1000))} old`],
    ["Consent view", ages.length === 0 ? "–" : `${span(Math.round(Math.max(...ages) * 1000))}`, ages.length === 0 ? "no partition decides" : "old at most"],
    ["Withdrawal effect", effect.p50 === null ? "–" : span(effect.p50), effect.max === null ? "none since the start" : `median; at most ${span(effect.max)}, of the last ${withdrawals.recent}`],
    ["Partitions", `${deciding.length} of ${partitions.length}`, "decide now"],
    ["Forwarded", percent(totals.forwarded, totals.in), `${short(totals.forwarded)} of ${short(totals.in)}`],
  ]);
}

/** Records per second between samples, smoothed over a few. */
function perSecond() {
  return samples.slice(1).map((sample, i) => {
    const before = /** @type {Sample} */ (samples[Math.max(0, i + 1 - RATE_SAMPLES)]);
    const seconds = (sample.at_ms - before.at_ms) / 1000;
    const per = (/** @type {"forwarded" | "withheld" | "quarantined"} */ name) =>
      (sample[name] - before[name]) / seconds;
    const [forwarded, withheld, quarantined] = [per("forwarded"), per("withheld"), per("quarantined")];
    return { at_ms: sample.at_ms, all: forwarded + withheld + quarantined, forwarded, withheld, quarantined };
  });
}

function showCharts() {
  const rates = perSecond();
  const now = rates.at(-1);
  flow.set(
    { xs: rates.map((each) => each.at_ms), ys: [rates.map((each) => each.forwarded), rates.map((each) => each.withheld), rates.map((each) => each.quarantined)] },
    now === undefined ? "" : `Now ${rate(now.forwarded)} forwarded, ${rate(now.withheld)} withheld, ${rate(now.quarantined)} quarantined.`,
  );
  const xs = samples.map((each) => each.at_ms);
  const lags = samples.map((each) => each.lag_records);
  lag.set({ xs, ys: [lags] }, `Now ${short(lags.at(-1) ?? 0)}, at most ${short(Math.max(0, ...lags))}.`);
  const ages = samples.map((each) => each.consent_staleness_seconds);
  const known = ages.filter((each) => each !== null);
  age.set({ xs, ys: [ages] }, known.length === 0 ? "Not known." : `At most ${span(Math.round(1000 * Math.max(...known)))}.`);
}

/** When the rules came into force that are in force, where they were not always. @returns {import("./chart.js").Mark[]} */
function changes() {
  /** @type {Map<number, string[]>} */
  const found = new Map();
  for (const { jurisdictions, basis, from_ms } of last?.policy.in_force ?? []) {
    if (from_ms === null) continue;
    const where = jurisdictions.length > 3 ? `${jurisdictions.length} jurisdictions` : jurisdictions.join(", ");
    found.set(from_ms, [...(found.get(from_ms) ?? []), `${where}: ${basis ?? "no rule"}`]);
  }
  return [...found].map(([at_ms, texts]) => ({ at_ms, text: texts.join("; ") }));
}

/** @param {Partition} each @returns {Cell[]} */
function partitionRow(each) {
  const knows = ["ready", "stalled"].includes(each.phase);
  const kind = decides(each) ? "good" : each.phase === "stalled" || each.phase === "recycling" ? "bad" : "wait";
  const viewAge = span(Math.round(each.consent_staleness_seconds * 1000));
  const stale = each.phase === "ready" && kind !== "good" ? `the consent view is ${viewAge} old` : "";
  return [
    String(each.partition),
    { text: PHASES[each.phase] ?? each.phase, mark: kind, note: each.why ?? stale },
    count(each.lag_records),
    each.lag_records === 0 ? "–" : span(Math.round(each.lag_seconds * 1000)),
    knows ? viewAge : "–",
    count(each.next_offset),
  ];
}

/** @param {Status} status */
function showOutcomes({ outcomes, totals }) {
  const order = Object.keys(REASONS);
  const sorted = outcomes
    .filter((each) => each.count > 0)
    .sort((a, b) => order.indexOf(a.reason) - order.indexOf(b.reason) || b.count - a.count);
  outcomeTable.setRows(
    sorted.map((each) => [
      { text: VERDICTS[each.verdict] ?? each.verdict, mark: each.verdict },
      { text: each.reason, note: REASONS[each.reason] ?? "" },
      place(each.jurisdiction),
      count(each.count),
      { text: percent(each.count, totals.in), share: each.count / Math.max(1, totals.in) },
    ]),
  );
}

/** @param {Status} status */
function showPolicy({ policy, version }) {
  setFacts(byId("policy"), [
    ["Name", policy.name],
    ["Hash", shortHash(policy.hash)],
    ["Purpose", policy.purpose],
    ["Decided by", `consentgate ${version}`],
  ]);
  inForceTable.setRows(
    policy.in_force.map(({ jurisdictions, basis, from_ms, until_ms }) => [
      jurisdictions.map(place).join(", "),
      { text: basis ?? "no rule", note: basis === null ? "nothing goes on" : BASES[basis] ?? "" },
      from_ms === null ? "always" : moment(from_ms),
      until_ms === null ? "further notice" : moment(until_ms),
    ]),
  );
}

/** @param {Status} status */
function showOnce({ totals, transactions, stalls, rebalances, consent }) {
  const decided = totals.forwarded + totals.withheld + totals.quarantined;
  setFacts(byId("once"), [
    ["Records in", count(totals.in)],
    ["Outcomes", `${count(decided)}${decided === totals.in ? ": each record has one" : ": they do not add up"}`],
    ["Transactions committed", count(transactions.committed)],
    ["Aborted, decided anew", count(transactions.aborted)],
    ["Given up with their producer", count(transactions.recycled)],
    ["Stalls", count(stalls)],
    ["Assignments from the group", count(rebalances)],
    ["Consent records not trusted", count(consent.unreadable)],
    ["Consent records in the wrong partition", count(consent.misplaced)],
  ]);
}

start();
