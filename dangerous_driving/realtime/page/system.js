// Key pool, lag and tasks: what the platform itself is doing.

import { t } from "./i18n.js";
import { barOf, make } from "./text.js";

const TASKS = ["assessed", "pending", "claimed", "failed", "expired"];

export class System {
  constructor(section) {
    const part = (name) => section.querySelector(`#system-${name}`);
    this.parts = Object.fromEntries(["keys", "lag", "tasks", "model", "clients"].map((name) => [name, part(name)]));
  }

  /** @param {object} status what `api/status` says */
  show(status) {
    const { keys, lag, tasks, model, clients } = this.parts;
    keys.replaceChildren(...(status.keys.length ? status.keys.map(keyRow) : [make("li", "empty", t("system.nokeys"))]));
    lag.replaceChildren(...(status.lag
      ? Object.entries(status.lag).flatMap(([service, waiting]) => [make("dt", "", service), make("dd", "", String(waiting))])
      : [make("dt", "", t("system.nolag")), make("dd")]));
    tasks.replaceChildren(...TASKS.filter((state) => status.tasks[state] || state === "assessed" || state === "pending")
      .flatMap((state) => [make("dt", "", t(`task.${state}`)), make("dd", "", String(status.tasks[state] ?? 0))]));
    model.textContent = status.llmModel;
    clients.textContent = String(status.clients);
  }
}

function keyRow(key) {
  const row = make("li");
  row.dataset.state = key.state;
  const meter = barOf(key.used / key.limit);
  meter.dataset.full = String(key.used >= 0.9 * key.limit);
  const used = t("used", { used: key.used, limit: key.limit });
  const name = make("span", "key", key.label || key.keyHash);
  name.title = key.keyHash;
  row.append(make("i", "health"), name, meter, make("span", "used", used),
    make("span", "standing", [t(`key.${key.state}`), key.reason].filter(Boolean).join(": ")));
  return row;
}
