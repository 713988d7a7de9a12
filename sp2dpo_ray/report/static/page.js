// Light or dark: the system's choice until the reader makes one, which this browser keeps.
"use strict";
const sp2dpo = {};

// a page from a file may have no storage
sp2dpo.kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
sp2dpo.keep = (name, value) => { try { localStorage.setItem(name, value); return true; } catch { return false; } };

(() => {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const kept = sp2dpo.kept("sp2dpo:theme");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    sp2dpo.keep("sp2dpo:theme", root.dataset.theme);
  });
})();
