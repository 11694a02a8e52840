// The filter: what was typed, and values chosen as chips, in one text for the server, whose errors are shown where they
// are in what was typed.

import { count, find, h, short } from "./dom.js";

const FIELDS = 16; // asked for at first, to see which are worth showing
const SHOWN_FIELDS = 4;
const SHOWN_VALUES = 7;
const COUNTED = ["keyword", "int", "bool"];

const quoted = (text) => `"${String(text).replace(/[\\"]/g, "\\$&")}"`;

export class Filters {
  #chosen = new Map(); // field -> values
  #before = new Map(); // field -> its values as counted under the other conditions, and which these were
  #types = {}; // of the index's fields
  #fields = []; // those that are counted
  #isNew = true;

  constructor({ changed }) {
    this.input = find("filter");
    this.error = find("filter-error");
    this.list = find("facets");
    this.changed = changed;
  }

  // Begin anew with the fields of another index.
  use(fields) {
    this.#chosen.clear();
    this.#before.clear();
    this.#types = fields;
    this.#fields = Object.keys(fields).filter((name) => COUNTED.includes(fields[name])).slice(0, FIELDS);
    this.#isNew = true;
    this.list.hidden = true;
    const [name, type] = Object.entries(fields).find(([field]) => field !== "id") ?? ["id", "keyword"];
    this.input.placeholder = `${name} ${type === "keyword" ? "= …" : type === "bool" ? "= true" : ">= …"}`;
  }

  get typed() {
    return this.input.value.trim();
  }

  get fields() {
    return this.#fields;
  }

  // The values chosen as chips, as pairs of a field and a value.
  get chosen() {
    return [...this.#chosen].flatMap(([field, values]) => [...values].map((value) => [field, value]));
  }

  set chosen(pairs) {
    this.#chosen.clear();
    for (const [field, value] of pairs) {
      if (!Object.hasOwn(this.#types, field)) continue;
      this.#chosen.set(field, (this.#chosen.get(field) ?? new Set()).add(value));
    }
    const keys = this.chosen.map((one) => JSON.stringify(one));
    for (const chip of this.list.querySelectorAll("button")) chip.ariaPressed = keys.includes(chip.dataset.facet);
  }

  // What the server is asked: what was typed comes first, so that positions in it are easily found again.
  get text() {
    return this.#textWithout(null);
  }

  // What has to be counted besides, as pairs of a filter and fields: all fields without any condition, to see which are
  // worth showing, and a field of which values are chosen under the other conditions, to see what can be chosen besides.
  get uncounted() {
    const wanted = new Map();
    if (this.#isNew && this.text) wanted.set("", this.#fields);
    for (const field of this.#fields.filter((name) => this.#chosen.has(name))) {
      const where = this.#textWithout(field);
      if (this.#before.get(field)?.where === where) continue;
      wanted.set(where, [...new Set([...(wanted.get(where) ?? []), field])]);
    }
    return [...wanted];
  }

  #textWithout(field) {
    const one = ([name, values]) => `${quoted(name)} in (${[...values].map(quoted).join(", ")})`;
    const chosen = [...this.#chosen].filter(([name]) => name !== field).map(one);
    if (!chosen.length) return this.typed;
    return [...(this.typed ? [`(${this.typed})`] : []), ...chosen].join(" and ");
  }

  // Say what is wrong with the filter, and where; null: nothing.
  explain(problem) {
    this.error.hidden = problem === null;
    this.input.setAttribute("aria-invalid", String(problem !== null));
    if (problem === null) return this.error.replaceChildren();
    const text = [...this.typed]; // the server counts characters, of which some are two units of a string
    const at = Math.min(problem.position - (this.#chosen.size && text.length ? 1 : 0), text.length);
    const part = (from, to) => text.slice(from, to).join("");
    const words = problem.message.replace(/^filter: /, "");
    const hint = problem.hint ? `; ${problem.hint}` : "";
    this.error.replaceChildren(
      h("code", { dir: "ltr" }, part(0, at), h("mark", {}, part(at, at + 1) || " "), part(at + 1)),
      h("span", {}, `${words[0].toUpperCase()}${words.slice(1)}${hint} (character ${at + 1})`),
    );
  }

  // Chips for the values of the fields, as the server has counted them: pairs of a filter and facets, those of the
  // whole filter first, then what was `uncounted`.
  show(counts) {
    for (const [where, facets] of counts) {
      for (const [field, values] of Object.entries(facets)) {
        if (where === this.#textWithout(field)) this.#before.set(field, { values: values.slice(0, SHOWN_VALUES), where });
      }
    }
    const all = counts.find(([where]) => !where)?.[1];
    if (this.#isNew && all) {
      // A field whose values are all different tells nothing here.
      const tells = (field) => this.#chosen.has(field) || all[field]?.[0]?.documents > 1;
      this.#fields = this.#fields.filter(tells).slice(0, SHOWN_FIELDS);
      this.#isNew = false;
    }
    const [, facets] = counts[0];
    const focused = document.activeElement?.dataset?.facet;
    const groups = this.#fields.map((field) => this.#group(field, facets[field] ?? [])).filter(Boolean);
    this.list.replaceChildren(...groups);
    this.list.hidden = groups.length === 0;
    if (focused) [...this.list.querySelectorAll("button")].find((chip) => chip.dataset.facet === focused)?.focus();
  }

  #group(field, values) {
    const chosen = this.#chosen.get(field) ?? new Set();
    const shown = chosen.size ? this.#besides(field, values, chosen) : values.slice(0, SHOWN_VALUES);
    if (!shown.length) return null;
    const chips = shown.map(({ value, documents }) => this.#chip(field, value, documents, chosen.has(value)));
    const name = h("span", { class: "field-name" }, short(field, 30));
    return h("div", { class: "facet", role: "group", "aria-label": `Only with this ${field}` }, name, ...chips);
  }

  // The values of a field of which some are chosen: those, and the others that can be chosen besides.
  #besides(field, values, chosen) {
    const known = this.#before.get(field)?.values ?? [];
    const missing = [...chosen].filter((value) => !known.some((one) => one.value === value));
    const counted = (value) => values.find((one) => one.value === value)?.documents ?? 0;
    return [...missing.map((value) => ({ value, documents: counted(value) })), ...known];
  }

  #chip(field, value, documents, isChosen) {
    return h(
      "button",
      {
        type: "button",
        class: "chip",
        dir: "auto",
        "data-facet": JSON.stringify([field, value]),
        "aria-pressed": isChosen,
        "aria-label": `${field} ${short(value, 60)}, ${count(documents, "document")}`,
        onclick: () => this.#toggle(field, value),
      },
      short(value, 40),
      h("small", {}, documents.toLocaleString("en")),
    );
  }

  #toggle(field, value) {
    const values = this.#chosen.get(field) ?? new Set();
    if (!values.delete(value)) values.add(value);
    if (values.size) this.#chosen.set(field, values);
    else this.#chosen.delete(field);
    this.changed();
  }
}
