// The words of a query where they stand in a text, in whatever form.

import { clean, h, oneLine } from "./dom.js";

const WORD = /[\p{L}\p{N}\p{M}]+/gu;
const ENDING = /(?:ings?|edly|ed|ers?|ions?|ies|es|ly|s|e|y)$/;
const BEFORE = 40; // characters of an excerpt before the first word
const ROOM = 4; // letters that a word may have more than its stem

const stem = (word) => {
  const cut = word.replace(ENDING, "");
  return cut.length >= 3 ? cut : word;
};

// Where words of the query are in a text: [start, end] of each.
function places(text, words) {
  const stems = words.flatMap((word) => word.toLowerCase().match(WORD) ?? []).map(stem);
  const isForm = (word, one) => one.length >= 3 && word.startsWith(one) && word.length - one.length <= ROOM;
  const found = [];
  for (const match of text.matchAll(WORD)) {
    const word = match[0].toLowerCase();
    if (stems.some((one) => word === one || isForm(word, one))) {
      found.push([match.index, match.index + match[0].length]);
    }
  }
  return found;
}

// The text as nodes, with <mark> around the words.
export function marked(text, words) {
  const nodes = [];
  let end = 0;
  for (const [from, to] of places(text, words)) {
    nodes.push(text.slice(end, from), h("mark", {}, text.slice(from, to)));
    end = to;
  }
  return [...nodes, text.slice(end)];
}

// The part of a text that has most of the words, as nodes.
export function excerpt(text, words, length) {
  const line = oneLine(text);
  if (line.length <= length) return marked(line, words);
  const found = places(line, words);
  let best = { start: 0, hits: 0 };
  for (const [from] of found) {
    const start = Math.max(0, from - BEFORE);
    const hits = found.filter(([a, b]) => a >= start && b <= start + length).length;
    if (hits > best.hits) best = { start, hits };
  }
  if (best.start + length > line.length) best.start = line.length - length;
  const space = line.slice(best.start, best.start + BEFORE).indexOf(" "); // not every script has some
  const start = best.start === 0 ? 0 : best.start + space + 1;
  const end = start + length >= line.length ? line.length : line.lastIndexOf(" ", start + length);
  const part = line.slice(start, end > start ? end : start + length);
  return [start > 0 ? "… " : "", ...marked(part, words), start + part.length < line.length ? " …" : ""];
}

// The words of a query that a hit has; where the index does not know, the longer ones.
export function wordsOf(hit, query) {
  const known = hit.explanation?.words ?? [];
  return known.length ? known : clean(query).split(/\s+/).filter((word) => word.length > 3);
}
