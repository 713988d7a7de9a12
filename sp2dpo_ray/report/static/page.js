// What all scripts of the page share. Light or dark: the system's choice until the reader makes one, which this
// browser keeps.
"use strict";
const sp2dpo = {};

// a page from a file may have no storage
sp2dpo.kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
sp2dpo.keep = (name, value) => { try { localStorage.setItem(name, value); return true; } catch { return false; } };

sp2dpo.element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

// New content in a box; what takes the place of the control that had the focus has it then, so that keys go on.
sp2dpo.redraw = (box, ...parts) => {
  const had = document.activeElement;
  const name = box !== had && box.contains(had) && ["data-row", "data-verdict", "id", "aria-label"].find((one) => had.hasAttribute(one));
  box.replaceChildren(...parts);
  if (!name) return;
  const instead = box.hasAttribute("tabindex") ? box : box.querySelector("button");
  (box.querySelector(`[${name}="${had.getAttribute(name)}"]`) || instead)?.focus({ preventScroll: true });
};

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
