// Words and times, as people read them. Everything here becomes textContent, never HTML.

import { locale, riskType, t } from "./i18n.js";

const formats = new Map();

function format(name, options) {
  const key = `${name} ${locale()}`;
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat(locale(), { hourCycle: "h23", ...options }));
  return formats.get(key);
}

export const LEVELS = ["none", "low", "medium", "high"];

/** Rank of a level: 0 for none to 3 for high. */
export const rank = (level) => LEVELS.indexOf(level);

/** A camera id is text, but an all-digit one travels as a number. */
export const cameraId = (value) => String(value);

/** 14:03:27, with the day when it is not today's. */
export function clock(iso) {
  const at = new Date(iso);
  const time = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
  return at.toDateString() === new Date().toDateString()
    ? format("time", time).format(at)
    : format("day", { day: "numeric", month: "short", ...time }).format(at);
}

/** A tick of a plot's time axis: 14:03, or the day at midnight. */
export function tick(at) {
  return at.getHours() || at.getMinutes()
    ? format("tick", { hour: "2-digit", minute: "2-digit" }).format(at)
    : format("date", { day: "numeric", month: "short" }).format(at);
}

/** The beginning of a step of a plot. */
export const step = (at) => format("step", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" }).format(at);

/** "4 s", "3 min", "2 h": how long ago by this clock. */
export function ago(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 60) return t("ago.s", { n: seconds });
  if (seconds < 3600) return t("ago.min", { n: Math.floor(seconds / 60) });
  return t("ago.h", { n: Math.floor(seconds / 3600) });
}

/** Its first letter as a capital. */
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export const levelName = (level) => t(`level.${level}`);

/** The risk types of an alert in one line. */
export function typesOf(alert) {
  if (alert.riskTypes.length) return capital(alert.riskTypes.map(riskType).join(", "));
  if (alert.basis === "geometry") return t("type.close");
  return alert.state === "provisional" ? t("type.scene") : t("type.none");
}

/** Where an alert is in its life. */
export function stageOf(alert) {
  const ended = alert.state === "closed" || alert.state === "withdrawn";
  return t(ended ? `stage.${alert.state}` : `stage.${alert.state}.${alert.basis}`);
}

/** What a person said of an alert, "" if nobody said anything. */
export function verdictOf(alert) {
  if (!alert.verdict) return "";
  const said = t("verdict.by", {
    verdict: t(`verdict.${alert.verdict}`), by: alert.verdictBy, at: clock(alert.verdictAt),
  });
  return alert.verdictNote ? `${said}: ${alert.verdictNote}` : said;
}

export const isLive = (alert) => alert.state === "provisional" || alert.state === "open";

/** An element with a class and text. */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** An interval with the value in it, as shares of 0 to 1, for the eye alone: its numbers stand beside it. */
export function intervalOf(lower, value, upper) {
  const range = make("span", "bar-of interval");
  const [inside, mark] = [make("i"), make("i", "mark")];
  const percent = (share) => `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(1)}%`;
  inside.style.marginLeft = percent(lower);
  inside.style.width = percent(upper - lower);
  mark.style.left = percent(value);
  range.append(inside, mark);
  range.setAttribute("aria-hidden", "true");
  return range;
}

/** A bar filled to a share of 0 to 1, for the eye alone: its number stands beside it. */
export function barOf(share) {
  const bar = make("span", "bar-of");
  const filled = make("i");
  filled.style.width = `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(1)}%`;
  bar.append(filled);
  bar.setAttribute("aria-hidden", "true");
  return bar;
}
