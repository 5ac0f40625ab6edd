// Talks to the bridge over HTTP, with the token if there is one.

const KEY = "dangerous-driving.token";

export class NotAuthorised extends Error {} // the text is the bridge's

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  const response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(15_000) });
  if (!response.ok) {
    const { detail } = await response.json().catch(() => ({}));
    if (response.status === 401) throw new NotAuthorised(detail ?? "");
    const { status } = response;
    throw Object.assign(new Error(typeof detail === "string" ? detail : `the bridge answered ${status}`), { status });
  }
  return response;
}

/** The JSON at a path. */
export const get = async (path) => (await request(path)).json();

/** Send JSON, receive JSON. */
export const post = async (path, body) =>
  (await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  })).json();

/** The bytes of a picture; `priority` is the browser's word ("low", "auto"). */
export const picture = async (path, priority = "auto") => (await request(path, { priority })).blob();

const part = encodeURIComponent;

export const framePath = (frame) =>
  `api/frames/${part(frame.cameraId)}/${part(frame.messageId)}/image?at=${part(frame.timestamp)}`;

// the picture changes with the group that was seen last, and so does its address
export const alertPicturePath = (alert) => `api/alerts/${part(alert.alertId)}/image?of=${part(alert.lastTaskId)}`;
