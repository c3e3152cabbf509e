/** Charts over time, by uPlot: colours from the style sheet, a legend of text, room for a table. */

import { details, h, setText, svg, table } from "./dom.js";
import { clock, moment, tick } from "./format.js";

/**
 * One line, or one layer of a stack. `dash` and `pattern` tell it apart where colours do not.
 * @typedef {object} Series
 * @property {string} name
 * @property {string} color A custom property of the style sheet.
 * @property {number[]} [dash]
 * @property {"plain" | "hatched" | "dotted"} [pattern] How what is below it is filled, if it is.
 */

/**
 * @typedef {object} Chart
 * @property {string} title
 * @property {string} [note]
 * @property {Series[]} series
 * @property {(value: number) => string} format Of values, in the legend and in the table.
 * @property {(value: number) => string} [axis] Of values on the axis; `format` where it is not given.
 * @property {boolean} [whole] There are no values between whole numbers, and none on the axis.
 * @property {boolean} [stacked] Each series stands on those before it.
 * @property {boolean} [stepped] A value holds until the next one.
 * @property {number} [heightPx]
 * @property {number} [atLeast] What the axis of values goes up to in any case.
 * @property {string} [sync] Charts of the same name show the same moment under the pointer.
 * @property {boolean} [days] Moments are shown with their day.
 * @property {() => [number, number] | null} [range] Of the axis of time.
 * @property {() => Mark[]} [marks]
 */

/** @typedef {{at_ms: number, text: string}} Mark A moment at which something changed. */
/** @typedef {(number | null)[]} Values */
/** @typedef {{xs: number[], ys: Values[]}} Data Moments in epoch milliseconds, and one row for each series. */

/** The rows of a policy above a chart have the same, in the style sheet. */
const GUTTER_PX = 66;
const MARGIN_PX = 30;

const TABLE_ROWS_MAX = 200;

/** How far apart whole numbers may be on an axis. */
const WHOLE_STEPS = Array.from({ length: 15 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();

/**
 * A figure with a chart in it. `set` shows data, and says in words what they come to.
 * @param {Chart} chart
 * @param {...Node} above What stands between the title and the chart.
 */
export function figure(chart, ...above) {
  const plotted = h("div", { class: "plot", role: "img" });
  // Before it is drawn it takes the same room, so that nothing below moves.
  plotted.style.minHeight = `${heightPx(chart)}px`;
  const keys = legend(chart);
  /** @type {Data} */
  let data = { xs: [], ys: chart.series.map(() => []) };
  const empty = h("p", { class: "empty" }, "Nothing to draw yet.");
  const alternative = details("Show as a table", () => tableOf(chart, data));
  const plot = plotter(chart, plotted, (index) => keys.show(data, index));
  const element = h(
    "figure",
    {},
    h("figcaption", {}, h("h3", {}, chart.title), chart.note ? h("p", {}, chart.note) : null),
    keys.element,
    ...above,
    empty,
    plotted,
    alternative.element,
  );
  const set = (/** @type {Data} */ next, /** @type {string} */ inWords) => {
    data = next;
    const drawable = next.xs.length > 1 && next.ys.some((values) => values.some((y) => y !== null));
    empty.hidden = drawable;
    plotted.hidden = !drawable;
    plotted.setAttribute("aria-label", `${chart.title}. ${inWords}`);
    if (drawable) plot.set(next);
    keys.show(data, null);
    alternative.refresh();
  };
  return { element, set, destroy: plot.destroy };
}

/** The value under the pointer, or else the last one, beside the name of each series. @param {Chart} chart */
function legend(chart) {
  const values = chart.series.map(() => h("span", { class: "value" }));
  const when = h("li", { class: "when" });
  const element = h(
    "ul",
    { class: "legend" },
    ...chart.series.map((series, i) => h("li", {}, swatch(series), `${series.name} `, values[i])),
    when,
  );
  const show = (/** @type {Data} */ { xs, ys }, /** @type {number | null} */ index) => {
    const shown = index ?? valuesOf(chart, xs) - 1;
    values.forEach((value, i) => {
      const y = ys[i]?.[shown];
      setText(value, y === null || y === undefined ? "–" : chart.format(y));
    });
    const at = index === null && !chart.stepped ? undefined : xs[shown];
    setText(when, at === undefined ? "" : timeOf(chart, at));
  };
  return { element, show };
}

/** How many moments have a value of their own: the last step ends with one that repeats it. @param {Chart} chart @param {number[]} xs */
const valuesOf = (chart, xs) => (chart.stepped ? xs.length - 1 : xs.length);

/** @param {Chart} chart @param {number} ms */
const timeOf = (chart, ms) => (chart.days ? moment(ms) : clock(ms));

/** @param {Series} series */
function swatch({ color, dash, pattern }) {
  const line = svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 3 });
  line.setAttribute("stroke-dasharray", (dash ?? []).join(" "));
  const children = pattern
    ? [svg("rect", { class: `fill ${pattern}`, width: 26, height: 10 }), ...over(pattern)]
    : [line];
  const element = svg("svg", { class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true" }, ...children);
  /** @type {SVGElement} */ (element).style.color = `var(${color})`;
  return element;
}

/** What makes a filled swatch hatched or dotted. @param {string} pattern */
function over(pattern) {
  if (pattern === "hatched") {
    return [2, 10, 18, 26].map((x) =>
      svg("line", { class: "ink", x1: x, y1: 10, x2: x + 8 - 10, y2: 0, "stroke-width": 2 }),
    );
  }
  if (pattern === "dotted") {
    return [4, 13, 22].map((x) => svg("circle", { class: "ink", cx: x, cy: 5, r: 2 }));
  }
  return [];
}

/**
 * @param {Chart} chart
 * @param {HTMLElement} host
 * @param {(index: number | null) => void} point
 * @returns {{set: (data: Data) => void, destroy: () => void}}
 */
function plotter(chart, host, point) {
  /** @type {uPlot | null} */
  let plot = null;
  /** @type {Data | null} */
  let data = null;
  const draw = () => {
    if (data === null || host.clientWidth === 0) return;
    plot?.destroy();
    plot = new uPlot(options(chart, host.clientWidth, point), aligned(chart, data), host);
  };
  let widthPx = 0;
  const resized = new ResizeObserver(() => {
    if (host.clientWidth === widthPx) return;
    widthPx = host.clientWidth;
    if (plot === null) draw();
    else plot.setSize({ width: widthPx, height: heightPx(chart) });
  });
  resized.observe(host);
  const shown = new AbortController();
  onLook(draw, shown.signal);
  const set = (/** @type {Data} */ next) => {
    data = next;
    if (plot === null) draw();
    else plot.setData(aligned(chart, next));
  };
  const destroy = () => {
    shown.abort();
    resized.disconnect();
    plot?.destroy();
  };
  return { set, destroy };
}

/** Call when colours change: with the scheme, and for paper. @param {() => void} redraw @param {AbortSignal} signal */
function onLook(redraw, signal) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw, { signal });
  addEventListener("look", redraw, { signal });
}

