/** The report page: what the ledger comes to, by jurisdiction, reason and time. */

import { figure, preparePrinting } from "./chart.js";
import { byId, details, h, keeping, setFacts, setText, setTiles, table } from "./dom.js";
import { getJson } from "./fetching.js";
import { count, counted, moment, percent, short, shortHash, span } from "./format.js";
import { BASES, REASONS, VERDICTS, place } from "./words.js";
import { byCount, changes, changesBeside, jurisdictions, merged, rangeOf, sizeFor, steps, stretches, sum } from "./windows.js";

/** @typedef {import("./windows.js").Outcome} Outcome */
/** @typedef {import("./windows.js").Window} Window */
/** @typedef {import("./windows.js").Range} Range */
/** @typedef {import("./chart.js").Series} Series */
/** @typedef {{partition: number, ledger_offset: number, ledger_time_ms: number, hash: string}} Position */
/** @typedef {{partition: number, offset: number}} RetractionPosition */
/** @typedef {{in: number, forwarded: number, withheld: number, quarantined: number}} Totals */

/**
 * What `api/totals` answers.
 * @typedef {object} Report
 * @property {number} generated_at_ms
 * @property {Position[]} through
 * @property {RetractionPosition[]} retractions_through
 * @property {string} counting
 * @property {Totals} totals
 * @property {Outcome[]} outcomes
 * @property {import("./windows.js").Withdrawals} withdrawals
 * @property {{state: string, entries: number, problems: string[]}} chain
 * @property {import("./windows.js").Policy[]} policies
 */

/** What `api/windows` answers. @typedef {{size_ms: number, through: Position[], retractions_through: RetractionPosition[], windows: Window[]}} Windows */

/** What is asked for; it stands in the URL, but for a `size` that nobody has chosen. @typedef {{size: string, jurisdiction: string, from: string, until: string}} Filters */

const DAY_MS = 86_400_000;
const FOLLOW_MS = 5_000;
const FAILED_MS_MAX = 30_000;
const REASONS_MAX = 5;
const DASHES = [[], [8, 4], [2, 3], [12, 3, 2, 3], [5, 5], [1, 5]];
const PLACES_MAX = 12;

const VERDICT_SERIES = [
  { name: "forwarded", color: "--forward", pattern: /** @type {const} */ ("plain") },
  { name: "withheld", color: "--withhold", pattern: /** @type {const} */ ("hatched") },
  { name: "quarantined", color: "--quarantine", pattern: /** @type {const} */ ("dotted") },
];

/** What all charts share: a value holds for its window, and they show the same moment. */
const OVER_TIME = { stepped: true, days: true, sync: "report" };

/** The charts that are shown. @type {{destroy: () => void}[]} */
let charts = [];

/** Answers to later questions count, those to earlier ones do not. */
let question = 0;
/** The filters for which an answer is awaited, as they stand in the URL. @type {string | null} */
let awaited = null;
/** For which filters and up to which positions figures are drawn. */
let drawn = "";
/** When the figures that are shown were last told. @type {number | null} */
let toldMs = null;
let failures = 0;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

