// The alert feed: one card per alert, the newest first, with both stages, their times and a person's word.

import { alertPicturePath, get, picture, post } from "./api.js";
import { t } from "./i18n.js";
import { ago, cameraId, capital, clock, isLive, levelName, make, rank, stageOf, typesOf, verdictOf } from "./text.js";

const MOST_CARDS = 300; // live ones, and those that somebody looks at, stay beyond it
const PAGE = "50";

export class Feed {
  #cards = new Map();
  #stages = new Map(); // alert id -> stage -> seconds after capture
  #most = MOST_CARDS;
  #older = null; // what asks for the alerts before those that were loaded last: {query, from: when the last one opened}

  /** @param {{name: (camera: string) => string, operator: () => string, changed: () => void, open: (alert: object) => void, inDetail: () => string | null, judged: (alert: object) => void, failed: (message: string) => void}} on */
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

  /**
   * Begin anew with the newest alerts in the ledger and all that are live there. Other cards go, since nobody told what
   * became of them; those that somebody looks at are asked for, and those that changed meanwhile are newer than the answers.
   * Returns the alerts that were read.
   */
  async refresh() {
    const begun = performance.now();
    const newest = await get(`api/alerts?limit=${PAGE}`);
    const pages = [newest];
    const live = new URLSearchParams([["limit", "200"], ["state", "open"], ["state", "provisional"]]);
    for (let cursor = ""; cursor !== null; cursor = pages.at(-1).nextCursor) {
      if (cursor) live.set("cursor", cursor);
      pages.push(await get(`api/alerts?${live}`));
    }
    const known = new Set(pages.flatMap((page) => page.items.map((alert) => alert.alertId)));
    for (const id of this.#watched().filter((watched) => !known.has(watched))) {
      try {
        pages.push({ items: [(await get(`api/alerts/${encodeURIComponent(id)}`)).alert], stages: {} });
        known.add(id);
      } catch (error) {
        if (error.status !== 404) throw error;
      }
    }
    for (const [id, card] of this.#cards) if (!known.has(id) && card.changed < begun) this.#drop(card);
    this.#most = MOST_CARDS;
    this.#turnTo(newest);
    pages.forEach((page) => this.#take(page));
    this.#count();
    return pages.flatMap((page) => page.items);
  }

  /** The alerts before those that were loaded last. */
  async loadOlder() {
    const asked = this.#older;
    const page = await get(`api/alerts?${new URLSearchParams({ limit: PAGE, ...asked.query })}`);
    if (asked === this.#older) this.#turnTo(page); // else cards went, or all began anew, while it was under way
    const added = page.items.filter((alert) => !this.#cards.has(alert.alertId)).length;
    this.#most = Math.max(this.#most, this.#cards.size + added); // who asks for them gets to see them
    this.#take(page);
  }

  #take(page) {
    for (const alert of page.items) {
      for (const { stage, seconds } of page.stages[alert.alertId] ?? []) this.#reached(alert.alertId, stage, seconds);
      this.put(alert);
      this.#cards.get(alert.alertId)?.tick();
    }
  }

  /** Older alerts are those after this page. */
  #turnTo({ nextCursor, items }) {
    this.#goOn(nextCursor ? { query: { cursor: nextCursor }, from: items.at(-1).openedAt } : null);
  }

  #goOn(older) {
    this.#older = older;
    this.parts.older.hidden = !older;
  }

  /** The ids of the alerts that somebody looks at. */
  #watched() {
    return [this.parts.list.querySelector(".card:focus-within")?.dataset.alert, this.on.inDetail()].filter(Boolean);
  }

  #reached(id, stage, seconds) {
    if (!this.#stages.has(id)) this.#stages.set(id, new Map());
    const stages = this.#stages.get(id);
    if (!stages.has(stage)) stages.set(stage, Math.max(0, seconds));
    return stages;
  }

  /** Show an alert; an older version of what is shown changes nothing. Returns whether it is new here. */
  put(alert) {
    let card = this.#cards.get(alert.alertId);
    const known = Boolean(card);
    if (known && card.alert.version >= alert.version) return false;
    if (isLive(alert) && !alert.verdict) {
      this.#reached(alert.alertId, alert.basis, (Date.parse(alert.updatedAt) - Date.parse(alert.lastSeenAt)) / 1000);
    }
    if (!known) {
      card = new Card(this.template.content.firstElementChild.cloneNode(true), {
        ...this.on,
        judge: (act) => this.judge(alert.alertId, act),
        stages: () => this.#stages.get(alert.alertId) ?? new Map(),
      });
      this.#cards.set(alert.alertId, card);
    }
    card.changed = performance.now();
    card.show(alert);
    if (!known) this.#insert(card);
    this.#apply(card);
    this.#count();
    return !known;
  }

  /** The alert as it is shown. */
  alert(id) {
    return this.#cards.get(id)?.alert;
  }

  /** Keep a person's word on an alert, be it in the list or not. */
  async judge(id, act, note = "") {
    this.#cards.get(id)?.judging(true);
    try {
      const judged = await post(`api/alerts/${encodeURIComponent(id)}/${act}`, { by: this.on.operator(), note });
      this.put(judged); // the socket may have brought this version, or a newer one, before
      this.on.judged(judged);
    } catch (error) {
      this.on.failed(t("not.kept", { reason: error.message }));
    } finally {
      this.#cards.get(id)?.judging(false);
    }
  }

  /** Move the focus: 1 to the next card, -1 to the one before; from elsewhere to the first. */
  move(by) {
    const visible = this.#visible();
    const at = visible.findIndex((element) => element.contains(document.activeElement));
    visible[at < 0 ? 0 : Math.min(Math.max(at + by, 0), visible.length - 1)]?.focus();
  }