/** Paper has light colours, and what can be opened is open. */
export function preparePrinting() {
  /** @type {HTMLDetailsElement[]} */
  let opened = [];
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.look = "paper";
    opened = [...document.querySelectorAll("details")].filter(
      (each) => !each.open && each.closest("[data-on-paper]"),
    );
    for (const each of opened) each.open = true;
    dispatchEvent(new Event("look"));
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.look;
    for (const each of opened) each.open = false;
    dispatchEvent(new Event("look"));
  });
}

/** @param {Chart} chart */
const heightPx = (chart) => chart.heightPx ?? 190;

/** What uPlot draws: a stack is drawn as its sums. @param {Chart} chart @param {Data} data */
function aligned(chart, { xs, ys }) {
  if (!chart.stacked) return /** @type {uPlot.AlignedData} */ ([xs, ...ys]);
  const sums = xs.map(() => 0);
  const stacked = ys.map((values) =>
    values.map((value, i) => (value === null ? null : (sums[i] = (sums[i] ?? 0) + value))),
  );
  return /** @type {uPlot.AlignedData} */ ([xs, ...stacked]);
}

/**
 * @param {Chart} chart
 * @param {number} width
 * @param {(index: number | null) => void} point
 * @returns {uPlot.Options}
 */
function options(chart, width, point) {
  const grid = { stroke: color("--grid"), width: 1 };
  const axis = { stroke: color("--muted"), grid, ticks: grid, font: "12px system-ui, sans-serif" };
  const format = chart.axis ?? chart.format;
  return {
    width,
    height: heightPx(chart),
    ms: 1,
    tzDate: (ms) => uPlot.tzDate(new Date(ms), "Etc/UTC"),
    padding: [chart.marks ? 22 : 10, MARGIN_PX, 0, 0],
    legend: { show: false },
    cursor: {
      y: false,
      drag: { x: false, y: false },
      points: { show: !chart.stacked },
      ...(chart.sync ? { sync: { key: chart.sync } } : {}),
    },
    scales: {
      x: { range: (_, min, max) => chart.range?.() ?? [min, max] },
      y: { range: (_, __, max) => [0, Math.max(max * 1.08, chart.atLeast ?? 1)] },
    },
    series: [{}, ...chart.series.map((series) => drawn(chart, series))],
    bands: chart.stacked ? layers(chart) : [],
    axes: [
      { ...axis, size: 32, space: 70, values: (_, at, __, ___, step) => at.map((ms) => tick(ms, step)) },
      { ...axis, ...(chart.whole ? { incrs: WHOLE_STEPS } : {}), size: GUTTER_PX, space: 36, values: (_, at) => at.map((y) => format(y)) },
    ],
    hooks: {
      setCursor: [(u) => point(u.cursor.idx ?? null)],
      draw: [(u) => drawMarks(u, chart.marks?.() ?? [])],
    },
  };
}

