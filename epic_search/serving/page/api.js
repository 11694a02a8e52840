// Requests to the server, and what its answers mean when they are no success.

const TOKEN = "epic-search-token";
const SECONDS = 90; // the server has its own, shorter limit

let token = read();

function read() {
  try { return sessionStorage.getItem(TOKEN) ?? ""; } catch { return ""; }
}

export function setToken(text) {
  token = text.trim();
  try { sessionStorage.setItem(TOKEN, token); } catch { /* it lasts as long as the page, then */ }
}

export const hasToken = () => token !== "";

// What went wrong, in words. `status` 0: nobody answered. `position`: of the wrong character of a filter.
export class Problem extends Error {
  constructor(status, { message, hint = null, position = null }, wait = null) {
    super(message);
    Object.assign(this, { status, hint, position, wait });
  }

  // Whether the same request may succeed by itself in a moment.
  get passes() {
    return [0, 429, 503].includes(this.status);
  }
}

// The answer as JSON; throws Problem, or AbortError when `signal` says so.
export async function api(method, path, { body = null, signal = null } = {}) {
  const url = new URL(path, document.baseURI);
  url.hash = "";
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== null) headers["Content-Type"] = "application/json";
  const limit = AbortSignal.timeout(1000 * SECONDS);
  let response;
  let answer;
  try {
    response = await fetch(url, {
      method,
      headers,
      body: body === null ? null : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      credentials: "omit",
    });
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (response && error instanceof SyntaxError) {
      const hint = "look at what stands between this page and the server";
      throw new Problem(response.status, { message: "the answer is not one of epic-search", hint });
    }
    throw new Problem(0, {
      message: "the server does not answer",
      hint: "it may have been stopped, or the network is gone; this page goes on by itself when it is back",
    });
  }
  if (response.ok) return answer;
  const wait = Number(response.headers.get("Retry-After")) || null;
  throw new Problem(response.status, answer.error ?? { message: `the server said ${response.status}` }, wait);
}

const segment = encodeURIComponent;

export const indexes = () => api("GET", "indexes").then((answer) => answer.indexes);
export const search = (body, signal) => api("POST", "search", { body, signal });
export const openDocument = (index, id) => api("GET", `indexes/${segment(index)}/documents/${segment(id)}`);
export const taught = (index) => api("GET", `indexes/${segment(index)}/demonstrations`).then((answer) => answer.taught);
export const mapOf = (index) => api("GET", `indexes/${segment(index)}/map`);
// Ids may be too long, and too many, for an address.
export const placesOf = (index, documents, signal) =>
  api("POST", `indexes/${segment(index)}/map`, { body: { documents }, signal });

export const teach = (index, lesson) =>
  api("POST", `indexes/${segment(index)}/demonstrations`, { body: { lessons: [lesson] } });

export const forget = (index, pair) =>
  api("POST", `indexes/${segment(index)}/demonstrations/forget`, { body: { query: pair.query, labels: [pair.label] } });
