// The page: what is searched, and what happens when something is taught. Its parts are in the files beside.

import { Address } from "./address.js";
import * as server from "./api.js";
import { calm, count, find, h, short } from "./dom.js";
import { Filters } from "./facets.js";
import { Ranking } from "./hits.js";
import { wordsOf } from "./highlight.js";
import { listen } from "./keys.js";
import { CorpusMap } from "./map.js";
import { leave, read } from "./reader.js";
import { Demonstrations, keyOf, percent } from "./taught.js";
import { Trouble } from "./trouble.js";

const TYPING = 280; // milliseconds without a key after which a search begins
const PAGE = 10;
const RELATED = 7; // hits of the related query
const MOST = 1000;
const SUGGESTIONS = 5;

const SCORES = {
  hybrid:
    "Ranked by meaning and by words together. A score adds up reciprocal ranks in the two: it tells the order, not " +
    "how alike query and document are.",
  dense: "Ranked by meaning alone. A score is the cosine of query and passage, at most 1.",
  lexical:
    "Ranked by words alone. A score is BM25: the query's words in the passage, rare ones counting more. What was " +
    "taught has no part in it.",
};

const SMALL_WORDS = new Set(
  `a an and are as at be by can do does for from has have how i in into is it its my of on or that the their this to
  what when where which who why with`.split(/\s+/),
);

let indexes = [];
let index = null; // the chosen one, as the server describes it
let loaded = null; // the one whose fields, map and demonstrations are here
let shown = PAGE;
let running = null; // the search that is under way
let results = null; // the latest answers: of the query and, where there is one, of the related query
let isChanging = false;
let typing = null;
let wanted = null; // the id of the document that is to be open
const recent = [];

const query = find("query");
const related = find("related");
const trouble = new Trouble();
const filters = new Filters({ changed: () => fresh() });
const demonstrations = new Demonstrations(find("taught"), find("taught-none"), {
  changed: rerank,
  remove: (pair) => change(() => demonstrations.forget(pair)),
});
const main = new Ranking(find("hits"), { open, teach: (hit) => teach(main, hit) });
const beside = new Ranking(find("related-hits"), {
  compact: true,
  limit: RELATED,
  open,
  teach: (hit) => teach(beside, hit),
});
const map = new CorpusMap({ open });
const address = new Address({ changed: () => attempt(index === null ? begin : () => go(address.read())) });

const mode = () => find("modes").querySelector("input:checked").value;
const asked = () => [query.value.trim(), related.value.trim()].filter((text, i) => i === 0 || text);

// Do something that asks the server; what goes wrong is said, and `again` does it once more.
async function attempt(act, again = () => attempt(act)) {
  try {
    await act();
    trouble.clear(act);
    return true;
  } catch (problem) {
    if (problem.name === "AbortError") return false;
    if (!(problem instanceof server.Problem)) throw problem;
    if (problem.status === 401) askToken(again);
    else if (problem.position !== null) filters.explain(problem);
    else trouble.show(problem, act, again);
    return false;
  }
}

// Change what is taught: one change at a time.
async function change(act) {
  if (isChanging) return;
  isChanging = true;
  try {
    await attempt(act);
  } finally {
    isChanging = false;
    find("undo").hidden = !demonstrations.canUndo;
  }
}

function askToken(again) {
  const dialog = find("token-dialog");
  if (server.hasToken()) {
    find("token-why").textContent = "That was not the right one. Whoever started the server knows it.";
  }
  find("token-form").onsubmit = () => {
    server.setToken(find("token").value);
    find("token").value = "";
    again();
  };
  if (!dialog.open) dialog.showModal();
}

// Everything from the start: the indexes, then what the address says.
async function begin() {
  const place = address.read();
  indexes = await server.indexes();
  trouble.clear();
  if (!indexes.length) {
    const hint = "index some documents with 'epic-search index FILE', then serve them";
    throw new server.Problem(404, { message: "no index can be used now", hint });
  }
  find("index").replaceChildren(...indexes.map(({ name }) => h("option", { value: name }, name)));
  place.q ??= index === null ? query.value : ""; // it may have been typed already
  await go(place);
}

// Search what an address says, and open the document that it names.
async function go(place) {
  wanted = null;
  leave();
  if (!place.isSearched) await searchAgain(place);
  if (place.open) await open({ id: place.open });
}

async function searchAgain(place) {
  query.value = place.q ?? "";
  related.value = place.related ?? "";
  const chosen = indexes.find(({ name }) => name === place.index);
  await choose(chosen ?? indexes[0], place);
  if (place.index && !chosen) {
    const hint = `this is '${index.name}': choose another one above`;
    throw new server.Problem(404, { message: `there is no index '${place.index}' here`, hint });
  }
}

