// The keyboard: what each key does, where it does not write text.

import { find } from "./dom.js";

const writes = (element) => element?.matches("textarea, select, input:not([type=radio])");

// rankings: those that j and k go through, the first first; teach(ranking, hit) and undo() as the buttons do.
export function listen({ rankings, teach, undo }) {
  const at = () => rankings.find((ranking) => ranking.focused) ?? rankings[0];
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const target = event.target;
    if (event.key === "ArrowDown" && target === find("query")) {
      if (rankings[0].go(0)) event.preventDefault();
      return;
    }
    if (writes(target)) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const ranking = at();
    const inHits = ranking.focused !== null;
    const act = {
      "/": () => { find("query").focus(); find("query").select(); },
      j: () => ranking.go(1),
      k: () => step(ranking),
      ArrowDown: inHits ? () => ranking.go(1) : null,
      ArrowUp: inHits ? () => step(ranking) : null,
      t: inHits ? () => teach(ranking, ranking.focused) : null,
      u: undo,
      "?": () => find("keys").showModal(),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  find("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds what is searched
    find("hits").focus();
  });
  find("help").addEventListener("click", () => find("keys").showModal());
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog && dialog.id !== "token-dialog") dialog.close(); // beside it
    });
  }
}

// Up from the first hit leads back to the search box.
function step(ranking) {
  if (!ranking.go(-1) && ranking.focused === ranking.hits[0]) find("query").focus();
}
