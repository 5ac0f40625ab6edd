// The alert feed: one card per alert, the newest first, with both stages and a person's word.

import { alertPicturePath, get, picture, post } from "./api.js";
import { ago, cameraId, clock, rank, typesOf, words } from "./text.js";

const MOST_CARDS = 300;

const STAGES = {
  provisional: { geometry: "Provisional · geometry", provisional: "Provisional · streamed", final: "Provisional" },
  open: { geometry: "Open", provisional: "Open · level streamed", final: "Open" },
  closed: "Closed",
  withdrawn: "Withdrawn",
};

const VERDICTS = { acknowledged: "Acknowledged", rejected: "False alarm" };

const isLive = (alert) => alert.state === "provisional" || alert.state === "open";

function stageOf(alert) {
  const stage = STAGES[alert.state];
  return typeof stage === "string" ? stage : stage[alert.basis];
}

export class Feed {
  #cards = new Map();
  #cursor = null;

  /** @param {{name: (camera: string) => string, operator: () => string, changed: () => void, failed: (message: string) => void}} on */
  constructor(parts, on) {
    this.parts = parts;
    this.on = on;
    this.template = document.querySelector("#card");
    parts.older.addEventListener("click", () => this.loadOlder().catch((error) => on.failed(error.message)));
    for (const filter of [parts.state, parts.level]) filter.addEventListener("change", () => this.#filter());
    setInterval(() => this.#cards.forEach((card) => card.tick()), 1000);
  }

  /** The alerts that stand: live, and not rejected. */
  get standing() {
    return [...this.#cards.values()].map((card) => card.alert)
      .filter((alert) => isLive(alert) && alert.verdict !== "rejected");
  }

  /** The newest alerts in the ledger. */
  async refresh() {
    const page = await get("api/alerts?limit=50");
    if (!this.#cards.size) this.#turnTo(page.nextCursor);
    for (const alert of page.items) this.put(alert);
    return page.items;
  }

  /** The alerts before those that were loaded last. */
  async loadOlder() {
    const page = await get(`api/alerts?${new URLSearchParams({ limit: "50", cursor: this.#cursor })}`);
    this.#turnTo(page.nextCursor);
    for (const alert of page.items) this.put(alert);
  }

  #turnTo(cursor) {
    this.#cursor = cursor;
    this.parts.older.hidden = !cursor;
  }

  /** Show an alert; an older version of what is shown changes nothing. Returns whether it is new here. */
  put(alert) {
    let card = this.#cards.get(alert.alertId);
    const known = Boolean(card);
    if (known && card.alert.version >= alert.version) return false;
    if (!known) {
      card = new Card(this.template.content.firstElementChild.cloneNode(true), {
        ...this.on, judged: (judged) => this.put(judged),
      });
      this.#cards.set(alert.alertId, card);
    }
    card.show(alert);
    if (!known) this.#insert(card);
    this.#apply(card);
    this.#count();
    return !known;
  }

  #insert(card) {
    const list = this.parts.list;
    const opened = card.alert.openedAt;
    const before = [...list.children].find((other) => other.dataset.opened < opened);
    list.insertBefore(card.element, before ?? null);
    if (this.#cards.size <= MOST_CARDS) return;
    const last = list.lastElementChild;
    this.#cards.get(last.dataset.alert)?.forget();
    this.#cards.delete(last.dataset.alert);
    last.remove();
  }

  #filter() {
    this.#cards.forEach((card) => this.#apply(card));
    this.#count();
  }

  #apply(card) {
    const { alert } = card;
    const state = this.parts.state.value;
    const wanted = !state || (state === "live" ? isLive(alert) : !alert.verdict && alert.state !== "withdrawn");
    card.element.hidden = !(wanted && rank(alert.peakLevel) >= rank(this.parts.level.value));
  }

  #count() {
    this.parts.empty.hidden = [...this.#cards.values()].some((card) => !card.element.hidden);
    this.on.changed();
  }
}

class Card {
  alert = null;
  #picture = null; // address of the one that is shown
  #url = null;

