// What the reader finds of listed pairs, kept by this browser until it is exported for
// `sp2dpo audit CONFIG --import`.
"use strict";
sp2dpo.verdicts = (() => {
  const name = `sp2dpo:verdicts:${document.documentElement.dataset.schedule}`;
  let all = new Map();
  try { all = new Map(JSON.parse(sp2dpo.kept(name) || "[]")); } catch { /* not ours */ }
  let safe = true;

  // as the sheet that `audit` writes: what a spreadsheet takes for a formula is made harmless
  const cell = (text) => {
    const harmless = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
  };

  return {
    get: (id) => all.get(id) || { verdict: "", true_category: "", note: "" },
    has: (id) => Boolean(all.get(id)?.verdict),
    set(id, change) {
      const now = { ...this.get(id), ...change };
      if (now.verdict || now.true_category || now.note) all.set(id, now); else all.delete(id);
      safe = sp2dpo.keep(name, JSON.stringify([...all]));
    },
    get count() { return [...all.values()].filter((row) => row.verdict).length; },
    // what the reader must know before they leave; a note without a verdict is no row of the sheet
    get said() {
      const judged = this.count, begun = all.size - judged;
      return [judged && `${judged} judged`,
        begun && `${begun}${judged ? " more" : ""} with a note or a category but no verdict: not exported`,
        all.size && !safe && "this browser keeps nothing, export before you leave"].filter(Boolean).join("; ");
    },
    csv() {
      const rows = [...all].filter(([, row]) => row.verdict)
        .map(([id, row]) => [id, row.verdict, row.true_category, row.note]);
      return [["prompt_id", "verdict", "true_category", "note"], ...rows]
        .map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
    },
  };
})();
