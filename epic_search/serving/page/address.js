// What is searched, in the address, so that it can be shared, reloaded and gone back to. It stands after the #: that
// part is never sent to a server.

const PAUSE = 2000; // milliseconds without a key after which what is typed is another search

export class Address {
  #typedUntil = 0; // a key until then goes on with the same text
  #isTyped = false; // what is to be written next
  #isDraft = false; // what was written last is a text that was still being typed
  #isRead = false; // what is to be written next is what the address said, in our words

  // changed(): called when the browser has gone to another search, or its address was changed by hand.
  constructor({ changed }) {
    addEventListener("popstate", changed);
  }

  // What is to be searched, {q, related, filter, mode, index} as texts, `only` as pairs of a field and a value, and how
  // many hits were `shown`.
  read() {
    this.#isRead = true;
    this.#isTyped = this.#isDraft = false;
    const said = new URLSearchParams(location.hash.slice(1));
    const only = said.getAll("only").map(pair).filter(Boolean);
    return { ...Object.fromEntries(said), only, shown: history.state?.shown ?? null };
  }

  // A key was pressed where something is searched: texts that are typed on are one entry of the history, not many.
  typed() {
    const now = performance.now();
    if (now >= this.#typedUntil) this.#isDraft = false;
    this.#typedUntil = now + PAUSE;
    this.#isTyped = true;
  }

  // What was typed is meant so: what is typed next is another search.
  settle() {
    this.#typedUntil = 0;
  }

  // Write what is searched: a new entry of the history, unless it is none that one would go back to.
  write({ only, shown, ...texts }) {
    const said = new URLSearchParams();
    for (const [name, value] of Object.entries(texts)) if (value) said.set(name, value);
    for (const one of only) said.append("only", JSON.stringify(one));
    const hash = said.size ? `#${said}` : "";
    const goesOn = this.#isRead || (this.#isTyped && this.#isDraft) || hash === location.hash;
    history[goesOn ? "replaceState" : "pushState"]({ shown }, "", hash || location.pathname);
    this.#isDraft = this.#isTyped;
    this.#isTyped = this.#isRead = false;
  }
}

function pair(text) {
  try {
    const [field, value] = JSON.parse(text);
    return [String(field), value];
  } catch {
    return null; // it was written by somebody else
  }
}
