// A document in full, in a dialog: its passages without their overlaps, the one that was found marked, its fields.

import { clean, find, h, oneLine, short } from "./dom.js";
import { marked } from "./highlight.js";

const MOST_OVERLAP = 4000; // characters
const LEAST_OVERLAP = 3;

let whenClosed = null;

// Show a document; `found`: the passage that a search found, `words`: of the query; closed(): its reader has closed it.
export function read(document_, { found = null, words = [], closed }) {
  whenClosed = closed;
  find("reader-title").textContent = oneLine(document_.title) || short(document_.id, 80);
  const passages = document_.passages.map((passage, i) => {
    const before = document_.passages[i - 1] ?? "";
    const isFound = passage === found && document_.passages.length > 1;
    return h(
      "p",
      { class: isFound ? "passage found" : "passage", dir: "auto" },
      isFound ? h("span", { class: "unseen" }, "The passage that was found: ") : null,
      ...marked(clean(passage.slice(overlap(before, passage))), words),
    );
  });
  const fields = [["id", document_.id], ...Object.entries(document_.payload)].flatMap(([name, value]) => [
    h("dt", { dir: "auto" }, clean(name)),
    h("dd", { dir: "auto" }, ...shown(value)),
  ]);
  const body = find("reader-body");
  body.replaceChildren(...passages, h("dl", { class: "fields" }, ...fields));
  find("reader").showModal();
  body.scrollTop = 0;
  body.querySelector(".found")?.scrollIntoView({ block: "center" });
}

// Close it, of which nobody is told.
export function leave() {
  whenClosed = null;
  find("reader").close();
}

find("reader").addEventListener("close", () => {
  whenClosed?.();
  whenClosed = null;
});

// How many characters of a passage repeat the end of the one before.
function overlap(before, passage) {
  for (let length = Math.min(before.length, passage.length, MOST_OVERLAP); length >= LEAST_OVERLAP; length -= 1) {
    if (before.endsWith(passage.slice(0, length))) return length;
  }
  return 0;
}

function shown(value) {
  if (typeof value === "string" && /^https?:\/\/[^\s]+$/.test(value) && URL.canParse(value)) {
    return [h("a", { href: value, rel: "noopener noreferrer", target: "_blank" }, clean(value))];
  }
  return [clean(typeof value === "string" ? value : JSON.stringify(value))];
}