  /** Focus the newest alert that nobody has judged. */
  moveToNewest() {
    this.#visible().find((element) => !element.dataset.verdict && element.dataset.state !== "withdrawn")?.focus();
  }

  #visible() {
    return [...this.parts.list.children].filter((element) => !element.hidden);
  }

  /** Write all words again, in another language. */
  redraw() {
    this.#cards.forEach((card) => card.show(card.alert));
  }

  #insert(card) {
    const list = this.parts.list;
    const opened = card.alert.openedAt;
    const before = [...list.children].find((other) => other.dataset.opened < opened);
    list.insertBefore(card.element, before ?? null);
    if (this.#cards.size > this.#most) this.#makeRoom(card);
  }

  /** The cards opened longest ago go; not live ones, nor those that somebody looks at, nor the one that came. */
  #makeRoom(came) {
    const staying = new Set([came.alert.alertId, ...this.#watched()]);
    for (const { dataset } of [...this.parts.list.children].reverse()) {
      if (this.#cards.size <= this.#most) return;
      const card = this.#cards.get(dataset.alert);
      if (isLive(card.alert) || staying.has(dataset.alert)) continue;
      this.#drop(card);
      const from = card.alert.openedAt;
      // it was loaded: without a step back nothing would load it again
      if (!this.#older || from >= this.#older.from) {
        this.#goOn({ query: { before: new Date(Date.parse(from) + 1).toISOString() }, from });
      }
    }
  }

  #drop(card) {
    const id = card.alert.alertId;
    card.forget();
    card.element.remove();
    this.#cards.delete(id);
    this.#stages.delete(id);
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
  changed = 0; // when the shown version came, on the page's own clock
  #picture = null; // address of the one that is shown
  #url = null;

  constructor(element, on) {
    this.element = element;
    this.on = on;
    const names = ["crop", "level", "stage", "camera", "when", "types", "description", "facts", "times", "verdict", "simulated",
      "acknowledge", "reject"];
    this.parts = Object.fromEntries(names.map((name) => [name, element.querySelector(`.${name}`)]));
    for (const act of ["acknowledge", "reject"]) this.parts[act].addEventListener("click", () => on.judge(act));
    this.parts.crop.addEventListener("click", () => on.open(this.alert));
    element.addEventListener("keydown", (event) => {
      if (event.target !== element || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "a") on.judge("acknowledge");
      if (event.key === "f") on.judge("reject");
      if (event.key === "Enter") on.open(this.alert);
    });
  }

  show(alert) {
    this.alert = alert;
    const { element, parts } = this;
    Object.assign(element.dataset, {
      alert: alert.alertId, opened: alert.openedAt, level: alert.riskLevel, state: alert.state, verdict: alert.verdict ?? "",
    });
    parts.level.textContent = levelName(alert.riskLevel);
    parts.stage.textContent = stageOf(alert);
    parts.camera.textContent = this.on.name(cameraId(alert.cameraId));
    parts.when.textContent = clock(alert.openedAt);
    parts.when.dateTime = alert.openedAt;
    parts.when.title = alert.openedAt;
    parts.types.textContent = typesOf(alert);
    parts.description.textContent = alert.description;
    parts.description.hidden = !alert.description;
    parts.simulated.hidden = !alert.simulated;
    parts.simulated.textContent = t("simulated");
    parts.crop.setAttribute("aria-label", `${t("details")}: ${typesOf(alert)}`);
    parts.crop.title = t("details");
    parts.verdict.hidden = !alert.verdict;
    parts.verdict.textContent = verdictOf(alert);
    for (const name of ["acknowledge", "reject"]) parts[name].textContent = t(name);
    parts.acknowledge.setAttribute("aria-pressed", String(alert.verdict === "acknowledged"));
    parts.reject.setAttribute("aria-pressed", String(alert.verdict === "rejected"));
    const level = t("alert.of", { level: capital(levelName(alert.riskLevel)) });
    element.setAttribute("aria-label", [level, parts.camera.textContent, parts.types.textContent, parts.stage.textContent].join(", "));
    this.tick();
    this.#load();
  }

  tick() {
    const { alert } = this;
    const seconds = (Date.parse(alert.lastSeenAt) - Date.parse(alert.openedAt)) / 1000;
    const lasted = seconds >= 1 ? t("lasted", { time: ago(seconds * 1000) }) : t("one.frame");
    const last = isLive(alert)
      ? t("seen.ago", { time: ago(Date.now() - Date.parse(alert.lastSeenAt)) })
      : t("until", { time: clock(alert.lastSeenAt) });
    const peak = alert.peakLevel === alert.riskLevel ? "" : t("peak", { level: levelName(alert.peakLevel) });
    const facts = [lasted, last, peak].filter(Boolean).join(" · ");
    if (this.parts.facts.textContent !== facts) this.parts.facts.textContent = facts;
    const stages = [...this.on.stages()].map(([stage, after]) => [stage, `${t(`basis.${stage}`)} ${after.toFixed(1)} s`]);
    const { times } = this.parts;
    const shown = stages.map(([, text]) => text).join();
    if (times.dataset.shown === shown) return;
    times.dataset.shown = shown;
    times.replaceChildren(...stages.map(([stage, text]) => {
      const item = make("li", "", text);
      item.dataset.stage = stage;
      return item;
    }));
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
      image.alt = t("group.picture");
      image.hidden = false;
    } catch {
      if (path === this.#picture) this.#picture = null; // tried again with the next version
    }
  }

  /** A person's word is on its way, or no longer. */
  judging(underWay) {
    for (const button of [this.parts.acknowledge, this.parts.reject]) button.disabled = underWay;
  }
}
