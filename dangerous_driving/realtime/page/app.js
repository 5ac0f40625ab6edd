// Puts the page together.

import { get, NotAuthorised, token } from "./api.js";
import { Connection } from "./connection.js";
import { Detail } from "./detail.js";
import { Feed } from "./feed.js";
import { History } from "./history.js";
import { choose, current, t, translate } from "./i18n.js";
import * as sound from "./sound.js";
import { System } from "./system.js";
import { cameraId, capital, isLive, levelName, make, rank, typesOf } from "./text.js";
import { Wall } from "./wall.js";

const byId = (id) => document.getElementById(id);
const GAUGES_EVERY = 5_000;
const OPERATOR = "dangerous-driving.operator";
const VIEWS = ["alerts", "cameras", "history", "system"];
const LINK = "#alert="; // links in notifications end in it and an alert's id
const SOONEST_RETRY = 1_000;
const LATEST_RETRY = 30_000;

translate();

const operator = byId("operator");
operator.value = localStorage.getItem(OPERATOR) ?? "";
operator.addEventListener("change", () => localStorage.setItem(OPERATOR, operator.value.trim()));
const operatorName = () => operator.value.trim() || "operator";

const facts = { llm: false, demo: false };
let status = null; // what api/status said last
let connectionState = "connecting";
let due = true; // cameras and alerts have to be read from the ledger: at first, and after a break too long to resume
let linked = null; // the id of an alert whose link was followed and that is not open yet

const wall = new Wall(byId("tiles"), byId("no-cameras"), { operator: operatorName, failed: toast });
const detail = new Detail(byId("detail"), {
  name: (camera) => wall.name(camera), judge: (id, act, note) => feed.judge(id, act, note), failed: toast,
});
const feed = new Feed(
  { list: byId("alerts"), empty: byId("no-alerts"), older: byId("older"), state: byId("filter-state"), level: byId("filter-level") },
  {
    name: (camera) => wall.name(camera),
    operator: operatorName,
    changed: showCounts,
    open: (alert) => detail.open(alert),
    inDetail: () => detail.shown,
    judged: (alert) => detail.put(alert),
    failed: toast,
  });
const history = new History(byId("history"), { cameras: () => wall.cameras, failed: toast });
const system = new System(byId("system"));

const connection = new Connection({
  state: (state) => {
    connectionState = state;
    showConnection();
  },
  refused: askForToken,
  message: (type, data) => {
    if (type === "alert") {
      const isNew = feed.put(data);
      connection.seen(data);
      detail.put(data);
      if (data.notify || (isNew && rank(data.riskLevel) >= rank("high") && isLive(data))) announce(data);
    } else if (type === "detection_result") {
      wall.frame(data);
      showCounts();
    } else if (type === "risk_assessment") {
      wall.assessment(data);
    } else if (type === "camera_status") {
      wall.status(data);
      showCounts();
      showNotice();
    } else if (type === "connection_ack") {
      Object.assign(facts, { llm: data.simulatedLlm, demo: data.demo });
      showWho(data);
      showNotice();
      // without an alert to go on from, one that came since the ledger was read would be missed
      if (data.truncated || !connection.resumes) due = true;
      if (due) load();
      else openLinked();
    } else if (type === "error") {
      toast(capital(data.message));
    }
  },
});

function announce(alert) {
  byId("announcer").textContent = t("alert.announce", {
    level: capital(levelName(alert.riskLevel)), camera: wall.name(cameraId(alert.cameraId)), types: typesOf(alert),
  });
  if (alert.notify) sound.ring(alert.riskLevel); // not in quiet hours, while snoozed or within the cooldown
}

let toastTimer = 0;
function toast(message) {
  const element = byId("toast");
  element.textContent = message;
  element.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { element.hidden = true; }, 6000);
}

function showConnection() {
  byId("connection").dataset.state = connectionState;
  byId("connection").querySelector("span").textContent = t(`connection.${connectionState}`);
}

/** A viewer sees no buttons that would be refused; a proven name needs no field. */
function showWho({ role, name }) {
  document.documentElement.dataset.role = role;
  if (!name) return;
  operator.value = name;
  operator.readOnly = true;
}

function showCounts() {
  const { cameras } = wall;
  const online = cameras.filter((camera) => camera.running && (camera.status === "online" || camera.status === "degraded")).length;
  byId("gauge-cameras").textContent = cameras.length ? `${online} / ${cameras.length}` : "–";
  const { standing } = feed;
  byId("gauge-alerts").textContent = String(standing.length);
  byId("gauge-alerts").dataset.level = standing.map((alert) => alert.riskLevel).sort((a, b) => rank(b) - rank(a))[0] ?? "";
  byId("view-alerts").textContent = standing.length ? String(standing.length) : "";
  byId("view-cameras").textContent = cameras.length ? String(cameras.length) : "";
  document.title = standing.length ? `(${standing.length}) Dangerous Driving` : "Dangerous Driving";
  wall.alerts(Map.groupBy(standing, (alert) => cameraId(alert.cameraId)));
}

function showNotice() {
  const { cameras } = wall;
  const count = (kind) => cameras.filter((camera) => camera.kind === kind).length;
  const many = (kind) => (count(kind) ? t(`cameras.${kind}.${count(kind) === 1 ? "1" : "n"}`, { n: count(kind) }) : "");
  const parts = [many("simulated"), many("replay"), facts.llm ? t("llm.simulated") : ""].filter(Boolean);
  const notice = byId("notice");
  notice.hidden = !(parts.length || facts.demo);
  notice.replaceChildren(make("b", "", t(facts.demo ? "demo" : "not.live")), parts.length ? parts.join(" · ") : t("demo.open"));
}