async function choose(chosen, place = { only: [] }) {
  const isOther = chosen !== loaded;
  index = chosen;
  find("index").value = index.name;
  find("about").textContent = `${count(index.documents, "document")} · ${index.encoder.split("/").pop()}`;
  if (isOther) {
    running?.abort(); // its counts are those of the other index's fields
    filters.use(index.fields);
  }
  filters.explain(null);
  filters.chosen = place.only;
  filters.input.value = place.filter ?? "";
  for (const input of find("modes").querySelectorAll("input")) {
    input.disabled = !index.modes.includes(input.value);
    input.checked = input.value === (index.modes.includes(place.mode) ? place.mode : index.modes[0]);
  }
  if (isOther) {
    map.load(index.name, index.documents);
    await demonstrations.load(index.name);
    if (chosen === index) loaded = chosen; // else another index was chosen meanwhile
  }
  await fresh(place.shown ?? PAGE);
}

// A new search, from its first page.
function fresh(hits = PAGE) {
  shown = hits;
  return attempt(() => search());
}

async function search({ moves = false } = {}) {
  clearTimeout(typing);
  running?.abort();
  const [text, other] = asked();
  remember();
  if (!text) return show(null);
  running = new AbortController();
  const { signal } = running;
  find("hits").setAttribute("aria-busy", "true");
  const question = { index: index.name, queries: asked(), k: shown, mode: mode(), explain: true };
  if (filters.text) question.filter = filters.text;
  if (filters.fields.length) question.facets = filters.fields;
  const besides = filters.uncounted;
  const started = performance.now();
  const answers = async () => {
    const first = await server.search(question, signal);
    const one = { index: question.index, query: text, mode: question.mode, k: 1 };
    const counts = besides.map(([filter, facets]) =>
      server.search({ ...one, filter: filter || null, facets }, signal),
    );
    return [first, ...(await Promise.all(counts))];
  };
  const [answer, ...others] = await answers().catch((problem) => {
    if (problem.name !== "AbortError") find("hits").setAttribute("aria-busy", "false");
    find("hits").classList.add("stale");
    throw problem;
  });
  trouble.clear();
  filters.explain(null);
  filters.show([[question.filter ?? "", answer.facets], ...others.map(({ facets }, i) => [besides[i][0], facets])]);
  const seconds = (performance.now() - started) / 1000;
  return show({ query: answer.results[0], related: other ? answer.results[1] : null, seconds }, { moves });
}

// Show answers. Returns how many hits moved: of the query, and of the related one.
function show(answers, { moves = false } = {}) {
  results = answers;
  document.body.dataset.view = answers ? "results" : "start";
  find("hits").setAttribute("aria-busy", "false");
  find("hits").classList.remove("stale");
  if (!moves) find("news").hidden = true;
  const options = (result) => ({
    right: demonstrations.rightFor(result?.query ?? ""),
    canTeach: mode() !== "lexical",
    moves,
  });
  const of = answers?.query ?? null;
  const other = answers?.related ?? null;
  const moved = [main.show(of, options(of)), beside.show(other, options(other))];
  demonstrations.show(pullsOf(of));
  suggest();
  const pull = Math.max(0, ...pullsOf(other).values());
  find("related-pull").hidden = !pull;
  find("related-pull").textContent = `What was taught pulls it with a weight of ${percent(pull)}.`;
  const ids = (ranking) => ranking.hits.map(({ id }) => id);
  map.mark(ids(main), ids(beside), demonstrations.pairs.map((pair) => pair.document).filter(Boolean));
  if (of) describe(of, answers.seconds);
  return moved;
}

function describe(result, seconds) {
  const found = result.hits.length;
  const where = filters.text ? " with this filter" : "";
  const advice = filters.text
    ? "Take a condition out of the filter."
    : mode() === "lexical" ? "No document has these words: try another mode." : "Try other words.";
  find("count").textContent = found
    ? `The best ${found === 1 ? "document" : found}${where}, in ${seconds.toFixed(2)} s`
    : `Nothing was found${where}. ${advice}`;
  const remark = result.remark ? `Remark: ${result.remark}. ` : "";
  find("scores").textContent = found ? `${remark}${SCORES[result.mode]}` : "";
  find("more").hidden = found < shown || shown >= MOST;
}

// Of each taught pair that pulls the query of a result, by its key, how strongly.
const pullsOf = (result) =>
  new Map((result?.taught?.pairs ?? []).filter(({ weight }) => weight > 0).map((pair) => [keyOf(pair), pair.weight]));

function teach(ranking, hit) {
  if (mode() === "lexical") return;
  const text = ranking === main ? results.query.query : results.related.query;
  keep(text);
  return change(() => demonstrations.toggle(text, hit.id));
}

