// The WebSocket: connects, resumes after a break, and says how it stands.

import { token } from "./api.js";

const SUBPROTOCOL = "dangerous-driving.v1";
const NOT_AUTHORISED = 4401;
const PING_EVERY = 15_000;
const SILENT_FOR = 40_000; // no message at all, although pings are answered: the line is dead
const LONGEST_PAUSE = 15_000;

const base64url = (text) =>
  btoa(String.fromCharCode(...new TextEncoder().encode(text))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

export class Connection {
  #socket = null;
  #attempt = 0;
  #lastHeard = 0;
  #newest = null; // the alert that changed last, of those that were seen
  #retry = 0;

  /** Whether this connection asked for what had changed since the newest alert: none was known before the first. */
  resumes = false;

  /** @param {{message: (type: string, data: object) => void, state: (state: string) => void, refused: (reason: string) => void}} on */
  constructor(on) {
    this.on = on;
    setInterval(() => this.#beat(), PING_EVERY);
    addEventListener("online", () => this.open());
  }

  /** An alert has been seen: what changed after the newest of them is sent again on the next connection. */
  seen(alert) {
    if (!this.#newest || alert.updatedAt >= this.#newest.updatedAt) this.#newest = alert;
  }

  open() {
    clearTimeout(this.#retry);
    this.#socket?.close();
    this.on.state(this.#attempt ? "reconnecting" : "connecting");
    const address = new URL("ws", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.resumes = Boolean(this.#newest);
    if (this.resumes) address.searchParams.set("last", `${this.#newest.alertId}:${this.#newest.version}`);
    const protocols = token.get() ? [SUBPROTOCOL, `bearer.${base64url(token.get())}`] : [SUBPROTOCOL];
    const socket = new WebSocket(address, protocols);
    this.#socket = socket;
    this.#lastHeard = Date.now();
    socket.addEventListener("message", (event) => {
      if (socket !== this.#socket) return;
      this.#lastHeard = Date.now();
      const { type, data } = JSON.parse(event.data);
      if (type === "connection_ack") {
        this.#attempt = 0;
        this.on.state("live");
      }
      this.on.message(type, data);
    });
    socket.addEventListener("close", (event) => {
      if (socket !== this.#socket) return;
      this.#socket = null;
      if (event.code === NOT_AUTHORISED) {
        this.on.state("refused");
        this.on.refused(event.reason);
        return;
      }
      this.#again();
    });
  }

  send(type, data = {}) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type, data }));
  }

  #again() {
    this.on.state("reconnecting");
    // spread out, so that a thousand pages do not come back in the same moment
    const pause = Math.min(LONGEST_PAUSE, 500 * 2 ** this.#attempt) * (0.5 + Math.random() / 2);
    this.#attempt += 1;
    this.#retry = setTimeout(() => this.open(), pause);
  }

  #beat() {
    if (!this.#socket) return;
    if (Date.now() - this.#lastHeard > SILENT_FOR) {
      const dead = this.#socket;
      this.#socket = null;
      dead.close();
      this.#again();
    } else {
      this.send("ping");
    }
  }
}
