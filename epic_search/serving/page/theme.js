// Light or dark as the system has it, or as was chosen here before. Not a module: it runs before the first paint.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => {
    try { return localStorage.getItem("theme"); } catch { return null; } // storage may be forbidden
  };
  const show = () => {
    const theme = kept();
    if (theme) root.dataset.theme = theme;
    const dark = theme ? theme === "dark" : system.matches;
    document.getElementById("theme")?.setAttribute("aria-pressed", String(dark));
    dispatchEvent(new Event("themechange"));
    return dark;
  };
  show();
  system.addEventListener("change", show);
  addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      const theme = show() ? "light" : "dark";
      root.dataset.theme = theme;
      try { localStorage.setItem("theme", theme); } catch { /* it lasts as long as the page, then */ }
      document.getElementById("theme").setAttribute("aria-pressed", String(theme === "dark"));
      dispatchEvent(new Event("themechange"));
    });
  });
})();
