// One alert: the frames before, during and after it with their boxes, how it came about, and a person's word with a note.

import { alertPicturePath, framePath, get, picture } from "./api.js";
import { drawBoxes, paintPicture } from "./boxes.js";
import { t } from "./i18n.js";
import { cameraId, capital, clock, levelName, make, stageOf, typesOf, verdictOf } from "./text.js";

const PATCH = 0.18; // how far an answer's box may lie from the group's own

export class Detail {
  #alert = null;
  #frames = [];
  #at = -1;
  #thumbnails = [];
  #urls = [];
  #asked = 0;

  /** @param {{name: (camera: string) => string, judge: (id: string, act: string, note: string) => Promise, failed: (message: string) => void}} on */
  constructor(dialog, on) {
    this.dialog = dialog;
    this.on = on;
    const part = (name) => dialog.querySelector(`.${name}`);
    this.parts = Object.fromEntries(["stage-view", "picture", "overlay", "caption", "strip", "level", "where", "what", "description", "standing",
      "steps", "verdict", "note", "acknowledge", "reject", "previous", "next", "shut", "simulated"].map((name) => [name, part(name)]));
    const { parts } = this;
    parts.shut.addEventListener("click", () => dialog.close());
    parts.previous.addEventListener("click", () => this.#show(this.#at - 1));
    parts.next.addEventListener("click", () => this.#show(this.#at + 1));
    for (const act of ["acknowledge", "reject"]) {
      parts[act].addEventListener("click", () => this.on.judge(this.#alert.alertId, act, parts.note.value.trim()));
    }
    dialog.addEventListener("close", () => this.#forget());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (event.target.closest("input")) return;
      if (event.key === "ArrowLeft") this.#show(this.#at - 1);
      else if (event.key === "ArrowRight") this.#show(this.#at + 1);
      else if (event.key === "a") parts.acknowledge.click();
      else if (event.key === "f") parts.reject.click();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    new ResizeObserver(() => this.#draw()).observe(parts["stage-view"]);
  }

  /** The id of the alert that is open here, null if none is. */
  get shown() {
    return this.dialog.open ? this.#alert.alertId : null;
  }

  /** Show an alert. */
  async open(alert) {
    this.#forget();
    this.#write(alert);
    this.parts.note.value = "";
    this.parts.caption.textContent = t("detail.wait");
    this.parts.steps.replaceChildren();
    if (!this.dialog.open) this.dialog.showModal();
    const asked = ++this.#asked;
    try {
      const id = encodeURIComponent(alert.alertId);
      const [detail, frames] = await Promise.all([get(`api/alerts/${id}`), get(`api/alerts/${id}/frames`)]);
      if (asked !== this.#asked) return;
      this.#writeSteps(detail);
      await this.#writeFrames(frames);
    } catch (error) {
      if (asked === this.#asked) this.on.failed(error.message);
    }
  }

  /** A newer version of an alert came: shown, if it is this one. */
  put(alert) {
    if (!this.dialog.open || alert.alertId !== this.#alert?.alertId || alert.version <= this.#alert.version) return;
    this.#write(alert);
    const asked = this.#asked;
    get(`api/alerts/${encodeURIComponent(alert.alertId)}`)
      .then((detail) => { if (asked === this.#asked) this.#writeSteps(detail); })
      .catch((error) => this.on.failed(error.message));
  }

  #write(alert) {
    this.#alert = alert;
    const { parts } = this;
    Object.assign(this.dialog.dataset, { level: alert.riskLevel, state: alert.state, verdict: alert.verdict ?? "", alert: alert.alertId });
    parts.level.textContent = levelName(alert.riskLevel);
    parts.where.textContent = `${this.on.name(cameraId(alert.cameraId))} · ${clock(alert.openedAt)}`;
    parts.what.textContent = typesOf(alert);
    parts.description.textContent = alert.description;
    parts.description.hidden = !alert.description;
    parts.standing.textContent = stageOf(alert);
    parts.simulated.hidden = !alert.simulated;
    parts.verdict.textContent = verdictOf(alert);
    parts.verdict.hidden = !alert.verdict;
    parts.acknowledge.setAttribute("aria-pressed", String(alert.verdict === "acknowledged"));
    parts.reject.setAttribute("aria-pressed", String(alert.verdict === "rejected"));
  }

  #writeSteps({ history }) {
    this.parts.steps.replaceChildren(...history.map(({ kind, at, level, alert }, index) => {
      const item = make("li");
      item.dataset.level = level ?? alert.riskLevel;
      const seen = kind === "geometry" || kind === "provisional" || kind === "final";
      const what = [index ? t(`basis.${kind}`) : `${t(`basis.${kind}`)}, ${t("step.opened")}`];
      if (level) what.push(levelName(level));
      if (!seen) what.push(kind === "verdict" ? t(`verdict.${alert.verdict}`) : stageOf(alert));
      item.append(make("time", "", clock(at)), make("span", "", what.join(" · ")));
      if (seen) {
        const seconds = Math.max(0, (Date.parse(at) - Date.parse(alert.lastSeenAt)) / 1000);
        item.append(make("small", "", t("detail.delay", { seconds: seconds.toFixed(1) })));
      }
      return item;
    }));
  }

  async #writeFrames(frames) {
    this.#frames = frames;
    const { strip, caption } = this.parts;
    for (const button of [this.parts.previous, this.parts.next]) button.hidden = frames.length < 2;
    if (!frames.length) {
      caption.textContent = t("detail.none");
      await this.#showCrop();
      return;
    }
    this.#thumbnails = frames.map((frame, index) => {
      const item = make("li");
      const button = make("button");
      button.type = "button";
      button.dataset.part = frame.part;
      button.setAttribute("aria-label",
        t("frame.of", { n: index + 1, all: frames.length, part: t(`detail.${frame.part}`), time: clock(frame.timestamp) }));
      button.append(make("img"), make("span", "", t(`detail.${frame.part}`)));
      button.firstElementChild.alt = "";
      button.addEventListener("click", () => this.#show(index));
      item.append(button);
      return item;
    });
    strip.replaceChildren(...this.#thumbnails);
    const first = Math.max(0, frames.findIndex((frame) => frame.part === "during"));
    await this.#show(first);
    this.#loadThumbnails(this.#asked);
  }

  async #loadThumbnails(asked) {
    for (const [index, frame] of this.#frames.entries()) {
      if (asked !== this.#asked || !frame.hasPicture) continue;
      try {
        const url = URL.createObjectURL(await picture(framePath(frame), "low"));
        this.#urls.push(url);
        if (asked === this.#asked) this.#thumbnails[index].querySelector("img").src = url;
        else URL.revokeObjectURL(url);
      } catch {
        continue; // it is no longer kept: its button says when it was
      }
    }
  }

  async #show(index) {
    const frame = this.#frames[index];
    if (!frame) return;
    this.#at = index;
    const { picture: canvas, caption, previous, next } = this.parts;
    this.#thumbnails.forEach((item, other) => {
      const button = item.firstElementChild;
      if (other === index) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
    // sideways only: the page behind must not move
    const chosen = this.#thumbnails[index];
    this.parts.strip.scrollTo({ left: chosen.offsetLeft - (this.parts.strip.clientWidth - chosen.clientWidth) / 2 });
    previous.disabled = index === 0;
    next.disabled = index === this.#frames.length - 1;
    const words = t("frame.of", { n: index + 1, all: this.#frames.length, part: t(`detail.${frame.part}`), time: clock(frame.timestamp) });
    caption.textContent = words;
    canvas.setAttribute("aria-label", words);
    let bitmap = null;
    try {
      if (frame.hasPicture) bitmap = await createImageBitmap(await picture(framePath(frame)));
    } catch {
      caption.textContent = `${words} · ${t("detail.gone")}`;
    }
    if (this.#frames[this.#at] !== frame) return; // another one was chosen meanwhile
    paintPicture(canvas, frame, bitmap);
    this.#draw();
  }

  async #showCrop() {
    if (!this.#alert.groupImageUrl) return;
    try {
      const bitmap = await createImageBitmap(await picture(alertPicturePath(this.#alert)));
      paintPicture(this.parts.picture, null, bitmap);
    } catch {
      this.parts.caption.textContent = t("detail.none");
    }
  }

  #draw() {
    const frame = this.#frames[this.#at];
    const view = this.parts["stage-view"];
    if (!frame || !view.clientWidth) return;
    const box = frame.groupBbox;
    const known = { level: this.#alert.riskLevel, types: this.#alert.riskTypes, final: this.#alert.basis === "final" };
    const judged = frame.trafficGroups.filter((group) => group.objectCount >= 2)
      .map((group) => ({ group, known: box && near(group.bbox, box) ? known : undefined }));
    if (box && !judged.some((entry) => entry.known)) judged.push({ group: { bbox: box }, known });
    drawBoxes(this.parts.overlay, { width: view.clientWidth, height: view.clientHeight }, frame, judged);
  }

  #forget() {
    this.#asked += 1;
    for (const url of this.#urls) URL.revokeObjectURL(url);
    this.#urls = [];
    this.#frames = [];
    this.#thumbnails = [];
    this.#at = -1;
    this.parts.strip.replaceChildren();
    for (const canvas of [this.parts.picture, this.parts.overlay]) canvas.width = canvas.height = 0;
  }
}

function near(first, second) {
  const size = Math.hypot(second[2] - second[0], second[3] - second[1]) || 1;
  return first.every((side, index) => Math.abs(side - second[index]) <= PATCH * size);
}
