// Stacked bars over time, drawn by uPlot (vendor/uplot), with the same numbers as a table for who cannot see them.

import { t } from "./i18n.js";
import { make, step, tick } from "./text.js";

let loading = null;

/** uPlot, fetched when it is first needed. */
function library() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "vendor/uplot/uPlot.iife.min.js";
    script.addEventListener("load", () => resolve(globalThis.uPlot));
    script.addEventListener("error", () => reject(new Error("uPlot is missing")));
    document.head.append(script);
  });
  return loading;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * Draw counts over time into a container; what was there before goes.
 * @param {{label: string, colour: string, counts: number[]}[]} series from the bottom of the stack to its top
 * @param {Date[]} times the beginning of each step
 */
export async function stackedBars(container, { times, stepSeconds, series, label }) {
  const Plot = await library();
  container.plot?.destroy();
  container.observer?.disconnect();
  container.replaceChildren();
  const tops = series.map((_, index) =>
    times.map((_, at) => series.slice(0, index + 1).reduce((sum, { counts }) => sum + counts[at], 0)));
  const grid = { stroke: colour("line"), width: 1 };
  const axis = { stroke: colour("faint"), grid, ticks: { stroke: colour("line"), width: 1, size: 5 }, font: "11px system-ui, sans-serif" };
  const seconds = times.map((at) => at.getTime() / 1000);
  const bars = Plot.paths.bars({ size: [0.82, 60], align: 1 });
  const options = {
    width: Math.max(260, container.clientWidth), height: 210,
    padding: [8, 8, 0, 0],
    cursor: { y: false, points: { show: false } },
    legend: { live: true },
    scales: {
      x: { range: [seconds[0], seconds.at(-1) + stepSeconds] },
      y: { range: (_, __, most) => [0, Math.max(4, Math.ceil(most * 1.1))] },
    },
    axes: [
      { ...axis, grid: { show: false }, space: 70, values: (_, ticks) => ticks.map((at) => tick(new Date(at * 1000))) },
      { ...axis, size: 50, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000] },
    ],
    // the tallest first, so that the lower parts of the stack are drawn over it
    series: [
      { label: t("table.time"), value: (_, at) => (at == null ? "–" : step(new Date(at * 1000))) },
      ...series.map((_, index) => series.length - 1 - index).map((index) => ({
        label: series[index].label, fill: colour(series[index].colour), stroke: colour("panel"), width: 1, paths: bars,
        points: { show: false }, value: (_, __, ___, at) => (at == null ? "–" : String(series[index].counts[at])),
      })),
    ],
  };
  const holder = make("div", "plot");
  holder.setAttribute("role", "img");
  const sums = series.map(({ label: name, counts }) => `${name} ${counts.reduce((sum, count) => sum + count, 0)}`);
  holder.setAttribute("aria-label", `${label}: ${sums.join(", ")}`);
  container.append(holder, table(times, series));
  container.plot = new Plot(options, [seconds, ...tops.toReversed()], holder);
  container.observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== container.plot.width) container.plot.setSize({ width, height: options.height });
  });
  container.observer.observe(container);
}

function table(times, series) {
  const details = make("details");
  details.append(make("summary", "", t("table.show")));
  const head = [t("table.time"), ...series.map(({ label }) => label)];
  const rows = times.map((at, index) => [step(at), ...series.map(({ counts }) => String(counts[index]))])
    .filter((row) => row.slice(1).some((count) => count !== "0"));
  details.append(tableOf(head, rows));
  return details;
}

/** A table of texts; all columns but the first are numbers. */
export function tableOf(head, rows) {
  const element = make("table");
  const headRow = element.createTHead().insertRow();
  for (const text of head) {
    const cell = make("th", "", text);
    cell.scope = "col";
    headRow.append(cell);
  }
  const body = element.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((text, index) => {
      const cell = index ? line.insertCell() : make("th");
      if (!index) {
        cell.scope = "row";
        line.append(cell);
      }
      if (text instanceof Node) cell.append(text);
      else cell.textContent = text;
    });
  }
  return element;
}
