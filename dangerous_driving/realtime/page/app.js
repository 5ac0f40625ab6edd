// Puts the page together.

import { get, NotAuthorised, token } from "./api.js";
import { Connection } from "./connection.js";
import { Feed } from "./feed.js";
import { cameraId, rank, typesOf, words } from "./text.js";
import { Wall } from "./wall.js";

const byId = (id) => document.getElementById(id);
const GAUGES_EVERY = 5_000;
const STATES = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", refused: "Token needed" };
const OPERATOR = "dangerous-driving.operator";

const operator = byId("operator");
operator.value = localStorage.getItem(OPERATOR) ?? "";
operator.addEventListener("change", () => localStorage.setItem(OPERATOR, operator.value.trim()));

const facts = { llm: false, demo: false };
const wall = new Wall(byId("tiles"), byId("no-cameras"));
const feed = new Feed(
  { list: byId("alerts"), empty: byId("no-alerts"), older: byId("older"), state: byId("filter-state"), level: byId("filter-level") },
  {
    name: (camera) => wall.name(camera),
    operator: () => operator.value.trim() || "operator",
    changed: showCounts,
    failed: toast,
  });

const connection = new Connection({
  state: (state) => {
    byId("connection").dataset.state = state;
    byId("connection").querySelector("span").textContent = STATES[state];
  },
  refused: askForToken,
  message: (type, data) => {
    if (type === "alert") {
      const isNew = feed.put(data);
      connection.seen(data.updatedAt);
      if (data.notify || (isNew && rank(data.riskLevel) >= rank("high") && data.state !== "closed")) announce(data);
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
      showNotice();
      if (data.truncated || !loaded) load();
    } else if (type === "error") {
      toast(words(data.message));
    }
  },
});

function announce(alert) {
  const where = wall.name(cameraId(alert.cameraId));
  byId("announcer").textContent = `${words(alert.riskLevel)} alert, ${where}: ${typesOf(alert)}`;
}

let toastTimer = 0;
function toast(message) {
  const element = byId("toast");
  element.textContent = message;
  element.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { element.hidden = true; }, 6000);
}

function showCounts() {
  const { cameras } = wall;
  const online = cameras.filter((camera) => camera.status === "online" || camera.status === "degraded").length;
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
  const cameraWords = (number, word) => `${number} ${word} ${number === 1 ? "camera" : "cameras"}`;
  const parts = [
    count("simulated") ? `${cameraWords(count("simulated"), "simulated")}, rendered scenes` : "",
    count("replay") ? `${cameraWords(count("replay"), "replayed")}, recorded video in a loop` : "",
    facts.llm ? "risk levels and descriptions by a simulated LLM" : "",
  ].filter(Boolean);
  const notice = byId("notice");
  notice.hidden = !(parts.length || facts.demo);
  const label = document.createElement("b");
  label.textContent = facts.demo ? "Demo" : "Not live";
  notice.replaceChildren(label, parts.length ? parts.join(" · ") : "on this machine, open to everyone who can reach it");
}

async function showGauges() {
  try {
    const status = await get("api/status");
    const waiting = (status.tasks.pending ?? 0) + (status.tasks.claimed ?? 0);
    byId("gauge-tasks").textContent = String(waiting);
    const ready = status.keys.filter((key) => key.state === "available").length;
    byId("gauge-keys").textContent = status.keys.length ? `${ready} / ${status.keys.length}` : "–";
  } catch {
    byId("gauge-tasks").textContent = "–"; // the connection's state says why
    byId("gauge-keys").textContent = "–";
  }
}

function askForToken() {
  const dialog = byId("login");
  byId("login-problem").textContent = token.get() ? "This token is not accepted." : "";
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

for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    document.documentElement.dataset.view = button.dataset.show;
    for (const other of document.querySelectorAll("[data-show]")) other.setAttribute("aria-pressed", String(other === button));
  });
}

let loaded = false;

/** Cameras and newest alerts from the ledger. Returns whether the bridge takes our token. */
async function load() {
  try {
    for (const status of await get("api/cameras")) wall.status(status);
    for (const alert of await feed.refresh()) connection.seen(alert.updatedAt);
    loaded = true;
  } catch (error) {
    if (error instanceof NotAuthorised) {
      askForToken();
      return false;
    }
    toast(error.message); // once the connection stands, it is tried again
  }
  showCounts();
  showNotice();
  return true;
}

let gauges = 0;
async function start() {
  if (!(await load())) return;
  clearInterval(gauges);
  gauges = setInterval(showGauges, GAUGES_EVERY);
  showGauges();
  connection.open();
}

start();