function start() {
  showFilters(filters());
  byId("filters").addEventListener("change", () => {
    keepFilters();
    ask();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("reload").addEventListener("click", ask);
  addEventListener("popstate", () => {
    showFilters(filters());
    ask();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else if (awaited === null) void load();
  });
  preparePrinting();
  ask();
}

/** @returns {Filters} */
function filters() {
  const asked = new URLSearchParams(location.search);
  const date = (/** @type {string} */ name) => {
    const text = asked.get(name) ?? "";
    return Number.isNaN(Date.parse(text)) ? "" : text;
  };
  const size = asked.get("size") ?? "";
  return {
    size: ["minute", "hour", "day"].includes(size) ? size : "",
    jurisdiction: asked.get("jurisdiction") ?? "",
    from: date("from"),
    until: date("until"),
  };
}

/** @param {string} id */
const input = (id) => /** @type {HTMLInputElement | HTMLSelectElement} */ (byId(id));

/** @param {Filters} asked */
function showFilters(asked) {
  if (asked.size !== "") input("size").value = asked.size;
  input("from").value = asked.from;
  input("until").value = asked.until;
  showJurisdictions([], asked.jurisdiction);
}

/** @param {string[]} labels @param {string} chosen */
function showJurisdictions(labels, chosen) {
  const all = labels.includes(chosen) || chosen === "" ? labels : [chosen, ...labels];
  const select = /** @type {HTMLSelectElement} */ (byId("jurisdiction"));
  // A list that somebody has open is not to be taken from under the pointer.
  if ([...select.options].map(({ value }) => value).join("\n") !== ["", ...all].join("\n")) {
    const options = all.map((each) => h("option", { value: each }, place(each)));
    select.replaceChildren(h("option", { value: "" }, "all"), ...options);
  }
  select.value = chosen;
}

/** Put the filters into the URL, so that it leads others to what is seen here. */
function keepFilters() {
  const kept = new URLSearchParams();
  for (const name of ["jurisdiction", "size", "from", "until"]) {
    if (input(name).value !== "") kept.set(name, input(name).value);
  }
  history.pushState(null, "", `?${kept}`);
}

/** @param {Filters} asked */
function windowsUrl({ size, from, until }) {
  const query = new URLSearchParams({ size });
  if (from !== "") query.set("from_ms", String(Date.parse(from)));
  if (until !== "") query.set("until_ms", String(Date.parse(until) + DAY_MS));
  return `api/windows?${query}`;
}

/** Load what somebody has asked for, and draw it whatever is drawn. */
function ask() {
  drawn = "";
  byId("figures").setAttribute("aria-busy", "true");
  if (awaited !== location.search) void load();
}

/** Load the figures, now and then again, and draw them where they go further than what is drawn. */
async function load() {
  clearTimeout(timer);
  const own = ++question;
  awaited = location.search;
  try {
    await loadOnce(own, filters());
    if (own === question) failures = 0;
  } catch (error) {
    if (own !== question) return;
    failures += 1;
    sayFailed(error instanceof Error ? error.message : String(error));
  }
  if (own !== question) return;
  awaited = null;
  document.body.classList.toggle("is-stale", failures > 0 && toldMs !== null);
  byId("figures").removeAttribute("aria-busy");
  // Who does not look asks nothing, until the page is looked at again.
  if (!document.hidden) timer = setTimeout(load, Math.min(FOLLOW_MS * 2 ** Math.max(0, failures - 1), FAILED_MS_MAX));
}

/** @param {number} own @param {Filters} asked */
async function loadOnce(own, asked) {
  /** @type {Report} */
  const report = await getJson("api/totals");
  const sized = { ...asked, size: asked.size === "" ? sizeFor(report) : asked.size };
  const found = keyOf(report, sized);
  const windows = found === drawn ? null : await getJson(windowsUrl(sized));
  if (own !== question) return;
  if (windows !== null) {
    keeping(byId("shown"), () => show(report, windows, sized));
    drawn = found;
  }
  toldMs = report.generated_at_ms;
  sayChain(report);
}

/** What figures are drawn from; a change of the policy comes without a record, too. @param {Report} report @param {Filters} asked */
function keyOf({ through, retractions_through, policies, generated_at_ms }, asked) {
  const toCome = changes(policies).filter((each) => each.at_ms > generated_at_ms).length;
  return JSON.stringify([asked, through, retractions_through, toCome]);
}

/** @param {string} why */
function sayFailed(why) {
  const shown = toldMs === null ? "" : ` What is below is of ${moment(toldMs)}, and may no longer hold.`;
  say("bad", "The figures could not be loaded", `${why}${shown} Asking again.`);
}

/** @param {string} kind @param {string} text @param {string} detail */
function say(kind, text, detail) {
  byId("banner").className = `banner ${kind}`;
  setText(byId("state"), text);
  setText(byId("detail"), detail);
  byId("detail").hidden = detail === "";
}

/** @param {Report} report @param {Windows} answer @param {Filters} asked */
function show(report, answer, asked) {
  for (const chart of charts) chart.destroy();
  charts = [];
  input("size").value = asked.size;
  byId("csv").setAttribute("href", `api/outcomes.csv?size=${asked.size}`);
  byId("windows").setAttribute("href", windowsUrl(asked));
  showJurisdictions(jurisdictions(report.outcomes, report.policies), asked.jurisdiction);
  byId("shown").hidden = false;
  showTotals(report, asked);
  showTime(report, answer, asked);
  showPlaces(report, answer, asked);
  showReasons(report, answer, asked);
  showWithdrawals(report, answer);
  showLedger(report);
}

/** @param {Report} report */
function sayChain({ chain, through, generated_at_ms, counting }) {
  const newest_ms = Math.max(...through.map((each) => each.ledger_time_ms));
  const upTo = through.length === 0 ? "" : `, up to the entry of ${moment(newest_ms)}`;
  setText(byId("heard"), `Told ${moment(generated_at_ms)}${upTo}`);
  if (counting !== "ok" && chain.state !== "broken") return say("wait", "The figures stand still", `What is decided now is not counted: ${counting}. What is below holds${upTo === "" ? "" : upTo.slice(1)}.`);
  if (through.length === 0) return say("wait", "The ledger is empty", "Nothing has been decided yet.");
  if (chain.state === "broken") return say("bad", "The ledger does not hold together", "An entry was changed, taken out or added. The problems are listed under The ledger; do not rely on the figures.");
  if (chain.state === "verified") return say("good", "The ledger holds together", `${counted(chain.entries, "entry", "entries")} checked.`);
  return say("wait", "The ledger could not be checked from its first entry", chain.problems.join("; "));
}

/** @param {Filters} asked @returns {(outcome: Outcome) => boolean} */
function fitting({ jurisdiction }) {
  return (each) => jurisdiction === "" || each.jurisdiction === jurisdiction;
}

/** Records by verdict, of the outcomes that fit. @param {Outcome[]} outcomes @param {(outcome: Outcome) => boolean} fits */
function byVerdict(outcomes, fits) {
  return ["forward", "withhold", "quarantine"].map((verdict) =>
    sum(outcomes, (each) => each.verdict === verdict && fits(each)),
  );
}

/** @param {Report} report @param {Filters} asked */
function showTotals({ outcomes, withdrawals, through, retractions_through }, asked) {
  const [forwarded = 0, withheld = 0, quarantined = 0] = byVerdict(outcomes, fitting(asked));
  const all = forwarded + withheld + quarantined;
  setText(byId("totals-lead"), asked.jurisdiction === "" ? "All jurisdictions together. Every record that came in has one outcome." : `Only ${place(asked.jurisdiction)}. Every record that came in has one outcome.`);
  setTiles(byId("tiles"), [
    ["Came in", short(all), counted(all, "record", "records")],
    ["Forwarded", short(forwarded), `${percent(forwarded, all)} of what came in`],
    ["Withheld", short(withheld), `${percent(withheld, all)} of what came in`],
    ["Quarantined", short(quarantined), `${percent(quarantined, all)} of what came in`],
    ["Withdrawals", short(withdrawals.count), withdrawals.effect_ms.p50 === null ? "in all jurisdictions" : `in all jurisdictions, in effect after ${span(withdrawals.effect_ms.p50)} (median)`],
  ]);
  computedFrom("totals-basis", positionTable("Totals", through), retractionTable("Withdrawals in all", retractions_through));
}

/** Say on which positions a part of the page rests. @param {string} id @param {...HTMLElement} tables */
function computedFrom(id, ...tables) {
  const { element } = details("Computed from these positions", () => h("div", {}, ...tables));
  byId(id).replaceChildren(element);
}

/** Each once, where two answers name the same. @template T @param {T[]} positions @returns {T[]} */
const distinct = (positions) => [...new Map(positions.map((each) => [JSON.stringify(each), each])).values()];

/** @param {string} what @param {Position[]} through */
function positionTable(what, through) {
  const rows = through.map((each) => [
    String(each.partition), count(each.ledger_offset), moment(each.ledger_time_ms), each.hash,
  ]);
  return table(`${what}: up to and with these ledger entries`, ["input partition", "#ledger offset", "written", "hash"], rows).element;
}

/** @param {string} what @param {RetractionPosition[]} through */
function retractionTable(what, through) {
  const rows = through.map((each) => [String(each.partition), count(each.offset)]);
  return table(`${what}: up to and with these retractions`, ["partition of the retractions", "#offset"], rows).element;
}

/** Draw a chart of windows. @param {import("./chart.js").Chart} chart @param {Windows} answer @param {(window: Window) => (number | null)[]} pick @param {string} inWords @param {{empty?: number | null, above?: Node[]}} [more] */
function windowed(chart, answer, pick, inWords, { empty = 0, above = [] } = {}) {
  const range = rangeOf(answer.windows, answer.size_ms);
  const drawn = figure({ ...OVER_TIME, range: () => range, ...chart }, ...above);
  const nothing = { xs: [], ys: chart.series.map(() => []) };
  drawn.set(range === null ? nothing : steps(answer.windows, answer.size_ms, range, pick, empty), inWords);
  charts.push(drawn);
  return drawn.element;
}

/** @param {Report} report @param {Windows} answer @param {Filters} asked */
function showTime({ policies, generated_at_ms }, answer, asked) {
  const range = rangeOf(answer.windows, answer.size_ms);
  const fits = fitting(asked);
  const sums = byVerdict(answer.windows.flatMap(({ outcomes }) => outcomes), fits);
  const inWords = `${counted(sums[0] ?? 0, "record", "records")} forwarded, ${count(sums[1] ?? 0)} withheld and ${count(sums[2] ?? 0)} quarantined`;
  setText(byId("time-lead"), range === null ? "Nothing was decided in this time." : `From ${moment(range[0])} to ${moment(range[1])}: ${inWords}.`);
  const strip = range === null ? [] : [courses(policies, asked, range)];
  byId("time").replaceChildren(
    windowed(
      { title: `Records per ${asked.size}, below the policy in force`, series: VERDICT_SERIES, format: count, whole: true, axis: short, stacked: true, heightPx: 260 },
      answer, (window) => byVerdict(window.outcomes, fits), `${inWords}.`, { above: strip },
    ),
  );
  const concerns = (/** @type {import("./windows.js").Change} */ each) => asked.jurisdiction === "" || each.jurisdiction === asked.jurisdiction;
  const listed = [
    ...changes(policies).filter(concerns).map((each) => changeItem(each, each.at_ms > generated_at_ms ? ", still to come" : "")),
    ...changesBeside(policies).filter(concerns).map((each) => changeItem(each, ", in the configured policy, of which it is not known that it decided")),
  ];
  byId("changes").replaceChildren(...(listed.length === 0 ? [h("li", {}, "None.")] : listed));
  computedFrom("time-basis", positionTable("Over time", answer.through));
}

/** @param {import("./windows.js").Change} change @param {string} more */
function changeItem({ at_ms, jurisdiction, label, basis_before, basis_after }, more) {
  const where = label === "" || label === jurisdiction || jurisdiction === "*" ? place(jurisdiction) : `${jurisdiction} (${label})`;
  const means = BASES[basis_after ?? ""] ?? "nothing goes on";
  return h("li", {}, h("time", { datetime: new Date(at_ms).toISOString() }, moment(at_ms)), `: ${where}, from ${named(basis_before)} to `, h("strong", {}, named(basis_after)), ` (${means})${more}`);
}

/** @param {string | null} basis */
const named = (basis) => basis ?? "no rule";

/** Rows above a chart: which basis held when. The list of changes says the same in words. @param {import("./windows.js").Policy[]} policies @param {Filters} asked @param {Range} range */
function courses(policies, asked, range) {
  const labels = asked.jurisdiction === "" ? jurisdictions([], policies) : [asked.jurisdiction];
  const rows = labels
    .map((label) => ({ label, own: stretches(policies, label, range) }))
    .filter(({ own }) => own.length > 0)
    .map(({ label, own }) => h("div", { class: "course" }, h("span", { class: "label", title: label }, label), h("div", { class: "track" }, ...own.map((each) => stretch(each, range)))));
  return h("div", { class: "courses", "aria-hidden": "true" }, ...rows);
}

/** @param {import("./windows.js").Stretch} stretch @param {Range} range */
function stretch({ from_ms, until_ms, basis }, [start, end]) {
  const known = basis !== null && basis in BASES ? basis : "";
  const element = h("span", { class: `stretch ${known}${from_ms === start ? " first" : ""}`, title: named(basis) }, named(basis));
  element.style.left = `${(100 * (from_ms - start)) / (end - start)}%`;
  element.style.width = `${(100 * (until_ms - from_ms)) / (end - start)}%`;
  return element;
}

/** @param {Report} report @param {Windows} answer @param {Filters} asked */
function showPlaces({ policies }, answer, asked) {
  const inWindows = answer.windows.flatMap(({ outcomes }) => outcomes).filter(fitting(asked));
  const labels = byCount(inWindows, (each) => each.jurisdiction);
  const more = labels.length > PLACES_MAX ? [h("p", { class: "empty" }, `And ${labels.length - PLACES_MAX} with fewer records: choose one above.`)] : [];
  byId("places").replaceChildren(...labels.slice(0, PLACES_MAX).map((label) => placeFigure(label, policies, answer)), ...more);
  computedFrom("places-basis", positionTable("By jurisdiction", answer.through));
}

/** @param {string} label @param {import("./windows.js").Policy[]} policies @param {Windows} answer */
function placeFigure(label, policies, answer) {
  const own = (/** @type {Outcome} */ each) => each.jurisdiction === label;
  const marks = changes(policies)
    .filter((each) => each.jurisdiction === label)
    .map((each) => ({ at_ms: each.at_ms, text: named(each.basis_after) }));
  const pick = (/** @type {Window} */ { outcomes }) => [sum(outcomes, own), sum(outcomes, (each) => own(each) && each.verdict === "forward")];
  const all = answer.windows.map(pick);
  const [cameIn, forwarded] = [0, 1].map((i) => all.reduce((total, each) => total + (each[i] ?? 0), 0));
  const changed = marks.map(({ at_ms, text }) => ` From ${moment(at_ms)}: ${text}.`).join("");
  return windowed(
    {
      title: place(label),
      series: [
        { name: "came in", color: "--plain", dash: [3, 3] },
        { name: "forwarded", color: "--forward", pattern: "plain" },
      ],
      format: count,
      whole: true,
      axis: short,
      marks: () => marks,
    },
    answer, pick, `${count(cameIn ?? 0)} came in, ${count(forwarded ?? 0)} were forwarded.${changed}`,
  );
}

/** @param {Report} report @param {Windows} answer @param {Filters} asked */
function showReasons({ outcomes, through }, answer, asked) {
  const fits = (/** @type {Outcome} */ each) => each.verdict !== "forward" && fitting(asked)(each);
  const inWindows = answer.windows.flatMap((window) => window.outcomes).filter(fits);
  const reasons = byCount(inWindows, (each) => each.reason);
  const shown = reasons.slice(0, REASONS_MAX);
  const series = shown.map((name, i) => ({ name, color: `--r${i + 1}`, dash: DASHES[i] ?? [] }));
  const others = reasons.length > REASONS_MAX ? [{ name: "other reasons", color: "--r6", dash: DASHES[5] ?? [] }] : [];
  const pick = (/** @type {Window} */ window) => [
    ...shown.map((reason) => sum(window.outcomes, (each) => fits(each) && each.reason === reason)),
    ...others.map(() => sum(window.outcomes, (each) => fits(each) && !shown.includes(each.reason))),
  ];
  const inWords = shown.map((reason) => `${reason}: ${count(sum(inWindows, (each) => each.reason === reason))}`).join(", ");
  byId("reasons").replaceChildren(
    windowed({ title: `What was not forwarded, per ${asked.size}`, series: [...series, ...others], format: count, whole: true, axis: short }, answer, pick, `${inWords}.`),
  );
  byId("outcomes").replaceChildren(outcomeTable(outcomes.filter(fitting(asked))));
  computedFrom("reasons-basis", positionTable("By reason", distinct([...through, ...answer.through])));
}

/** @param {Outcome[]} outcomes */
function outcomeTable(outcomes) {
  const all = sum(outcomes, () => true);
  const order = Object.keys(REASONS);
  const rows = merged(outcomes)
    .sort((a, b) => order.indexOf(a.reason) - order.indexOf(b.reason) || b.count - a.count)
    .map((each) => [
      { text: VERDICTS[each.verdict] ?? each.verdict, mark: each.verdict },
      { text: each.reason, note: REASONS[each.reason] ?? "" },
      place(each.jurisdiction),
      count(each.count),
      { text: percent(each.count, all), share: each.count / Math.max(1, all) },
    ]);
  return table("All outcomes since the ledger began", ["outcome", "reason", "jurisdiction", "#records", "#share"], rows).element;
}

/** @param {Report} report @param {Windows} answer */
function showWithdrawals({ withdrawals, retractions_through }, answer) {
  const { count: number, effect_ms, retracted_records } = withdrawals;
  setTiles(byId("withdrawal-tiles"), [
    ["Withdrawals", short(number), "consent that ended"],
    ["Median", span(effect_ms.p50), "until in effect"],
    ["95 of 100", span(effect_ms.p95), "in effect within"],
    ["Longest", span(effect_ms.max), "until in effect"],
    ["Retracted", short(retracted_records), "retractions sent"],
  ]);
  const numbers = windowed(
    { title: "Withdrawals and retractions", series: [{ name: "withdrawals", color: "--quarantine", pattern: "dotted" }, { name: "retracted", color: "--plain", dash: [3, 3] }], format: count, whole: true, axis: short },
    answer, (window) => [window.withdrawals.count, window.withdrawals.retracted_records], `${count(number)} withdrawals, ${count(retracted_records)} retractions.`,
  );
  const effects = windowed(
    { title: "Time until effect", series: [{ name: "median", color: "--good" }, { name: "longest", color: "--withhold", dash: [6, 4] }], format: (ms) => span(Math.round(ms)) },
    answer, ({ withdrawals: { effect_ms: effect } }) => [effect.p50, effect.max], `Median ${span(effect_ms.p50)}, at most ${span(effect_ms.max)}.`, { empty: null },
  );
  byId("withdrawals").replaceChildren(numbers, effects);
  computedFrom("withdrawals-basis", retractionTable("Withdrawals", distinct([...retractions_through, ...answer.retractions_through])));
}

/** @param {Report} report */
function showLedger({ chain, policies, through }) {
  /** @type {Record<string, string>} */
  const states = { verified: "verified: every entry follows from the one before", broken: "broken", unknown: "not checked from its first entry" };
  setFacts(byId("chain"), [
    ["Chain of hashes", states[chain.state] ?? chain.state],
    ["Entries", count(chain.entries)],
  ]);
  byId("problems").replaceChildren(...chain.problems.map((problem) => h("li", {}, problem)));
  const rows = policies.map(({ name, hash, first_seen_ms }) => [
    name, hash === null ? "not known here" : shortHash(hash), first_seen_ms !== null ? moment(first_seen_ms) : hash === null ? "not known here" : "not yet",
  ]);
  byId("policies").replaceChildren(table("Policies that decided, and the configured one", ["policy", "hash", "first seen"], rows).element);
  byId("positions").replaceChildren(positionTable("The ledger", through));
}

start();
