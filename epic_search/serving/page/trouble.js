// What went wrong, said to a person with what to do about it; what passes is tried again by itself.

import { find, h } from "./dom.js";

const FIRST_WAIT = 1; // seconds; doubled each time
const LONGEST_WAIT = 8;

const HEADINGS = {
  0: "No answer",
  401: "A token is needed",
  403: "Not allowed from here",
  404: "Not there",
  408: "Too slow",
  413: "Too much at once",
  422: "That cannot be searched",
  429: "The server is busy",
  500: "Something went wrong in the server",
  503: "The server cannot answer now",
  504: "No answer in time",
};

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");

export class Trouble {
  #timer = null;
  #times = 0;
  #act = null; // what failed

  constructor() {
    this.box = find("trouble");
  }

  // Nothing is wrong any more; or, with `act`, not with that.
  clear(act = this.#act) {
    if (act !== this.#act) return;
    clearTimeout(this.#timer);
    this.#times = 0;
    this.box.hidden = true;
    this.box.replaceChildren();
  }

  // `act` failed; `again()` does it once more.
  show(problem, act, again) {
    this.#act = act;
    clearTimeout(this.#timer);
    const retry = h("button", { type: "button", onclick: () => { clearTimeout(this.#timer); again(); } }, "Try again");
    const parts = [
      h("strong", {}, HEADINGS[problem.status] ?? `The server said ${problem.status}`),
      h("span", { dir: "auto" }, `${sentence(problem.message)} ${sentence(advice(problem))}`),
    ];
    if (problem.status !== 422) parts.push(retry);
    const isSame = !this.box.hidden && this.box.dataset.said === parts[1].textContent;
    this.box.dataset.said = parts[1].textContent;
    if (!isSame) this.box.replaceChildren(h("p", {}, ...parts)); // what is said already is not read out again
    this.box.hidden = false;
    if (problem.passes) {
      const wait = Math.min(LONGEST_WAIT, Math.max(problem.wait ?? 0, FIRST_WAIT * 2 ** this.#times));
      this.#times += 1;
      this.#timer = setTimeout(again, 1000 * wait);
    }
  }
}

function advice(problem) {
  if (problem.status === 429) return "this page asks again by itself in a moment";
  if (problem.status === 504) return "narrow the search with a filter or fewer words, or try again later";
  if (problem.status === 503) return `${problem.hint ? `${problem.hint}; ` : ""}this page asks again by itself`;
  return problem.hint ?? "";
}
