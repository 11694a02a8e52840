// The corpus in a plane: a dot for each document of a sample, the hits and what was taught marked on it.

import { mapOf, placesOf } from "./api.js";
import { clean, count, find, oneLine, short } from "./dom.js";

const REACH = 14; // pixels around a dot in which it is meant
const MARGIN = 14;
const MARKED = 100; // documents marked at most

export class CorpusMap {
  #sample = [];
  #spots = new Map(); // where documents are, by id
  #marked = []; // spots drawn above the others: {id, title, x, y, kind, rank}
  #named = null; // the spot that is pointed at
  #wanted = null;
  #asking = null;

  constructor({ open }) {
    this.open = open;
    this.canvas = find("map");
    this.name = find("map-name");
    new ResizeObserver(() => this.#draw()).observe(this.canvas);
    addEventListener("themechange", () => this.#draw());
    this.canvas.addEventListener("pointermove", (event) => this.#point(this.#near(event)));
    this.canvas.addEventListener("pointerleave", () => this.#point(null));
    this.canvas.addEventListener("blur", () => this.#point(null));
    this.canvas.addEventListener("click", (event) => this.#openAt(this.#near(event)));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  // Ask for the map of an index. It is not needed for anything else: without it the page says so and goes on.
  async load(index, documents) {
    this.index = index;
    this.#spots.clear();
    this.#sample = [];
    this.#marked = [];
    this.#draw();
    find("map-about").textContent = "is being drawn …";
    try {
      const spots = spotsOf(await mapOf(index));
      if (index !== this.index) return;
      this.#sample = spots;
      for (const spot of spots) this.#spots.set(spot.id, spot);
      const part = spots.length < documents ? `${spots.length.toLocaleString("en")} of ` : "";
      find("map-about").textContent = `${part}${count(documents, "document")}, alike ones near each other`;
      if (this.#wanted) await this.mark(...this.#wanted);
      this.#draw();
    } catch (problem) {
      if (index === this.index) find("map-about").textContent = `cannot be drawn: ${problem.message}`;
    }
  }

  // Mark hits of the query, hits of the related one, and taught documents, each as ids, the best first.
  async mark(hits, related, taught) {
    this.#wanted = [hits, related, taught];
    if (!this.#sample.length) return;
    const kinds = new Map();
    hits.forEach((id, i) => kinds.set(id, { kind: "hit", rank: i + 1 }));
    related.forEach((id, i) => kinds.has(id) || kinds.set(id, { kind: "related", rank: i + 1 }));
    const rings = new Set(taught);
    const ids = [...new Set([...kinds.keys(), ...rings])].slice(0, MARKED);
    const unknown = ids.filter((id) => !this.#spots.has(id));
    this.#asking?.abort();
    if (unknown.length) {
      this.#asking = new AbortController();
      try {
        const found = spotsOf(await placesOf(this.index, unknown, this.#asking.signal));
        for (const spot of found) this.#spots.set(spot.id, spot);
      } catch {
        return; // asked again with the next search
      }
    }
    const mark = (id) => ({ ...this.#spots.get(id), ...kinds.get(id), ring: rings.has(id) });
    this.#marked = ids.filter((id) => this.#spots.has(id)).map(mark);
    const shown = this.#marked.filter(({ kind }) => kind === "hit").length;
    find("map-text").textContent =
      `A map of ${count(this.#sample.length, "document")}, alike ones near each other. ` +
      `${count(shown, "hit is", "hits are")} marked. The arrow keys go from hit to hit, Enter opens one.`;
    this.#draw();
  }

  #place(spot) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    return [MARGIN + ((spot.x + 1) / 2) * (width - 2 * MARGIN), MARGIN + ((1 - spot.y) / 2) * (height - 2 * MARGIN)];
  }

  #near(event) {
    const box = this.canvas.getBoundingClientRect();
    const distance = (spot) => {
      const [x, y] = this.#place(spot);
      return Math.hypot(x - (event.clientX - box.left), y - (event.clientY - box.top));
    };
    const nearest = (spots) => spots.reduce((best, spot) => {
      const far = distance(spot);
      return far <= best.far ? { spot, far } : best;
    }, { spot: null, far: REACH }).spot;
    return nearest(this.#marked) ?? nearest(this.#sample);
  }

  #point(spot) {
    if (spot?.id === this.#named?.id) return;
    this.#named = spot;
    this.name.hidden = spot === null;
    this.canvas.classList.toggle("on-spot", spot !== null);
    const rank = spot?.rank ? `${spot.rank}. ` : "";
    if (spot) this.name.textContent = `${rank}${oneLine(spot.title) || short(spot.id, 80)}`;
    this.#draw();
  }

  #openAt(spot) {
    if (spot) this.open(spot);
  }

  #key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter") this.#openAt(this.#named);
    else if (step === undefined) return;
    else if (this.#marked.length) {
      const at = this.#marked.findIndex((spot) => spot.id === this.#named?.id);
      const next = at < 0 ? (step > 0 ? 0 : this.#marked.length - 1) : at + step;
      this.#point(this.#marked[(next + this.#marked.length) % this.#marked.length]);
    }
    event.preventDefault();
    event.stopPropagation();
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const scale = devicePixelRatio || 1;
    Object.assign(this.canvas, { width: width * scale, height: height * scale });
    const ink = getComputedStyle(this.canvas);
    const colour = (name) => ink.getPropertyValue(name);
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const disc = (spot, radius, fill) => {
      pen.beginPath();
      pen.arc(...this.#place(spot), radius, 0, 2 * Math.PI);
      if (fill) { pen.fillStyle = fill; pen.fill(); }
    };
    pen.globalAlpha = this.#marked.length ? 0.45 : 0.8;
    for (const spot of this.#sample) disc(spot, 1.7, colour("--dot"));
    pen.globalAlpha = 1;
    for (const spot of [...this.#marked].reverse()) {
      if (spot.ring) {
        disc(spot, 9);
        pen.lineWidth = 2.5;
        pen.strokeStyle = colour("--taught");
        pen.stroke();
      }
      if (!spot.kind) { disc(spot, 3, colour("--taught")); continue; }
      disc(spot, spot.rank === 1 ? 6.5 : 4.5, colour(spot.kind === "hit" ? "--accent" : "--related"));
    }
    if (this.#named) {
      disc(this.#named, 7);
      pen.lineWidth = 2;
      pen.strokeStyle = colour("--ink");
      pen.stroke();
    }
  }
}

const spotsOf = ({ ids, titles, x, y }) => ids.map((id, i) => ({ id, title: clean(titles[i]), x: x[i], y: y[i] }));
