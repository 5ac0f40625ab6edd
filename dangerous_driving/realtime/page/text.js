// Words and times, as people read them. Everything here becomes textContent, never HTML.

const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayAndTime = new Intl.DateTimeFormat(undefined, {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});

export const LEVELS = ["none", "low", "medium", "high"];

/** Rank of a level: 0 for none to 3 for high. */
export const rank = (level) => LEVELS.indexOf(level);

/** A camera id is text, but an all-digit one travels as a number. */
export const cameraId = (value) => String(value);

/** 14:03:27, with the day when it is not today's. */
export function clock(iso) {
  const at = new Date(iso);
  return at.toDateString() === new Date().toDateString() ? time.format(at) : dayAndTime.format(at);
}

/** "4 s", "3 min", "2 h": how long ago by this clock. */
export function ago(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h`;
}

/** pedestrian_conflict -> Pedestrian conflict. */
export function words(name) {
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** The risk types of an alert in one line. */
export function typesOf(alert) {
  if (alert.riskTypes.length) {
    return alert.riskTypes.map((type, index) => (index ? type.replaceAll("_", " ") : words(type))).join(", ");
  }
  if (alert.basis === "geometry") return "Road users dangerously close";
  return alert.state === "provisional" ? "Dangerous scene" : "Dangerous scene, no type given";
}