/** @param {Chart} chart @param {Series} series @returns {uPlot.Series} */
function drawn(chart, series) {
  return {
    stroke: color(series.color),
    width: 2,
    ...(series.dash ? { dash: series.dash } : {}),
    ...(series.pattern && isLowest(chart, series)
      ? { fill: (u) => filled(u.ctx, color(series.color), series.pattern) }
      : {}),
    ...(chart.stepped ? { paths: uPlot.paths.stepped?.({ align: 1 }) } : {}),
    points: { show: false },
  };
}

/** Whether what it fills goes down to zero. @param {Chart} chart @param {Series} series */
const isLowest = (chart, series) => !chart.stacked || chart.series[0] === series;

/** What lies between each series of a stack and the one below it. @param {Chart} chart @returns {uPlot.Band[]} */
function layers(chart) {
  return chart.series.slice(1).map((series, i) => ({
    series: [i + 2, i + 1],
    fill: (u) => filled(u.ctx, color(series.color), series.pattern),
  }));
}

/**
 * @param {CanvasRenderingContext2D} target
 * @param {string} ink
 * @param {string | undefined} pattern
 * @returns {CanvasPattern | string}
 */
function filled(target, ink, pattern) {
  const scale = devicePixelRatio;
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8 * scale;
  const context = tile.getContext("2d");
  if (context === null) return ink;
  context.scale(scale, scale);
  context.globalAlpha = pattern === "plain" ? 0.35 : 0.16;
  context.fillStyle = context.strokeStyle = ink;
  context.fillRect(0, 0, 8, 8);
  context.globalAlpha = 0.8;
  if (pattern === "hatched") hatch(context);
  if (pattern === "dotted") dot(context);
  return target.createPattern(tile, "repeat") ?? ink;
}

/** @param {CanvasRenderingContext2D} context */
function hatch(context) {
  context.lineWidth = 1.2;
  context.beginPath();
  for (const shift of [-8, 0, 8]) {
    context.moveTo(shift, 8);
    context.lineTo(shift + 8, 0);
  }
  context.stroke();
}

/** @param {CanvasRenderingContext2D} context */
function dot(context) {
  context.beginPath();
  context.arc(4, 4, 1.4, 0, 2 * Math.PI);
  context.fill();
}

/** @param {uPlot} plot @param {Mark[]} marks */
function drawMarks(plot, marks) {
  const { ctx, bbox } = plot;
  const scale = devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = color("--text");
  ctx.font = `600 ${12 * scale}px system-ui, sans-serif`;
  ctx.lineWidth = 1.5 * scale;
  for (const { at_ms, text } of marks) {
    const x = plot.valToPos(at_ms, "x", true);
    if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
    ctx.setLineDash([4 * scale, 3 * scale]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top - 4 * scale);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const before = x > bbox.left + bbox.width / 2;
    ctx.textAlign = before ? "right" : "left";
    ctx.fillText(text, x + (before ? -5 : 5) * scale, bbox.top - 8 * scale);
  }
  ctx.restore();
}

/** @param {string} name A custom property. */
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** @param {Chart} chart @param {Data} data */
function tableOf(chart, { xs, ys }) {
  const end = valuesOf(chart, xs);
  const first = Math.max(0, end - TABLE_ROWS_MAX);
  const rows = xs.slice(first, Math.max(0, end)).map((x, i) => [
    timeOf(chart, x),
    ...ys.map((values) => {
      const y = values[first + i];
      return y === null || y === undefined ? "–" : chart.format(y);
    }),
  ]);
  const columns = ["time", ...chart.series.map(({ name }) => `#${name}`)];
  const note = first === 0 ? "" : `, the last ${TABLE_ROWS_MAX} of ${end} moments`;
  return table(chart.title + note, columns, rows.reverse()).element;
}
