// The camera wall: each camera's newest frame, with its boxes and its groups coloured by level.

import { framePath, picture } from "./api.js";
import { ago, cameraId, rank, words } from "./text.js";

const KINDS = { simulated: "Simulated", replay: "Replay" };
const REMEMBERED_LEVELS = 2000;

const colours = (() => {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(`--${name}`).trim();
  return { high: named("high"), medium: named("medium"), low: named("low"), none: named("none"), pending: named("pending"),
    object: "rgb(255 255 255 / 0.5)", ink: "#0b0e13" };
})();

// where an alert goes on from one frame to the next: the rule of alerts/place.py, for the colours between two answers
const GAP = 10; // s
const centre = ([x1, y1, x2, y2]) => [(x1 + x2) / 2, (y1 + y2) / 2];
const diagonal = ([x1, y1, x2, y2]) => Math.hypot(x2 - x1, y2 - y1);
const reach = (seconds) => (Math.abs(seconds) > GAP ? -1 : Math.min(0.5 + 0.5 * Math.abs(seconds), 2));

function distance(first, second) {
  const [ax, ay] = centre(first);
  const [bx, by] = centre(second);
  return Math.hypot(ax - bx, ay - by) / ((diagonal(first) + diagonal(second)) / 2 || 1);
}

export class Wall {
  #tiles = new Map();
  #levels = new Map(); // task id -> {level, types, final}
  #visible = new Set();
  #watcher;

