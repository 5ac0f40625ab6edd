// The camera wall: each camera's newest frame, with its boxes and its groups coloured by level.

import { framePath, picture, post } from "./api.js";
import { drawBoxes, paintPicture } from "./boxes.js";
import { t } from "./i18n.js";
import { ago, cameraId, capital, levelName, rank } from "./text.js";

const KINDS = new Set(["simulated", "replay"]);
const REMEMBERED_LEVELS = 2000;
const SURE_FOR = 4_000; // ms in which a second press stops a camera

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

  /** @param {{operator: () => string, failed: (message: string) => void}} on */
  constructor(container, empty, on) {
    this.container = container;
    this.empty = empty;
    this.on = on;
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

  /** Write all words again, in another language. */
  redraw() {
    this.#tiles.forEach((tile) => tile.redraw());
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
    tile = new Tile(camera, element, this.#levels, () => this.#visible.has(element), this.on);
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
  #sure = 0;

  constructor(camera, element, levels, visible, on) {
    this.on = on;
    this.camera = camera;
    this.element = element;
    this.levels = levels;
    this.visible = visible;
    const part = (name) => element.querySelector(`.${name}`);
    this.parts = Object.fromEntries(
      ["view", "picture", "overlay", "kind", "danger", "health", "name", "reason", "age", "switch"].map((name) => [name, part(name)]));
    this.parts.name.textContent = camera;
    this.parts.switch.addEventListener("click", () => this.#switch());
    new ResizeObserver(() => this.draw()).observe(this.parts.view);
  }

  setStatus(status) {
    this.status = status;
    const { kind, name, health, reason } = this.parts;
    const shown = status.running ? status.status : "unknown";
    name.textContent = status.name;
    name.title = t("camera.id", { id: this.camera });
    health.dataset.status = shown;
    health.title = t(`status.${shown}`);
    reason.textContent = status.running
      ? (status.status === "online" ? "" : [capital(t(`status.${status.status}`)), status.reason].filter(Boolean).join(": "))
      : capital(t("stopped"));
    reason.title = reason.textContent;
    kind.hidden = !KINDS.has(status.kind);
    kind.textContent = kind.hidden ? "" : t(status.kind);
    this.element.dataset.status = status.running ? status.status : "stopped";
    this.#nameSwitch();
    this.#describe();
  }

  redraw() {
    if (this.status) this.setStatus(this.status);
    const alerts = this.#alerts;
    this.#alerts = [];
    this.parts.danger.hidden = true;
    this.setAlerts(alerts);
    this.tick();
    this.draw();
  }

  #nameSwitch() {
    const { running } = this.status;
    const { switch: button } = this.parts;
    const words = running ? t(this.#sure ? "camera.stop.sure" : "camera.stop") : t("camera.start");
    button.textContent = words;
    button.setAttribute("aria-label", `${words}: ${this.status.name}`);
    button.classList.toggle("sure", Boolean(this.#sure));
  }

  /** A camera is started at once, and stopped when somebody presses twice. */
  async #switch() {
    if (!this.status) return;
    const { running } = this.status;
    if (running && !this.#sure) {
      this.#sure = setTimeout(() => { this.#sure = 0; this.#nameSwitch(); }, SURE_FOR);
      this.#nameSwitch();
      return;
    }
    clearTimeout(this.#sure);
    this.#sure = 0;
    try {
      const path = `api/cameras/${encodeURIComponent(this.camera)}/${running ? "stop" : "start"}`;
      this.setStatus(await post(path, { by: this.on.operator() }));
    } catch (error) {
      this.#nameSwitch();
      this.on.failed(t("not.kept", { reason: error.message }));
    }
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
    this.parts.danger.textContent = level ? t("alert.of", { level: levelName(level) }) : "";
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
    this.parts.age.textContent = age < 1500 ? t("now") : ago(age);
    this.parts.age.dateTime = this.#frame.timestamp;
    this.parts.age.title = t("captured", { time: this.#frame.timestamp });
    this.element.classList.toggle("stale", age > limit);
  }

  #paint(frame, bitmap) {
    this.#shown = frame;
    paintPicture(this.parts.picture, frame, bitmap);
    this.#describe();
    this.draw();
  }

  draw() {
    const frame = this.#shown;
    const { clientWidth: width, clientHeight: height } = this.parts.view;
    if (!frame || !width) return;
    drawBoxes(this.parts.overlay, { width, height }, frame, this.#judged(frame));
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

  #describe() {
    const seen = this.#shown
      ? t("frame.seen", { users: this.#shown.detectedObjects.length, groups: this.#shown.trafficGroups.length })
      : t("frame.none");
    this.parts.picture.setAttribute("aria-label", `${this.status?.name ?? this.camera}: ${seen}`);
  }
}