// The index has learned or forgotten a pair: rank both queries anew, and say what that did.
function rerank(news) {
  return attempt(async () => {
    const moved = await search({ moves: true });
    if (results) tell(news, moved);
  });
}

function tell({ kind, pair }, [moved, movedBeside]) {
  const pulled = pullsOf(results.related).get(keyOf(pair)) ?? 0;
  const here = moved ? `${count(moved, "document")} moved` : "No document moved";
  const there = results.related ? `, ${movedBeside || "none"} for the related query` : "";
  const then = kind !== "taught"
    ? "what was taught is taken back."
    : !results.related
      ? "queries like this one are now pulled the same way. Try one beside."
      : pulled
        ? `this pair now also pulls the related query, with a weight of ${percent(pulled)}.`
        : "the related query is too far from this one to be pulled.";
  find("news").querySelector("p").textContent = `${here}${there}: ${then}`;
  find("news").hidden = false;
  const answer = find("news").parentElement; // its beginning, where what is right now stands
  if (answer.getBoundingClientRect().top < 0) answer.scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
}

const undo = () => change(() => demonstrations.undo());

// Queries worth trying beside this one: its words alone, those asked here before, those taught, titles of other hits.
function suggest() {
  const taken = new Set(asked());
  const titles = main.hits.slice(1, 4).map((hit) => short(hit.title, 60)).filter(Boolean);
  const taught = demonstrations.pairs.map((pair) => pair.query).reverse();
  const all = new Set([...bare(query.value), ...recent, ...taught, ...titles]);
  const texts = [...all].filter((text) => !taken.has(text));
  const take = (text) => {
    related.value = text;
    attempt(() => search());
  };
  const chips = texts.slice(0, SUGGESTIONS).map((text) =>
    h("button", { type: "button", class: "chip", dir: "auto", onclick: () => take(text) }, short(text, 60)),
  );
  find("suggestions").replaceChildren(...(related.value ? [] : chips));
}

// A query without its small words, which asks for the same; none where that leaves all or hardly anything.
function bare(text) {
  const words = text.toLowerCase().match(/[\p{L}\p{N}_.'-]+/gu) ?? [];
  const left = words.filter((word) => !SMALL_WORDS.has(word));
  return left.length > 1 && left.length < words.length ? [left.join(" ")] : [];
}

function keep(text) {
  const known = recent.indexOf(text);
  if (known >= 0) recent.splice(known, 1);
  recent.unshift(text);
}

async function open(hit) {
  const result = [results?.query, results?.related].find((one) => one?.hits.some(({ id }) => id === hit.id));
  const found = result?.hits.find(({ id }) => id === hit.id);
  if (result) keep(result.query);
  wanted = hit.id;
  const isOpen = await attempt(async () => {
    const document_ = await server.openDocument(index.name, hit.id);
    if (wanted !== hit.id) return; // somebody has gone elsewhere meanwhile
    address.open(hit.id);
    const words = found ? wordsOf(found, result.query) : [];
    read(document_, { found: found?.text, words, closed: () => address.close() });
  });
  if (!isOpen && wanted === hit.id) address.close();
}

function remember() {
  const text = query.value.trim();
  address.write({
    q: text,
    related: related.value.trim(),
    filter: filters.typed,
    mode: mode() === index.modes[0] ? "" : mode(),
    index: index === indexes[0] ? "" : index.name,
    only: filters.chosen,
    shown,
  });
  document.title = text ? `${short(text, 60)} · epic-search` : "epic-search";
}

function listenToType(input) {
  input.addEventListener("input", () => {
    address.typed();
    clearTimeout(typing);
    typing = setTimeout(() => { if (index) fresh(); }, TYPING);
  });
}

for (const input of [query, related, filters.input]) listenToType(input);

function ask() {
  const asking = index ? fresh() : attempt(begin);
  address.settle();
  return asking;
}

for (const input of [related, filters.input]) {
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    keep(query.value.trim());
    ask();
  });
}
find("search").addEventListener("submit", (event) => {
  event.preventDefault();
  if (query.value.trim()) keep(query.value.trim());
  ask();
});
find("modes").addEventListener("change", () => { if (index) fresh(); });
find("index").addEventListener("change", () => {
  const chosen = indexes.find(({ name }) => name === find("index").value);
  attempt(() => choose(chosen));
});
find("more").addEventListener("click", async () => {
  const first = main.hits.length;
  shown = Math.min(MOST, shown + PAGE);
  if (await attempt(() => search())) main.focus(first);
});
find("undo").addEventListener("click", undo);
listen({ rankings: [main, beside], teach, undo });
attempt(begin);