  constructor(container, empty) {
    this.container = container;
    this.empty = empty;
    this.template = document.querySelector("#tile");
    // pictures are fetched for tiles that can be seen
    this.#watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) this.#visible.add(entry.target);
        else this.#visible.delete(entry.target);
        if (entry.isIntersecting) this.#tiles.get(entry.target.dataset.camera)?.load();
      }
    }, { rootMargin: "200px" });
    setInterval(() => this.#tiles.forEach((tile) => tile.tick()), 1000);
  }

  get cameras() {
    return [...this.#tiles.values()].map((tile) => tile.status).filter(Boolean);
  }

  name(camera) {
    return this.#tiles.get(camera)?.status?.name || camera;
  }

  status(status) {
    this.#tile(cameraId(status.cameraId)).setStatus(status);
  }

  frame(frame) {
    this.#tile(cameraId(frame.cameraId)).setFrame(frame);
  }

  assessment(result) {
    if (!result.results.length || !result.taskId) return;
    const [answer] = result.results;
    const known = this.#levels.get(result.taskId);
    if (known?.final && result.stage !== "final") return;
    this.#levels.set(result.taskId, { level: answer.riskLevel, types: answer.riskTypes, final: result.stage === "final" });
    if (this.#levels.size > REMEMBERED_LEVELS) this.#levels.delete(this.#levels.keys().next().value);
    this.#tiles.get(cameraId(result.cameraId))?.draw();
  }

  /** The live alerts, by camera. */
  alerts(byCamera) {
    for (const [camera, tile] of this.#tiles) tile.setAlerts(byCamera.get(camera) ?? []);
  }

  #tile(camera) {
    let tile = this.#tiles.get(camera);
    if (tile) return tile;
    const element = this.template.content.firstElementChild.cloneNode(true);
    element.dataset.camera = camera;
    tile = new Tile(camera, element, this.#levels, () => this.#visible.has(element));
    this.#tiles.set(camera, tile);
    const after = [...this.container.children].find(
      (other) => other.dataset.camera.localeCompare(camera, undefined, { numeric: true }) > 0);
    this.container.insertBefore(element, after ?? null);
    this.#watcher.observe(element);
    this.empty.hidden = true;
    return tile;
  }
}

class Tile {
  status = null;
  #frame = null;
  #shown = null; // the frame whose picture is on the canvas: boxes belong to it
  #loading = false;
  #alerts = [];

  constructor(camera, element, levels, visible) {
    this.camera = camera;
    this.element = element;
    this.levels = levels;
    this.visible = visible;
    const part = (name) => element.querySelector(`.${name}`);
    this.parts = Object.fromEntries(
      ["view", "picture", "overlay", "kind", "danger", "health", "name", "reason", "age"].map((name) => [name, part(name)]));
    this.parts.name.textContent = camera;
    new ResizeObserver(() => this.draw()).observe(this.parts.view);
  }

  setStatus(status) {
    this.status = status;
    const { kind, name, health, reason } = this.parts;
    name.textContent = status.name;
    name.title = `camera ${this.camera}`;
    health.dataset.status = status.status;
    health.title = status.status;
    reason.textContent = status.status === "online" ? "" : [words(status.status), status.reason].filter(Boolean).join(": ");
    reason.title = reason.textContent;
    kind.hidden = !(status.kind in KINDS);
    kind.textContent = KINDS[status.kind] ?? "";
    this.element.dataset.status = status.status;
    this.#describe();
  }

  setFrame(frame) {
    this.#frame = frame;
    this.load();
    this.tick();
  }

  setAlerts(alerts) {
    const marks = (list) => list.map((alert) => `${alert.alertId} ${alert.version}`).join();
    if (marks(alerts) === marks(this.#alerts)) return;
    this.#alerts = alerts;
    const level = alerts.map((alert) => alert.riskLevel).sort((a, b) => rank(b) - rank(a))[0];
    if (level) this.element.dataset.danger = level;
    else delete this.element.dataset.danger;
    this.parts.danger.hidden = !level;
    this.parts.danger.textContent = level ? `${level} alert` : "";
    this.draw();
  }

  /** Show the newest frame; while one is under way, only the newest of the following is fetched after it. */
  async load() {
    const frame = this.#frame;
    if (!frame || this.#loading || frame === this.#shown || !this.visible()) return;
    this.#loading = true;
    try {
      const bitmap = frame.rawFrameUrl ? await createImageBitmap(await picture(framePath(frame), "low")) : null;
      this.#paint(frame, bitmap);
    } catch {
      this.#paint(frame, null); // no picture: the boxes alone still say where everybody is
    } finally {
      this.#loading = false;
    }
    if (this.#frame !== frame) this.load();
  }

  tick() {
    if (!this.#frame) return;
    const age = Date.now() - Date.parse(this.#frame.timestamp);
    const limit = Math.max(10, 5 * (this.status?.frameInterval ?? 1.8)) * 1000;
    this.parts.age.textContent = age < 1500 ? "now" : ago(age);
    this.parts.age.dateTime = this.#frame.timestamp;
    this.parts.age.title = `captured ${this.#frame.timestamp}`;
    this.element.classList.toggle("stale", age > limit);
  }

  #paint(frame, bitmap) {
    this.#shown = frame;
    const canvas = this.parts.picture;
    canvas.width = bitmap?.width ?? frame.imageWidth;
    canvas.height = bitmap?.height ?? frame.imageHeight;
    if (bitmap) {
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
    }
    this.#describe();
    this.draw();
  }

  draw() {
    const frame = this.#shown;
    const canvas = this.parts.overlay;
    const { clientWidth: width, clientHeight: height } = this.parts.view;
    if (!frame || !width) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const scale = Math.min(width / frame.imageWidth, height / frame.imageHeight);
    const left = (width - frame.imageWidth * scale) / 2;
    const top = (height - frame.imageHeight * scale) / 2;
    const place = ([x1, y1, x2, y2]) => [left + x1 * scale, top + y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale];

    context.lineWidth = 1;
    context.strokeStyle = colours.object;
    for (const object of frame.detectedObjects) context.strokeRect(...place(object.bbox));

    const groups = this.#judged(frame)
      .sort((a, b) => rank(a.known?.level) - rank(b.known?.level)); // the most dangerous on top
    for (const { group, known } of groups) this.#group(context, place(group.bbox), known, width);
  }

  /** The groups of a frame with what is known of them: their answer, else the live alert that they go on with. */
  #judged(frame) {
    const groups = frame.trafficGroups
      .filter((group) => group.objectCount >= 2)
      .map((group) => ({ group, known: this.levels.get(`${frame.messageId}_group${group.groupIndex}`) }));
    for (const alert of this.#alerts) {
      const seconds = (Date.parse(frame.timestamp) - Date.parse(alert.lastSeenAt)) / 1000;
      const [nearest] = groups
        .filter(({ known }) => !known)
        .map((judged) => ({ judged, apart: distance(judged.group.bbox, alert.groupBbox) }))
        .filter(({ apart }) => apart <= reach(seconds))
        .sort((a, b) => a.apart - b.apart);
      if (nearest) nearest.judged.known = { level: alert.riskLevel, types: alert.riskTypes, final: false };
    }
    return groups;
  }

  #group(context, box, known, width) {
    const colour = colours[known?.level ?? "pending"];
    const dangerous = rank(known?.level) >= rank("medium");
    context.lineWidth = dangerous ? 2.5 : 1.5;
    context.strokeStyle = colour;
    context.setLineDash(known?.final ? [] : [5, 4]);
    context.strokeRect(...box);
    context.setLineDash([]);
    if (!dangerous) return;
    const text = [known.level, known.types[0]?.replaceAll("_", " ")].filter(Boolean).join(" · ");
    context.font = "600 11px system-ui, sans-serif";
    const wide = Math.min(context.measureText(text).width + 10, width);
    const x = Math.max(0, Math.min(box[0] - 1.25, width - wide));
    const y = box[1] >= 18 ? box[1] - 17 : box[1];
    context.fillStyle = colour;
    context.fillRect(x, y, wide, 17);
    context.fillStyle = colours.ink;
    context.fillText(text, x + 5, y + 12, wide - 10);
  }

  #describe() {
    const seen = this.#shown
      ? `${this.#shown.detectedObjects.length} road users, ${this.#shown.trafficGroups.length} groups`
      : "no frame yet";
    this.parts.picture.setAttribute("aria-label", `${this.status?.name ?? this.camera}: ${seen}`);
  }
}
