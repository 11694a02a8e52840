// What the index was taught, as chips that can be removed, and the way back from each change.

import { h, short } from "./dom.js";
import * as server from "./api.js";

const CHIPS = 12;

export class Demonstrations {
  #undo = []; // what takes back the latest changes, the last one last

  // changed(news): called when the index has learned or forgotten something; remove(pair): when a chip's cross is used.
  constructor(list, none, { changed, remove }) {
    this.list = list;
    this.none = none;
    this.changed = changed;
    this.remove = remove;
    this.pairs = [];
    this.index = null;
    this.all = false;
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  async load(index) {
    if (index !== this.index) {
      this.#undo = [];
      this.pairs = [];
    }
    this.index = index;
    const pairs = await server.taught(index);
    if (index === this.index) this.pairs = pairs; // else another index was chosen meanwhile
  }

  // The ids of the documents that were taught for a query.
  rightFor(query) {
    return new Set(this.pairs.filter((pair) => pair.query === query.trim()).map((pair) => pair.document));
  }

  // Teach that a document is right for a query, or take that back where it was taught.
  async toggle(query, id) {
    const known = this.pairs.find((pair) => pair.query === query.trim() && pair.document === id);
    if (known) return this.forget(known);
    await server.teach(this.index, { query, documents: [id] });
    this.pairs = await server.taught(this.index);
    const pair = this.pairs.find((one) => one.query === query.trim() && one.document === id);
    this.#undo.push(() => this.#forget(pair));
    return this.changed({ kind: "taught", pair });
  }

  async forget(pair) {
    await this.#forget(pair);
    this.#undo.push(() => this.#teachAgain(pair));
  }

  async undo() {
    const back = this.#undo.pop();
    if (!back) return;
    try {
      await back();
    } catch (error) {
      this.#undo.push(back);
      throw error;
    }
  }

  // `pulls`: of each pair, by its key, how strongly it pulls the query that is shown (0 to 1).
  show(pulls) {
    const pulling = (pair) => pulls.get(keyOf(pair)) ?? 0;
    const ordered = [...this.pairs].reverse().sort((one, other) => pulling(other) - pulling(one));
    const shown = this.all ? ordered : ordered.slice(0, CHIPS);
    const chips = shown.map((pair) => this.#chip(pair, pulling(pair)));
    if (shown.length < ordered.length) {
      const all = () => {
        this.all = true;
        this.show(pulls);
      };
      const rest = `and ${ordered.length - shown.length} more`;
      chips.push(h("li", {}, h("button", { type: "button", class: "chip", onclick: all }, rest)));
    }
    this.list.replaceChildren(...chips);
    this.none.hidden = this.pairs.length > 0;
  }

  #chip(pair, pull) {
    const right = pair.title || pair.document || pair.passage;
    const words = `${short(pair.query, 60)} → ${short(right, 60)}`;
    const why = pair.stale
      ? "its document is not in the index any more"
      : pull ? `pulls this query with a weight of ${percent(pull)}` : "does not pull this query";
    return h(
      "li",
      { class: `pair${pull ? " pulls" : ""}${pair.stale ? " stale" : ""}`, title: why },
      h(
        "span",
        { dir: "auto" },
        h("q", {}, short(pair.query, 60)),
        h("span", { class: "arrow", role: "img", "aria-label": "is answered by" }, " → "),
        h("b", {}, short(right, 60)),
      ),
      pull ? h("small", {}, percent(pull)) : null,
      h("button", { type: "button", "aria-label": `Forget: ${words}`, onclick: () => this.remove(pair) }, "×"),
    );
  }

  async #teachAgain(pair) {
    const right = pair.document === null ? { passage: pair.passage } : { documents: [pair.document] };
    await server.teach(this.index, { query: pair.query, ...right });
    this.pairs = await server.taught(this.index);
    return this.changed({ kind: "taught", pair });
  }

  async #forget(pair) {
    await server.forget(this.index, pair);
    this.pairs = await server.taught(this.index);
    return this.changed({ kind: "forgotten", pair });
  }
}

export const keyOf = (pair) => JSON.stringify([pair.query, pair.label]);
export const percent = (share) => `${Math.round(100 * share)} %`;
