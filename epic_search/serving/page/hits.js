// A ranking: its hits, how they move when it changes, and moving among them by keyboard.

import { calm, clean, h, oneLine, short } from "./dom.js";
import { excerpt, wordsOf } from "./highlight.js";

const MOVE = { duration: 520, easing: "cubic-bezier(.2,.8,.2,1)" };
const EXCERPT = 320;
const SHORT_EXCERPT = 150;
const PAYLOAD_FIELDS = 3;

export class Ranking {
  #hits = [];
  #ranks = new Map(); // of all hits that were found, of those beyond the last that is shown, too
  #current = null; // the id of the hit that has the keyboard

  // open(hit), teach(hit): what is done with a hit. `compact`: less of each; `limit`: how many are shown.
  constructor(list, { compact = false, limit = Infinity, open, teach }) {
    this.list = list;
    this.compact = compact;
    this.limit = limit;
    this.open = open;
    this.teach = teach;
    list.addEventListener("focusin", (event) => this.#focused(event.target.closest("li")));
  }

  get hits() {
    return this.#hits;
  }

  // The hit that has the keyboard, or null.
  get focused() {
    const item = document.activeElement?.closest("li[data-id]");
    return item && this.list.contains(item) ? this.#hits.find((hit) => hit.id === item.dataset.id) : null;
  }

  // Show the hits of `result`; `right`: ids that were taught for its query. With `moves`, compare with what was shown
  // before: hits slide to their new places and say how far they went. Returns how many moved.
  show(result, { right = new Set(), canTeach = true, moves = false } = {}) {
    const before = this.#ranks;
    const places = new Map([...this.list.children].map((item) => [item.dataset.id, item.getBoundingClientRect()]));
    const hadFocus = this.focused !== null;
    const found = result?.hits ?? [];
    this.#ranks = new Map(found.map((hit, i) => [hit.id, i + 1]));
    this.#hits = found.slice(0, this.limit);
    let moved = 0;
    const items = this.#hits.map((hit, i) => {
      const rank = i + 1;
      const from = before.get(hit.id);
      const move = !moves || from === rank ? null : from === undefined ? "new" : from - rank;
      if (move !== null) moved += 1;
      return this.#item(hit, { rank, move, result, isRight: right.has(hit.id), canTeach });
    });
    this.list.replaceChildren(...items);
    const stays = (moves || hadFocus) && this.#hits.some((hit) => hit.id === this.#current);
    if (!stays) this.#current = this.#hits[0]?.id ?? null;
    for (const item of items) item.tabIndex = item.dataset.id === this.#current ? 0 : -1;
    if (hadFocus) items.find((item) => item.dataset.id === this.#current)?.focus({ preventScroll: true });
    if (moves && !calm()) slide(items, places);
    return moved;
  }

  // Give the keyboard to the hit `step` places further; true if there is one.
  go(step) {
    const current = this.#hits.findIndex((hit) => hit.id === this.#current);
    const at = this.focused ? this.#hits.indexOf(this.focused) + step : Math.max(0, current);
    const item = this.list.children[at];
    item?.focus();
    return item !== undefined;
  }

  focus(number) {
    this.list.children[number]?.focus();
  }

  #focused(item) {
    if (!item) return;
    this.#current = item.dataset.id;
    for (const other of this.list.children) other.tabIndex = other === item ? 0 : -1;
  }

  #item(hit, { rank, move, result, isRight, canTeach }) {
    const words = wordsOf(hit, result.query);
    const text = excerpt(hit.text, words, this.compact ? SHORT_EXCERPT : EXCERPT);
    const name = oneLine(hit.title) || short(hit.text, 80);
    const open = () => this.open(hit);
    const title = h("button", { class: "title", type: "button", tabindex: -1, dir: "auto", onclick: open }, name);
    const right = h(
      "button",
      {
        class: "right",
        type: "button",
        "aria-pressed": isRight,
        "aria-label": `${isRight ? "Taught as right" : "This is right"}: ${name}`,
        onclick: () => this.teach(hit),
      },
      h("span", { class: "tick", "aria-hidden": "true" }, "✓"),
      isRight ? " Right" : " This is right",
    );
    const label = [`${rank}. ${name}`, isRight && "taught as right", move && moveInWords(move)].filter(Boolean);
    const item = h(
      "li",
      { "data-id": hit.id, "aria-label": label.join(", "), class: isRight ? "is-right" : null },
      h("div", { class: "rank", "aria-hidden": "true" }, String(rank), badge(move)),
      h(
        "div",
        { class: "what" },
        title,
        h("p", { class: "text", dir: "auto" }, ...text),
        this.compact ? null : h("p", { class: "facts" }, ...facts(hit, result.mode)),
      ),
      canTeach ? right : null,
    );
    item.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target === item) this.open(hit);
    });
    return item;
  }
}

const moveInWords = (move) =>
  move === "new" ? "new here" : `moved ${move > 0 ? "up" : "down"} ${Math.abs(move)}`;

function badge(move) {
  if (move === null) return null;
  const [kind, text] = move === "new" ? ["new", "new"] : move > 0 ? ["up", `▲ ${move}`] : ["down", `▼ ${-move}`];
  return h("span", { class: `badge ${kind}`, title: moveInWords(move) }, text);
}

// Each item from where it was (by id) to where it is; those that were not there rise from below.
function slide(items, places) {
  for (const item of items) {
    const was = places.get(item.dataset.id);
    const is = item.getBoundingClientRect();
    if (was === undefined) {
      item.animate([{ opacity: 0, transform: "translateY(24px)" }, { opacity: 1, transform: "none" }], MOVE);
    } else if (Math.abs(was.top - is.top) > 1) {
      item.animate([{ transform: `translateY(${was.top - is.top}px)` }, { transform: "none" }], MOVE);
    }
  }
}

// Why the hit is here, and what else is known of it.
function facts(hit, mode) {
  const { dense, lexical, words = [] } = hit.explanation ?? {};
  const found = [];
  if (mode === "dense") found.push(`cosine ${hit.score.toFixed(3)}`);
  else if (mode === "lexical") found.push(`BM25 ${hit.score.toFixed(1)}`);
  else {
    found.push(`score ${hit.score.toFixed(3)}`);
    found.push(dense ? `${nth(dense.rank)} by meaning` : "not among the first by meaning");
    found.push(lexical ? `${nth(lexical.rank)} by words` : "not found by words");
  }
  const nodes = found.map((text) => h("span", {}, text));
  if (words.length) nodes.push(h("span", { dir: "auto" }, `has ${words.map(clean).join(", ")}`));
  const fields = Object.entries(hit.payload).filter(([, value]) => isShort(value));
  for (const [name, value] of fields.slice(0, PAYLOAD_FIELDS)) {
    nodes.push(h("span", { class: "field", dir: "auto" }, `${short(name, 30)}: `, h("b", {}, short(value, 60))));
  }
  return nodes;
}

const isShort = (value) =>
  ["number", "boolean"].includes(typeof value) ||
  (typeof value === "string" && /^.{1,100}$/.test(value) && !URL.canParse(value));

export function nth(number) {
  const ending = Math.floor((number % 100) / 10) === 1 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[number % 10] ?? "th");
  return `${number}${ending}`;
}