  constructor(element, on) {
    this.element = element;
    this.on = on;
    const names = ["crop", "level", "stage", "camera", "when", "types", "description", "facts", "verdict", "simulated", "acknowledge", "reject"];
    this.parts = Object.fromEntries(names.map((name) => [name, element.querySelector(`.${name}`)]));
    this.parts.acknowledge.addEventListener("click", () => this.#judge("acknowledge"));
    this.parts.reject.addEventListener("click", () => this.#judge("reject"));
    element.addEventListener("keydown", (event) => {
      if (event.target !== element || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "a") this.#judge("acknowledge");
      if (event.key === "f") this.#judge("reject");
    });
  }

  show(alert) {
    this.alert = alert;
    const { element, parts } = this;
    Object.assign(element.dataset, {
      alert: alert.alertId, opened: alert.openedAt, level: alert.riskLevel, state: alert.state, verdict: alert.verdict ?? "",
    });
    parts.level.textContent = alert.riskLevel;
    parts.stage.textContent = stageOf(alert);
    parts.camera.textContent = this.on.name(cameraId(alert.cameraId));
    parts.when.textContent = clock(alert.openedAt);
    parts.when.dateTime = alert.openedAt;
    parts.when.title = alert.openedAt;
    parts.types.textContent = typesOf(alert);
    parts.description.textContent = alert.description;
    parts.description.hidden = !alert.description;
    parts.simulated.hidden = !alert.simulated;
    parts.verdict.hidden = !alert.verdict;
    if (alert.verdict) {
      const note = alert.verdictNote ? `: ${alert.verdictNote}` : "";
      parts.verdict.textContent = `${VERDICTS[alert.verdict]} by ${alert.verdictBy} at ${clock(alert.verdictAt)}${note}`;
    }
    parts.acknowledge.setAttribute("aria-pressed", String(alert.verdict === "acknowledged"));
    parts.reject.setAttribute("aria-pressed", String(alert.verdict === "rejected"));
    element.setAttribute("aria-label",
      `${words(alert.riskLevel)} alert, ${parts.camera.textContent}, ${parts.types.textContent}, ${parts.stage.textContent}`);
    this.tick();
    this.#load();
  }

  tick() {
    const { alert } = this;
    const seconds = (Date.parse(alert.lastSeenAt) - Date.parse(alert.openedAt)) / 1000;
    const lasted = seconds >= 1 ? `${ago(seconds * 1000)} long` : "one frame";
    const last = isLive(alert) ? `seen ${ago(Date.now() - Date.parse(alert.lastSeenAt))} ago` : `until ${clock(alert.lastSeenAt)}`;
    const peak = alert.peakLevel === alert.riskLevel ? "" : `peak ${alert.peakLevel}`;
    const facts = [lasted, last, peak].filter(Boolean).join(" · ");
    if (this.parts.facts.textContent !== facts) this.parts.facts.textContent = facts;
  }

  forget() {
    if (this.#url) URL.revokeObjectURL(this.#url);
  }

  async #load() {
    const { alert } = this;
    const path = alertPicturePath(alert);
    if (!alert.groupImageUrl || path === this.#picture) return;
    this.#picture = path;
    const image = this.parts.crop.querySelector("img");
    try {
      const url = URL.createObjectURL(await picture(path));
      if (path !== this.#picture) {
        URL.revokeObjectURL(url);
        return;
      }
      this.forget();
      this.#url = url;
      image.src = url;
      image.alt = `The group of road users of this alert`;
      image.hidden = false;
    } catch {
      if (path === this.#picture) this.#picture = null; // tried again with the next version
    }
  }

  async #judge(act) {
    const { acknowledge, reject } = this.parts;
    for (const button of [acknowledge, reject]) button.disabled = true;
    try {
      const path = `api/alerts/${encodeURIComponent(this.alert.alertId)}/${act}`;
      // the socket may bring this version, or a newer one, before
      this.on.judged(await post(path, { by: this.on.operator() }));
    } catch (error) {
      this.on.failed(`Not kept: ${error.message}`);
    } finally {
      for (const button of [acknowledge, reject]) button.disabled = false;
    }
  }
}
