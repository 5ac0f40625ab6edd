// The look back: scenes by level (from the marts), alerts by verdict, cameras by danger and ranked, and how late the stages came.

import { get } from "./api.js";
import { t } from "./i18n.js";
import { stackedBars, tableOf } from "./plots.js";
import { barOf, intervalOf, levelName, make } from "./text.js";

const REFRESH = 30_000;

export class History {
  #timer = 0;
  #asked = 0;

  /** @param {{cameras: () => object[], failed: (message: string) => void}} on */
  constructor(section, on) {
    this.section = section;
    this.on = on;
    const part = (name) => section.querySelector(`#history-${name}`);
    this.parts = Object.fromEntries(["span", "camera", "notice", "scenes", "alerts", "cameras", "junctions", "delays"].map((name) => [name, part(name)]));
    for (const choice of [this.parts.span, this.parts.camera]) choice.addEventListener("change", () => this.load());
  }

  show() {
    const { camera } = this.parts;
    const chosen = camera.value;
    const all = make("option", "", t("history.all"));
    all.value = "";
    camera.replaceChildren(all, ...this.on.cameras().map((status) => {
      const option = make("option", "", status.name);
      option.value = String(status.cameraId);
      return option;
    }));
    camera.value = chosen;
    this.load();
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.load(), REFRESH);
  }

  hide() {
    clearInterval(this.#timer);
  }

  async load() {
    const asked = ++this.#asked;
    const query = new URLSearchParams({ span: this.parts.span.value });
    if (this.parts.camera.value) query.set("camera", this.parts.camera.value);
    try {
      const history = await get(`api/history?${query}`);
      if (asked !== this.#asked) return;
      this.section.setAttribute("aria-busy", "true");
      this.parts.notice.hidden = history.martsBuilt;
      await Promise.all([this.#scenes(history), this.#alerts(history)]);
      this.#cameras(history);
      this.#junctions(history);
      this.#delays(history);
      this.section.setAttribute("aria-busy", "false");
    } catch (error) {
      if (asked === this.#asked) this.on.failed(error.message);
    }
  }

  async #scenes({ since, until, sceneStepSeconds, scenes }) {
    const from = Math.floor(Date.parse(since) / 1000 / 3600) * 3600; // the mart counts whole hours
    await plot(this.parts.scenes, {
      from, until, stepSeconds: sceneStepSeconds, rows: scenes, label: t("history.scenes"),
      parts: ["high", "medium", "low", "none"].map((name) => ({ name, label: levelName(name), colour: name })),
    });
  }

  async #alerts({ since, until, stepSeconds, alerts }) {
    await plot(this.parts.alerts, {
      from: Date.parse(since) / 1000, until, stepSeconds, rows: alerts, label: t("history.alerts"),
      parts: [["acknowledged", "good"], ["unjudged", "accent"], ["rejected", "medium"], ["withdrawn", "none"]]
        .map(([name, colour]) => ({ name, label: t(`history.${name}`), colour })),
    });
  }

  #cameras({ cameras }) {
    if (!cameras.length) {
      this.parts.cameras.replaceChildren(make("p", "empty", t("history.empty")));
      return;
    }
    const rate = (camera) => camera.dangerousScenesPer1000RoadUsers ?? 0;
    const most = Math.max(...cameras.map(rate), 0.001);
    const rows = [...cameras].sort((a, b) => rate(b) - rate(a)).map((camera) => {
      const bar = barOf(rate(camera) / most); // the number stands beside it
      const shown = make("span", "rate");
      shown.append(bar, make("b", "", camera.roadUsers ? rate(camera).toFixed(1) : "–"));
      return [camera.name, shown, String(camera.dangerousScenes), String(camera.roadUsers), String(camera.alerts), String(camera.rejected)];
    });
    this.parts.cameras.replaceChildren(scrolling(tableOf(
      ["table.camera", "table.rate", "table.dangerous", "table.users", "table.alerts", "table.false"].map((name) => t(name)), rows),
    t("history.cameras")));
  }

  #junctions({ junctions, junctionDays }) {
    if (!junctions.length) {
      this.parts.junctions.replaceChildren(make("p", "empty", t("history.empty")));
      return;
    }
    const most = Math.max(...junctions.map(({ upper }) => upper));
    const rows = junctions.map(({ place, name, evidence, dangers, rate, lower, upper }) => {
      const shown = make("span", "rate");
      shown.append(intervalOf(lower / most, rate / most, upper / most), make("b", "", `${rate.toFixed(2)} (${lower.toFixed(2)}–${upper.toFixed(2)})`));
      return [`${place}. ${name}`, shown, String(dangers), t(`evidence.${evidence}`)];
    });
    this.parts.junctions.replaceChildren(
      make("p", "hint", t("history.junctions.days", { days: junctionDays })),
      scrolling(tableOf(["table.camera", "table.rate", "table.alerts", "table.evidence"].map((key) => t(key)), rows), t("history.junctions")));
  }

  #delays({ delays }) {
    if (!delays.length) {
      this.parts.delays.replaceChildren(make("p", "empty", t("history.empty")));
      return;
    }
    const rows = delays.map(({ stage, count, median, p95 }) =>
      [t(`basis.${stage}`), `${median.toFixed(2)} s`, `${p95.toFixed(2)} s`, String(count)]);
    this.parts.delays.replaceChildren(tableOf(["table.stage", "table.median", "table.p95", "table.count"].map((name) => t(name)), rows));
  }
}

function scrolling(table, label) {
  const holder = make("div", "scrolls");
  holder.tabIndex = 0;
  holder.setAttribute("role", "region");
  holder.setAttribute("aria-label", label);
  holder.append(table);
  return holder;
}

async function plot(container, { from, until, stepSeconds, rows, parts, label }) {
  const steps = Math.max(1, Math.ceil((Date.parse(until) / 1000 - from) / stepSeconds));
  const found = new Map(rows.map((row) => [Math.round((Date.parse(row.at) / 1000 - from) / stepSeconds), row]));
  const times = Array.from({ length: steps }, (_, index) => new Date((from + index * stepSeconds) * 1000));
  await stackedBars(container, {
    times, stepSeconds, label,
    series: parts.map(({ name, label: partLabel, colour }) => ({
      label: partLabel, colour, counts: times.map((_, index) => found.get(index)?.[name] ?? 0),
    })),
  });
}
