// The table of weights: sorted by any column, filtered by text, kind and level, a page at a time.

const MAIN_METRICS = ["sigma_max", "sigma_min", "condition_number", "stable_rank", "effective_rank", "alpha"];
const table = (() => {
  const look = { sort: "index", descending: false, text: "", kind: null, level: "", page: 0, size: 100 };
  const shownMetrics = new Set(defaultMetrics());
  const sparkFloor = lowestOfSparks();
  let rows = weights;
  let focused = 0;
  let nameLimit = 46;

  function defaultMetrics() {
    const main = MAIN_METRICS.filter((name) => metricByName.has(name));
    return main.length ? main : metrics.slice(0, 5).map((metric) => metric.name);
  }

  /** Columns in order: key, header, how a cell is made, by what it sorts. */
  function columns() {
    const most = (weight) => -weight.level;
    return [
      { key: "index", title: "#", unseen: "Order in the checkpoint", cell: pickCell, by: (weight) => weight.index },
      { key: "name", title: "Name", cell: (weight) => nameNode(weight.name, nameLimit), by: (weight) => weight.name, head: true },
      { key: "kind", title: "Kind", cell: (weight) => shortened(visible(weight.kind), 24) || DASH, by: (weight) => weight.kind },
      { key: "shape", title: "Shape", cell: (weight) => shapeText(weight.shape), by: (weight) => weight.parameters ?? 0, numeric: true },
      { key: "spark", title: "Spectrum", cell: sparkline, by: (weight) => decay(weight), hint: "By decay: median over largest value" },
      { key: "verdict", title: "Verdict", cell: verdictCell, by: most },
      ...metrics.filter((metric) => shownMetrics.has(metric.name)).map((metric) => ({
        key: `metric ${metric.name}`, title: headed(metric), hint: metric.entry?.meaning, numeric: true,
        cell: (weight) => metricCell(weight, metric), by: (weight) => metricValue(weight, metric),
      })),
    ];
  }

  /** A metric's title for a header: short ones do not break. */
  function headed(metric) {
    const title = visible(metric.title);
    return title.length < 13 ? title.replaceAll(" ", "\u00a0") : title;
  }

  function decay(weight) {
    const [top, , middle] = weight.spectrum.quartiles;
    return top > 0 ? middle / top : null;
  }

  /** Log of the smallest ratio to the largest value that sparklines show, the same for all rows, so that they compare. */
  function lowestOfSparks() {
    const ratios = weights.map(({ spectrum }) => spectrum.quartiles[3] / spectrum.quartiles[0]).filter((ratio) => ratio > 0).sort((a, b) => a - b);
    return Math.log10(Math.min(0.5, Math.max(1e-5, (ratios[Math.floor(ratios.length * 0.2)] ?? 1e-3) / 3)));
  }

  /** The spectrum over its largest value, log scale up, rank along. */
  function sparkline(weight) {
    const { ranks, values, count } = weight.spectrum;
    const top = weight.spectrum.quartiles[0];
    if (!(top > 0)) return el("span", { class: "faint" }, top === 0 ? "all zero" : count ? "not known" : "no values");
    const x = (rank) => (count > 1 ? 2 + (92 * (rank - 1)) / (count - 1) : 48).toFixed(1);
    const y = (value) => (2 + 22 * (value > 0 ? Math.min(1, (Math.log10(value) - Math.log10(top)) / sparkFloor) : 1)).toFixed(1);
    const every = Math.ceil(ranks.length / 60);
    const kept = ranks.map((_, i) => i).filter((i) => values[i] !== null && (i % every === 0 || i === ranks.length - 1));
    const points = kept.map((i) => `${x(ranks[i])} ${y(values[i])}`);
    const line = points.length > 1 ? `M${points.join("L")}` : `M${points[0]}h.1`;
    const area = points.length > 1 ? svg("path", { class: "area", d: `${line}L${x(ranks[kept.at(-1)])} 25L${x(ranks[kept[0]])} 25Z` }) : null;
    return svg("svg", { class: "spark", viewBox: "0 0 96 26", width: 96, height: 26, "aria-hidden": "true" }, area, svg("path", { d: line, class: points.length > 1 ? "" : "dot" }));
  }

  function metricCell(weight, metric) {
    const { value, low, high, note } = finding(weight, metric);
    const range = typeof low === "number" && typeof high === "number" ? `${number(low)} to ${number(high)}` : "";
    const why = [note && visible(note), range].filter(Boolean).join("; ");
    return el("span", { title: why || (value === null ? null : String(value)), class: value === null ? "faint" : null }, number(value),
      value === null && why ? el("span", { class: "unseen" }, ` ${why}`) : null);
  }

  function verdictCell(weight) {
    const worst = bySize(grouped(weight.verdicts, (verdict) => verdict.level)).sort((a, b) => LEVELS.indexOf(b[0]) - LEVELS.indexOf(a[0]));
    const spoken = worst.filter(([level]) => level !== "ok");
    if (!spoken.length) return weight.verdicts.length ? el("span", { class: "badges" }, badge("ok")) : el("span", { class: "faint" }, DASH);
    return el("span", { class: "badges", title: spoken.flatMap(([, verdicts]) => verdicts.map((verdict) => visible(verdict.rule ?? ""))).join(", ") }, spoken.map(([level, verdicts]) =>
      badge(level, verdicts.length === 1 ? visible(verdicts[0].rule || level) : `${verdicts.length} ${LEVEL_WORDS.get(level) ?? visible(level)}s`)));
  }

  function pickCell(weight) {
    const box = el("input", {
      type: "checkbox", tabindex: -1, "aria-label": `Compare weight ${weight.index + 1}`,
      click: (event) => { event.stopPropagation(); selection.toggle(weight.index); },
    });
    return el("label", { class: "pick", click: (event) => event.stopPropagation() }, box, el("span", {}, String(weight.index + 1)));
  }

  function compare(column) {
    const sign = look.descending ? -1 : 1;
    return (a, b) => {
      const [x, y] = [column.by(a), column.by(b)];
      if (x === y) return a.index - b.index;
      if (x === null || x === undefined || Number.isNaN(x)) return 1;
      if (y === null || y === undefined || Number.isNaN(y)) return -1;
      const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
      return sign * order || a.index - b.index;
    };
  }

  /** Weights that pass the filters, in the chosen order. */
  function apply() {
    const words = look.text.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (weight) => [weight.name, ...weight.aliases, weight.kind, weight.dtype, ...weight.verdicts.map((verdict) => verdict.rule)].join(" ").toLowerCase();
    rows = weights.filter((weight) => (look.kind === null || weight.kind === look.kind)
      && (!look.level || weight.level >= LEVELS.indexOf(look.level))
      && (!words.length || words.every((word) => text(weight).includes(word))));
    rows.sort(compare(columns().find((column) => column.key === look.sort) ?? columns()[0]));
    look.page = Math.min(look.page, Math.max(0, Math.ceil(rows.length / look.size) - 1));
    focused = 0;
  }

  function header(column) {
    const active = look.sort === column.key;
    const button = el("button", {
      type: "button", title: column.hint ?? null,
      click: () => {
        look.descending = active ? !look.descending : Boolean(column.numeric);
        look.sort = column.key;
        look.page = 0;
        apply();
        draw();
        announce(`Sorted by ${column.unseen ?? column.title}, ${look.descending ? "descending" : "ascending"}`);
        document.querySelector("#table th[aria-sort] button")?.focus();
      },
    }, column.unseen ? [el("span", { "aria-hidden": "true" }, column.title), el("span", { class: "unseen" }, column.unseen)] : column.title,
    el("span", { class: "arrow", "aria-hidden": "true" }, active ? (look.descending ? "↓" : "↑") : ""));
    return el("th", { scope: "col", class: `c-${column.key.split(" ")[0]}${column.numeric ? " num" : ""}`, "aria-sort": active ? (look.descending ? "descending" : "ascending") : null }, button);
  }

  function row(weight, at, shown) {
    const cells = shown.map((column) => el(column.head ? "th" : "td", { scope: column.head ? "row" : null, class: `c-${column.key.split(" ")[0]}${column.numeric ? " num" : ""}` }, column.cell(weight)));
    return el("tr", { tabindex: at === focused ? 0 : -1, "data-index": weight.index }, cells);
  }

  /** Characters of a name that leave room for the other columns. */
  function roomForNames() {
    const width = document.getElementById("tablebox").clientWidth;
    return width < 700 ? 30 : width < 1150 ? 34 : 46;
  }

  /** Draw anew when the room for names has changed, keeping the focus where it is. */
  function fit() {
    if (roomForNames() === nameLimit) return;
    const held = document.activeElement?.closest("#table tr[data-index]")?.dataset.index;
    const at = focused;
    draw();
    focused = at;
    if (held !== undefined) document.querySelector(`#table tr[data-index="${held}"]`)?.focus({ preventScroll: true });
  }

  /** Draw header, this page of rows and the pager anew. */
  function draw(everything = false) {
    nameLimit = roomForNames();
    const shown = columns();
    const from = everything ? 0 : look.page * look.size;
    const slice = rows.slice(from, everything ? rows.length : from + look.size);
    const body = el("tbody", {}, slice.map((weight, at) => row(weight, at, shown)));
    if (!slice.length) body.append(el("tr", { class: "nothing" }, el("td", { colspan: shown.length }, weights.length ? "No weight passes these filters." : "No weights.")));
    document.getElementById("table").replaceChildren(el("caption", { class: "unseen" }, `${counted(rows.length, "weight")}, with spectra and metrics`),
      el("thead", {}, el("tr", {}, shown.map(header))), body);
    pager(from, slice.length);
    mark();
  }

  function pager(from, count) {
    const last = Math.max(0, Math.ceil(rows.length / look.size) - 1);
    const go = (page) => () => {
      look.page = page;
      focused = 0;
      draw();
      document.getElementById("tablebox").scrollTop = 0;
    };
    const said = rows.length ? `${whole(from + 1)} to ${whole(from + count)} of ${counted(rows.length, "weight")}` : "0 weights";
    const turn = last > 0 ? [
      el("button", { type: "button", class: "quiet", disabled: look.page === 0, click: go(look.page - 1) }, "Previous"),
      el("span", {}, `page ${look.page + 1} of ${last + 1}`),
      el("button", { type: "button", class: "quiet", disabled: look.page === last, click: go(look.page + 1) }, "Next"),
    ] : [];
    document.getElementById("pager").replaceChildren(el("span", { id: "shown" }, said + (rows.length < weights.length ? ` (${whole(weights.length)} in all)` : "")),
      el("a", { href: "#details", class: "todetails" }, "To the details"), el("span", { class: "turn" }, turn));
  }

  /** Show on the rows what is chosen. */
  function mark() {
    document.querySelector("#pager .todetails").hidden = selection.current === null;
    for (const line of document.querySelectorAll("#table tbody tr[data-index]")) {
      const index = Number(line.dataset.index);
      const slot = selection.slot(index);
      line.setAttribute("aria-selected", slot >= 0);
      line.classList.toggle("current", index === selection.current);
      line.querySelector("input").checked = slot >= 0;
      if (slot >= 0) line.dataset.slot = slot + 1;
      else delete line.dataset.slot;
    }
  }

  function focusRow(lines, at) {
    focused = Math.max(0, Math.min(lines.length - 1, at));
    lines.forEach((line, i) => { line.tabIndex = i === focused ? 0 : -1; });
    lines[focused]?.focus();
  }

  function onKey(event) {
    const line = event.target.closest("tr[data-index]");
    if (!line || event.target !== line) return;
    const lines = [...line.parentNode.children];
    const at = lines.indexOf(line);
    const moves = new Map([["ArrowDown", at + 1], ["ArrowUp", at - 1], ["PageDown", at + 10], ["PageUp", at - 10], ["Home", 0], ["End", lines.length - 1]]);
    if (moves.has(event.key)) focusRow(lines, moves.get(event.key));
    else if (event.key === "Enter") selection.only(Number(line.dataset.index));
    else if (event.key === " ") selection.toggle(Number(line.dataset.index));
    else if (event.key === "Escape") selection.clear();
    else return;
    event.preventDefault();
  }

  function onClick(event) {
    const line = event.target.closest("tr[data-index]");
    if (!line || String(getSelection())) return;
    const index = Number(line.dataset.index);
    focusRow([...line.parentNode.children], [...line.parentNode.children].indexOf(line));
    if (event.ctrlKey || event.metaKey || event.shiftKey) selection.toggle(index);
    else selection.only(index);
  }

  function controls() {
    const again = (change) => (value) => {
      change(value);
      look.page = 0;
      apply();
      draw();
      announce(counted(rows.length, "weight"));
    };
    const search = el("input", { type: "search", id: "search", placeholder: "Name, alias, dtype, rule", autocomplete: "off", spellcheck: "false", input: (event) => again((value) => { look.text = value; })(event.target.value) });
    const parts = [el("label", { class: "field grow" }, el("span", {}, "Search"), search)];
    if (kinds.size > 1) {
      parts.push(choice("Kind", [["", "all kinds"], ...bySize(kinds).map(([kind, members], i) => [String(i), `${shortened(visible(kind), 30) || "not named"} (${members.length})`])], "", again((value) => { look.kind = bySize(kinds)[value]?.[0] ?? null; })));
    }
    if (weights.some((weight) => weight.level > 0)) {
      parts.push(choice("Verdict", [["", "any"], ["note", "note or worse"], ["warn", "warning or worse"], ["error", "error"]], "", again((value) => { look.level = value; })));
    }
    if (metrics.length) parts.push(columnChooser());
    document.getElementById("filters").append(...parts);
  }

  function columnChooser() {
    const ticks = metrics.map((metric) => check(visible(metric.title), shownMetrics.has(metric.name), (on) => {
      if (on) shownMetrics.add(metric.name);
      else shownMetrics.delete(metric.name);
      apply();
      draw();
    }));
    const chooser = el("details", { class: "chooser" }, el("summary", {}, "Columns"), el("div", { class: "menu" }, ticks));
    chooser.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      chooser.open = false;
      chooser.querySelector("summary").focus();
    });
    document.addEventListener("click", (event) => { if (!chooser.contains(event.target)) chooser.open = false; });
    return chooser;
  }

  return {
    start() {
      controls();
      const node = document.getElementById("table");
      node.addEventListener("keydown", onKey);
      node.addEventListener("click", onClick);
      selection.listen(mark);
      new ResizeObserver(fit).observe(document.getElementById("tablebox"));
      apply();
      draw();
    },
    draw,
    /** Turn to the page that holds this weight, dropping filters that hide it, and bring its row into view. */
    reveal(index) {
      if (!rows.some((weight) => weight.index === index)) {
        Object.assign(look, { text: "", kind: null, level: "" });
        document.querySelectorAll("#filters > .field :is(input, select)").forEach((field) => { field.value = ""; });
        apply();
      }
      const at = rows.findIndex((weight) => weight.index === index);
      look.page = Math.floor(at / look.size);
      focused = at % look.size;
      draw();
      const line = document.querySelector(`#table tr[data-index="${index}"]`);
      const box = document.getElementById("tablebox");
      box.scrollTop = line.offsetTop - box.clientHeight / 3;
      return line;
    },
  };
})();
