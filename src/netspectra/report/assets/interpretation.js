// The page of an interpretation.

const found = JSON.parse(document.getElementById("data").textContent);
const KINDS = {
  ov: { title: "OV", text: "value to output", left: "writes", right: "reads" },
  qk: { title: "QK", text: "query with key", left: "query tokens", right: "key tokens" },
  mlp_in: { title: "MLP in", text: "what neurons read", left: "", right: "reads" },
  mlp_out: { title: "MLP out", text: "what neurons write", left: "writes", right: "" },
};
const PAGE = 40;
const all = found.directions;
const state = { layer: "", head: "", kind: "", coherent: all.some((d) => d.coherent), reliable: false, text: "", sort: "layer", shown: PAGE };
const byId = (id) => document.getElementById(id);
const layers = [...new Map(all.map((d) => [d.layer, d.number])).entries()];
const heads = [...new Set(all.map((d) => d.head).filter((h) => h !== null))].sort((a, b) => a - b);

function badge(kind, text, title) {
  return el("span", { class: `badge ${kind}`, title }, text);
}

function wordNode(index, score) {
  const text = found.words[index].replace(/ /g, "␣");
  return el("li", { title: `${number(score, 3)} standard deviations` }, visible(text));
}

function endNode(list, kind) {
  const facts = `likeness ${number(list.likeness, 2)} (p ${number(list.p_likeness, 2)}) · sharpness ${number(list.sharpness, 2)} (p ${number(list.p_sharpness, 2)}) · both p ${number(list.p, 2)}`;
  return el("div", { class: `end ${list.coherent ? "coherent" : list.sharp ? "" : "dim"}` },
    el("h4", {}, `${list.sign > 0 ? "+" : "−"} ${KINDS[kind][list.side]}`,
      el("small", {}, facts), list.coherent ? badge("ok", "coherent", "Its tokens are more alike, and stand out further, than those of random directions") : null,
      list.sharp ? badge("note", "sharp", "Its tokens stand out further than those of random directions; they need not be alike") : null),
    el("ul", { class: "words" }, list.words.map((word, i) => wordNode(word, list.scores[i]))));
}

function place(d) {
  return `layer ${d.number}${d.head === null ? "" : ` · head ${d.head}`} · ${KINDS[d.kind].title} ${d.index}`;
}

function directionNode(d) {
  const [left, right] = d.turn_degrees;
  const turn = d.kind === "mlp_in" ? right : d.kind === "mlp_out" ? left : Math.max(left, right);
  const facts = [`σ ${number(d.sigma)}`, `${number(100 * d.share, 3)} % of the circuit`, `turned ${number(turn, 2)}° by rounding`];
  if (d.effect !== null) facts.push(`removal: ${number(d.effect, 3)} (${visible(found.effect_unit)})`);
  return el("article", { class: "direction" },
    el("header", {}, el("h3", {}, place(d)),
      d.reliable ? null : badge("warn", "not separable", "Its singular value is so close to others that the vectors are mixtures"),
      el("span", { class: "facts" }, facts.join(" · "))),
    el("div", { class: `ends${d.kind.startsWith("mlp") ? " single" : ""}` },
      [...d.lists].sort((a, b) => b.sign - a.sign || (a.side === "right" ? -1 : 1)).map((list) => endNode(list, d.kind))));
}

function chosen() {
  const text = state.text.toLowerCase();
  const hit = (d) => !text || d.lists.some((list) => list.words.some((w) => found.words[w].toLowerCase().includes(text)));
  const some = all.filter((d) => (!state.kind || d.kind === state.kind) && (!state.layer || d.layer === state.layer)
    && (state.head === "" || d.head === Number(state.head)) && (!state.coherent || d.coherent) && (!state.reliable || d.reliable) && hit(d));
  const orders = { layer: () => 0, certain: (a, b) => a.p - b.p || b.share - a.share, sigma: (a, b) => b.sigma - a.sigma, effect: (a, b) => (b.effect ?? -1) - (a.effect ?? -1) };
  return some.sort(orders[state.sort]);
}

function draw() {
  const some = chosen();
  byId("directions").replaceChildren(...some.slice(0, state.shown).map(directionNode));
  byId("shown").textContent = some.length ? `${counted(some.length, "direction")} of ${whole(all.length)}; * spaces are shown as ␣` .replace("* ", "") : "No direction is left by these filters.";
  byId("more").hidden = some.length <= state.shown;
  drawMap();
}

