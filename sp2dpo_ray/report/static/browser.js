// The pair browser. `pairs/index.js` brings the columns, `pairs/NNNN.js` the texts of some pairs each;
// both are scripts, since a page from a file may load nothing else. Text becomes nodes, never markup.
"use strict";
(() => {
  const PAGE = 50, KEPT_PIECES = 6;
  const by = (id) => document.getElementById(id);
  const form = by("filters"), found = by("found"), detail = by("pair"), state = by("browser-state");
  const pieces = new Map(), waiting = new Map();
  let index = null, rows = [], page = 0, open = null, drawn = null, asked = 0;

  const element = sp2dpo.element;
  const figure = (value, digits = 2) => (value === null || value === undefined ? "" : value.toFixed(digits));

  // --- loading -------------------------------------------------------------
  const load = (file) => new Promise((done, failed) => {
    const script = element("script", { src: `pairs/${file}` });
    script.onload = () => { script.remove(); done(); };
    script.onerror = () => { script.remove(); failed(new Error(`pairs/${file} is not beside this page`)); };
    document.head.append(script);
  });
  sp2dpo.index = (columns) => { index = columns; };
  sp2dpo.piece = (number, texts) => {
    pieces.set(number, texts);
    while (pieces.size > KEPT_PIECES) pieces.delete(pieces.keys().next().value);
  };
  const piece = (number) => {
    if (pieces.has(number)) return Promise.resolve(pieces.get(number));
    if (!waiting.has(number)) {
      const file = `${String(number).padStart(4, "0")}.js`;
      const got = load(file).then(() => pieces.get(number)).finally(() => waiting.delete(number));
      waiting.set(number, got);
    }
    return waiting.get(number);
  };
  const texts = async (row) => (await piece(Math.floor(row / index.per_piece)))[row % index.per_piece];

  // --- which pairs, in which order ----------------------------------------------
  const wanted = () => {
    const value = (id) => by(id).value;
    const low = value("beta-low") === "" ? -Infinity : Number(value("beta-low"));
    const high = value("beta-high") === "" ? Infinity : Number(value("beta-high"));
    const list = value("list"), category = value("category"), language = value("language");
    return (row) =>
      (!category || index.category[row] === category) &&
      (!language || index.language[row] === language) &&
      index.beta[row] >= low && index.beta[row] <= high &&
      (!list || (list === "*" ? index.urgency[row] >= 0
        : list === "judged" ? sp2dpo.verdicts.has(index.id[row])
        : index.why[row].split(" ").includes(list)));
  };
  const keys = {
    longer: (row) => index.chosen_words[row] - index.rejected_words[row],
    // pairs that are not listed stand behind those that are
    urgency: (row) => (index.urgency[row] < 0 ? Infinity : index.urgency[row]),
  };
  const sorted = (some) => {
    const order = by("order").value, falling = order.startsWith("-"), name = order.replace("-", "");
    if (index[name] === null) return some;
    const key = keys[name] || ((row) => index[name][row] ?? -Infinity);
    return some.sort((a, b) => {
      const [x, y] = falling ? [key(b), key(a)] : [key(a), key(b)];
      return x === y ? a - b : x < y ? -1 : 1;
    });
  };
  const search = async () => {
    const turn = ++asked;
    const sought = by("search").value.trim().toLowerCase(), words = sought.split(/\s+/).filter(Boolean);
    const holds = (text) => words.every((word) => text.includes(word));
    const named = (row) => index.id[row].toLowerCase().startsWith(sought);
    let some = index.id.map((_, row) => row).filter(wanted());
    if (words.length && !by("whole").checked) {
      some = some.filter((row) => named(row) || holds(index.head[row].toLowerCase()));
    } else if (words.length) {
      const kept = [];
      for (const [done, row] of some.entries()) {
        const [prompt, chosen, rejected] = await texts(row);
        if (turn !== asked) return; // the reader has changed the question
        if (named(row) || holds(`${prompt}\n${chosen}\n${rejected}`.toLowerCase())) kept.push(row);
        if (done % 2000 === 0) state.textContent = `searched ${done.toLocaleString("en")} of ${some.length.toLocaleString("en")} pairs, ${kept.length} found`;
      }
      some = kept;
    }
    rows = sorted(some);
    page = 0;
    state.textContent = `${index.id.length.toLocaleString("en")} pairs.`;
    list();
  };

  // a person's own word comes before the panel's
  const hidden = (row) => index.urgency[row] >= 0 && by("blind").checked && !sp2dpo.verdicts.has(index.id[row]);

  // --- the list -------------------------------------------------------------------------
  const list = () => {
    const from = page * PAGE, shown = rows.slice(from, from + PAGE);
    by("count").textContent = rows.length
      ? `${(from + 1).toLocaleString("en")} to ${(from + shown.length).toLocaleString("en")} of ${rows.length.toLocaleString("en")}`
      : "no pair like that";
    by("before").disabled = page === 0;
    by("next").disabled = from + PAGE >= rows.length;
    sp2dpo.redraw(found, ...shown.map((row) => {
      const judged = sp2dpo.verdicts.has(index.id[row]);
      const said = hidden(row) ? ["", "listed", ""] : [figure(index.beta[row], 4), index.category[row], judged ? "judged" : index.why[row]];
      const button = element("button", { type: "button", "data-row": row },
        ...["beta", "what", "why"].map((name, i) => element("span", { class: name }, said[i])),
        element("bdi", { class: "head" }, index.head[row]));
      if (row === open) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => show(row, true));
      return element("li", {}, button);
    }));
  };
  const turn = (by_) => {
    const last = Math.max(0, Math.ceil(rows.length / PAGE) - 1);
    page = Math.min(Math.max(page + by_, 0), last);
    list();
  };
  const step = (by_) => {
    const at = rows.indexOf(open), next = at < 0 ? page * PAGE : at + by_;
    if (next < 0 || next >= rows.length) return;
    page = Math.floor(next / PAGE);
    show(rows[next]);
  };

  // --- one pair -----------------------------------------------------------------------------
  let differences = sp2dpo.kept("sp2dpo:differences") !== "off";
  const wide = matchMedia("(min-width: 1000px)"); // else the pair lies below the list
  // enter: the reader goes from the list into the pair, and the focus with them
  const show = async (row, enter = false) => {
    open = row;
    list();
    const current = found.querySelector("[aria-current]");
    if (found.contains(document.activeElement)) current?.focus({ preventScroll: true });
    if (wide.matches) current?.scrollIntoView({ block: "nearest" });
    let told;
    try { told = await texts(row); } catch (error) { state.textContent = error.message; return; }
    if (open !== row) return;
    const [prompt, chosen, rejected, calls] = told;
    const id = index.id[row];
    const parts = [element("p", {}, "Pair ", element("code", {}, id), ` · ${index.language[row]}`
      + ` · ${index.chosen_words[row]} and ${index.rejected_words[row]} words · ${figure(100 * index.overlap[row], 0)} % of the words in common`
      + (index.score_gap ? ` · score gap ${figure(index.score_gap[row])}` : "")
      + (index.predicted[row] ? " · told by a predictor" : ""))];
    if (index.urgency[row] >= 0) parts.push(judging(row, id));
    parts.push(element("h3", {}, "Prompt"), element("div", { class: "text", dir: "auto" }, prompt));
    parts.push(sides(chosen, rejected));
    parts.push(hidden(row) ? element("p", {}, "What the panel said is shown after your verdict.") : panel(row, calls));
    sp2dpo.redraw(detail, ...parts);
    if (enter && [current, document.body].includes(document.activeElement)) detail.focus({ preventScroll: true });
    if (drawn !== row) detail.scrollTop = 0; // else the reader is in the midst of it
    if (drawn !== row && !wide.matches) detail.scrollIntoView({ block: "start" });
    drawn = row;
  };
  const sides = (chosen, rejected) => {
    const a = sp2dpo.words(chosen), b = sp2dpo.words(rejected);
    const shared = differences ? sp2dpo.common(a, b) : null;
    const side = (title, text, tokens, same) => {
      const box = element("div", { class: "text", dir: "auto" });
      if (same) box.append(sp2dpo.marked(tokens, same)); else box.append(text);
      return element("div", {}, element("h3", {}, title), box);
    };
    const both = element("div", { class: "two sides" },
      side("Chosen", chosen, a, shared?.[0]), side("Rejected", rejected, b, shared?.[1]));
    const tick = element("input", { type: "checkbox", id: "differences" });
    tick.checked = differences;
    tick.addEventListener("change", () => mark(tick.checked));
    const note = differences && !shared ? " (too different to mark)" : "";
    return element("div", {}, both, element("label", { class: "tick" }, tick, ` Mark what only one of them has${note}`));
  };
  const mark = (on) => {
    differences = on;
    sp2dpo.keep("sp2dpo:differences", on ? "on" : "off");
    if (open !== null) show(open);
  };
  const panel = (row, calls) => {
    const head = element("tr", {}, ...["teacher", "prompt", "category", "magnitude", "confidence", "effective gap", "beta"]
      .map((name, i) => element("th", i > 2 ? { class: "n" } : {}, name)));
    const lines = calls.map(([teacher, variant, category, ...numbers]) => element("tr", {},
      element("td", {}, teacher), element("td", {}, variant), element("td", {}, category ?? "not asked"),
      ...numbers.map((value, i) => element("td", { class: "n" }, figure(value, i > 1 ? 4 : 2)))));
    const whole = `beta ${figure(index.beta[row], 4)}, ${index.category[row]}, standard deviation of beta among teachers ${figure(index.teacher_std[row], 4)}`;
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
    return element("div", { id: "panel" }, element("h3", {}, "What the panel said"), element("p", {}, whole),
      element("div", { class: "wide" }, table));
  };

  // --- verdicts ---------------------------------------------------------------------------
  const VERDICTS = [["chosen", "Chosen is better"], ["rejected", "Rejected is better"], ["tie", "A tie"]];
  const judging = (row, id) => {
    const now = sp2dpo.verdicts.get(id);
    const buttons = VERDICTS.map(([name, title], i) => {
      const button = element("button", { type: "button", "data-verdict": name, "aria-pressed": String(now.verdict === name) }, `${title} (${i + 1})`);
      button.addEventListener("click", () => judge(row, now.verdict === name ? "" : name));
      return button;
    });
    const category = element("select", { "aria-label": "True category" }, element("option", { value: "" }, "category: not said"),
      ...[...by("category").options].slice(1).map((option) => element("option", {}, option.value)));
    category.value = now.true_category;
    category.addEventListener("change", () => keep(id, { true_category: category.value }));
    const note = element("input", { type: "text", placeholder: "note", "aria-label": "Note" });
    note.value = now.note;
    note.addEventListener("change", () => keep(id, { note: note.value }));
    const why = element("p", {}, hidden(row) ? "Which response is better?" : `Listed as: ${index.why[row]}`);
    return element("div", { class: "judging", role: "group", "aria-label": "Verdict" }, why, ...buttons, category, note);
  };
  const keep = (id, change) => { sp2dpo.verdicts.set(id, change); count(); };
  const judge = (row, verdict) => {
    if (index.urgency[row] < 0) return;
    keep(index.id[row], { verdict });
    show(row);
  };
  const count = () => {
    by("export").disabled = sp2dpo.verdicts.count === 0;
    by("judged-count").textContent = sp2dpo.verdicts.said;
  };
  by("export").addEventListener("click", () => {
    const link = element("a", { download: "verdicts.csv", href: URL.createObjectURL(new Blob([sp2dpo.verdicts.csv()], { type: "text/csv" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // --- keys ----------------------------------------------------------------------------------
  const pressed = {
    "/": () => by("search").focus(), j: () => step(1), k: () => step(-1), n: () => turn(1), p: () => turn(-1),
    d: () => mark(!differences), 1: () => judge(open, "chosen"), 2: () => judge(open, "rejected"), 3: () => judge(open, "tie"),
    0: () => judge(open, ""),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !index) return;
    const typing = event.target.closest("input[type=search], input[type=text], input[type=number], select, textarea");
    if (event.key === "Escape" && typing) { typing.blur(); return; }
    if (typing || !pressed[event.key] || ("0123".includes(event.key) && open === null)) return;
    event.preventDefault();
    pressed[event.key]();
  });

  // --- start -----------------------------------------------------------------------------------
  let pause;
  const again = () => search().catch((error) => { state.textContent = error.message; });
  form.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(again, 150); });
  form.addEventListener("reset", () => setTimeout(again));
  form.addEventListener("submit", (event) => event.preventDefault());
  by("before").addEventListener("click", () => turn(-1));
  by("next").addEventListener("click", () => turn(1));
  by("blind").addEventListener("change", () => { if (open !== null) show(open); else list(); });
  load("index.js").then(() => {
    for (const code of [...new Set(index.language)].sort()) by("language").append(element("option", {}, code));
    if (index.score_gap === null) for (const option of by("order").querySelectorAll('[value$="score_gap"]')) option.remove();
    count();
    return search();
  }).catch((error) => { state.textContent = `${error.message}: copy the whole folder, not the page alone.`; });
})();
