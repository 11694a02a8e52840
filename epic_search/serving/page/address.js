// What is searched, and which document is open, in the address, so that it can be shared, reloaded and gone back to. It
// stands after the #: that part is never sent to a server.

const PAUSE = 2000; // milliseconds without a key after which what is typed is another search

export class Address {
  #typedUntil = 0; // a key until then goes on with the same text
  #isTyped = false; // what is to be written next
  #isDraft = false; // what was written last is a text that was still being typed
  #isRead = false; // what is to be written next is what the address said, in our words
  #searched = null; // what was written last, without the document
  #opened = null; // the id of the document that is open

  // changed(): called when the browser has gone to another entry of its history, or its address was changed by hand.
  constructor({ changed }) {
    addEventListener("popstate", changed);
  }

  // What is to be searched, {q, related, filter, mode, index} as texts, `only` as pairs of a field and a value, and how
  // many hits were `shown`; whether that `isSearched` already; and the id of the document to `open` then.
  read() {
    const said = new URLSearchParams(location.hash.slice(1));
    const only = said.getAll("only").map(pair).filter(Boolean);
    const place = { ...Object.fromEntries(said), only, shown: history.state?.shown ?? null };
    this.#opened = said.get("open");
    said.delete("open");
    place.isSearched = String(said) === this.#searched;
    if (!place.isSearched) {
      this.#isRead = true;
      this.#isTyped = this.#isDraft = false;
    }
    return place;
  }

  // A document was opened: an entry of the history, above that of the search.
  open(id) {
    if (id === this.#opened) return; // the address said so
    this.#opened = id;
    history.pushState({ ...history.state, isAbove: true }, "", this.#hash(this.#searched));
  }

  // It was closed, or cannot be opened.
  close() {
    if (this.#opened === null) return;
    this.#opened = null;
    if (history.state?.isAbove) history.back();
    else history.replaceState(history.state, "", this.#hash(this.#searched));
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
    this.#searched = String(said);
    const place = this.#hash(this.#searched);
    const isTyping = this.#isTyped && this.#isDraft && this.#opened === null;
    const goesOn = this.#isRead || isTyping || place === (location.hash || location.pathname);
    const isAbove = goesOn && Boolean(history.state?.isAbove);
    history[goesOn ? "replaceState" : "pushState"]({ shown, isAbove }, "", place);
    this.#isDraft = this.#isTyped;
    this.#isTyped = this.#isRead = false;
  }

  #hash(searched) {
    const said = new URLSearchParams(searched ?? "");
    if (this.#opened !== null) said.set("open", this.#opened);
    return said.size ? `#${said}` : location.pathname;
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