function set(change) {
  Object.assign(state, { shown: PAGE }, change);
  for (const control of document.querySelectorAll("[data-state]")) {
    const value = state[control.dataset.state];
    if (control.type === "checkbox") control.checked = value;
    else if (control.value !== String(value)) control.value = value;
  }
  draw();
}

function select(name, label, options) {
  const node = el("select", { "data-state": name, change: () => set({ [name]: node.value }) },
    options.map(([value, text]) => el("option", { value }, text)));
  return el("label", {}, label, node);
}

function check(name, label) {
  const node = el("input", { type: "checkbox", "data-state": name, change: () => set({ [name]: node.checked }) });
  return el("label", {}, node, label);
}

function drawMap() {
  const columns = [...heads.map((h) => ({ title: String(h), head: h })), ...["mlp_in", "mlp_out"].filter((kind) => all.some((d) => d.kind === kind)).map((kind) => ({ title: KINDS[kind].title, kind }))];
  const head = el("thead", {}, el("tr", {}, el("th", {}, "layer"), columns.map((c) => el("th", { scope: "col" }, c.title))));
  const rows = layers.map(([layer, n]) => el("tr", {}, el("th", { scope: "row" }, String(n)), columns.map((c) => {
    const mine = all.filter((d) => d.layer === layer && (c.kind ? d.kind === c.kind : d.head === c.head && (!state.kind || d.kind === state.kind)));
    if (!mine.length) return el("td");
    const count = mine.filter((d) => d.coherent).length;
    const shade = count ? Math.min(4, Math.ceil(4 * count / mine.length)) : 0;
    const pressed = state.layer === layer && (c.kind ? state.kind === c.kind : state.head === String(c.head));
    const what = `layer ${n}, ${c.kind ? c.title : `head ${c.head}`}: ${count} of ${mine.length} coherent`;
    return el("td", {}, el("button", { type: "button", class: `s${shade}`, title: what, "aria-label": what, "aria-pressed": String(pressed),
      click: () => pressed ? set({ layer: "", head: "", kind: "" }) : set({ layer, coherent: count > 0, head: c.kind ? "" : String(c.head), kind: c.kind ?? (state.kind.startsWith("mlp") ? "" : state.kind) }) }, count ? String(count) : "·"));
  })));
  byId("map").replaceChildren(head, el("tbody", {}, rows));
}

document.title = `${shortened(visible(found.source.path), 80)} · netspectra`;
byId("title").append(nameNode(found.source.path, 160));
byId("lead").textContent = `${counted(all.length, "direction")}, ${whole(all.filter((d) => d.coherent).length)} of them coherent at a false discovery rate of ${number(100 * found.options.rate)} %, against ${whole(found.options.null)} lists of random directions.`;
byId("map-hint").textContent = heads.length ? "Rows are layers, columns attention heads and MLPs; a number counts coherent directions. Press a cell to see them." : "Rows are layers; a number counts coherent directions. Press a cell to see them.";
byId("counts").append(...Object.entries(found.counts).map(([kind, c]) => el("div", {}, el("b", {}, `${whole(c.coherent)} / ${whole(c.directions)}`), `${KINDS[kind].title}: ${KINDS[kind].text}`, el("small", {}, `${whole(c.both)} coherent and separable`))));
byId("filters").append(
  select("layer", "Layer", [["", "all"], ...layers.map(([layer, n]) => [layer, String(n)])]),
  ...(heads.length ? [select("head", "Head", [["", "all"], ...heads.map((h) => [String(h), String(h)])])] : []),
  select("kind", "Circuit", [["", "all"], ...Object.keys(found.counts).map((kind) => [kind, KINDS[kind].title])]),
  select("sort", "Order", [["layer", "by layer"], ["certain", "most certain first"], ["sigma", "largest σ first"], ...(found.effect_unit ? [["effect", "largest effect first"]] : [])]),
  check("coherent", "coherent only"), check("reliable", "separable only"),
  (() => { const node = el("input", { type: "search", placeholder: "token contains …", "aria-label": "Token contains", "data-state": "text", input: () => set({ text: node.value }) }); return node; })());
byId("more").addEventListener("click", () => { state.shown += PAGE; draw(); });
byId("notes").append(...found.notes.map((note) => el("li", {}, visible(note))));
byId("foot").textContent = "Made by netspectra. This page is complete in itself and loads nothing.";
theme.start();
set({});
document.documentElement.dataset.ready = "yes";