function showStatus() {
  const waiting = status ? (status.tasks.pending ?? 0) + (status.tasks.claimed ?? 0) : null;
  byId("gauge-tasks").textContent = waiting === null ? "–" : String(waiting);
  const keys = status?.keys ?? [];
  byId("gauge-keys").textContent = keys.length ? `${keys.filter((key) => key.state === "available").length} / ${keys.length}` : "–";
  const lags = Object.values(status?.lag ?? {});
  byId("gauge-lag").textContent = lags.length ? String(lags.reduce((sum, lag) => sum + lag, 0)) : "–";
  if (status) system.show(status);
}

async function readStatus() {
  try {
    status = await get("api/status");
  } catch {
    status = null; // the connection's state says why
  }
  showStatus();
}

function askForToken(reason = "") {
  const dialog = byId("login");
  const over = reason.includes("expired");
  byId("login-problem").textContent = over ? t("login.over") : token.get() ? t("login.wrong") : "";
  if (!dialog.open) dialog.showModal();
  byId("token").select();
}

byId("login").addEventListener("cancel", (event) => event.preventDefault());
byId("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(byId("token").value);
  byId("login").close();
  start();
});

// views

function showView(name) {
  const view = VIEWS.includes(name) ? name : "alerts";
  document.documentElement.dataset.view = view;
  for (const button of document.querySelectorAll("[data-show]")) {
    if (button.dataset.show === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  if (view === "history") history.show();
  else history.hide();
  if (view === "system") readStatus();
}

for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    // its address can be kept, and the browser's way back works
    if (location.hash.slice(1) === button.dataset.show) showView(button.dataset.show);
    else location.hash = button.dataset.show;
  });
}
addEventListener("hashchange", follow);

/** Show what the address names: a view, or one alert. */
function follow() {
  showView(location.hash.slice(1));
  linked = linkedAlert(location.hash);
  if (linked === null) byId("detail").close();
  else if (!due) openLinked();
}

function linkedAlert(hash) {
  if (!hash.startsWith(LINK)) return null;
  const id = hash.slice(LINK.length);
  try {
    return decodeURIComponent(id);
  } catch {
    return id; // no alert has such an id
  }
}

/** Open the alert whose link was followed, if one waits for that. */
async function openLinked() {
  const id = linked;
  if (id === null) return;
  let alert = feed.alert(id);
  try {
    alert ??= (await get(`api/alerts/${encodeURIComponent(id)}`)).alert;
  } catch (error) {
    const unknown = error.status === 404 || error.status === 422;
    if (error instanceof NotAuthorised) askForToken(error.message);
    else if (!unknown) toast(error.message);
    if (!unknown) return; // tried again with the next connection
  }
  if (id !== linked) return;
  linked = null;
  if (alert) {
    detail.open(alert);
  } else {
    toast(t("alert.unknown"));
    leaveLink();
  }
}

/** The same link can be followed again. */
function leaveLink() {
  if (location.hash.startsWith(LINK)) window.history.replaceState(null, "", "#alerts");
}
byId("detail").addEventListener("close", () => { if (linked === null && !detail.shown) leaveLink(); });

// sound, language, keyboard

function showSound() {
  byId("sound").setAttribute("aria-pressed", String(sound.isOn()));
  const words = t(sound.isOn() ? "sound.on" : "sound.off");
  byId("sound").querySelector("span").textContent = words;
  byId("sound").setAttribute("aria-label", words); // on a phone it is an icon alone
}
byId("sound").addEventListener("click", () => {
  sound.switchTo(!sound.isOn());
  showSound();
});

byId("language").value = current();
byId("language").addEventListener("change", () => {
  choose(byId("language").value);
  showSound();
  showConnection();
  showNotice();
  showStatus();
  wall.redraw();
  feed.redraw();
  if (document.documentElement.dataset.view === "history") history.show();
});

byId("help-open").addEventListener("click", () => byId("help").showModal());
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog[open]")) return;
  if (event.key === "?") byId("help").showModal();
  else if (document.documentElement.dataset.view !== "alerts") return;
  else if (event.key === "j" || event.key === "ArrowDown") feed.move(1);
  else if (event.key === "k" || event.key === "ArrowUp") feed.move(-1);
  else if (event.key === "n") feed.moveToNewest();
  else return;
  event.preventDefault();
});

let reading = null;
let retry = 0;
let failures = 0;

/** Read from the ledger what is due, once at a time. Returns whether the bridge takes our token. */
function load() {
  reading ??= read().finally(() => { reading = null; });
  return reading;
}

async function read() {
  clearTimeout(retry);
  try {
    while (due) {
      due = false; // a connection may say again that it is, meanwhile
      for (const camera of await get("api/cameras")) wall.status(camera);
      for (const alert of await feed.refresh()) {
        connection.seen(alert);
        detail.put(alert);
      }
    }
    failures = 0;
    openLinked();
  } catch (error) {
    due = true;
    if (error instanceof NotAuthorised) {
      askForToken(error.message);
      return false;
    }
    toast(error.message);
    const pause = Math.min(LATEST_RETRY, SOONEST_RETRY * 2 ** failures) * (0.5 + Math.random() / 2);
    failures += 1;
    // without a connection, the next one asks
    retry = setTimeout(() => { if (connectionState === "live") load(); }, pause);
  }
  showCounts();
  showNotice();
  return true;
}

let gauges = 0;
async function start() {
  if (!(await load())) return;
  clearInterval(gauges);
  gauges = setInterval(readStatus, GAUGES_EVERY);
  readStatus();
  connection.open();
}

showSound();
follow();
start();
