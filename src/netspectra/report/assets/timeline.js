// A training: the figures, the alarms, all layers at a glance, and one layer in full; runs beside each other.

const data = JSON.parse(document.getElementById("data").textContent);
let runs = data.runs;
const SIGNALS = {
  sigma_1: "Largest singular value σ₁", frobenius_norm: "Frobenius norm", stable_rank: "Stable rank ‖W‖²_F / σ₁²",
  gradient_norm: "Norm of the gradient", update_norm: "Norm of one step's change",
};
const METRICS = {
  alpha: "Tail exponent α", hill_alpha: "Hill exponent", effective_rank: "Effective rank", numerical_rank: "Numerical rank",
  stable_rank: "Stable rank", condition_number: "Condition number", k90: "Rank for 90 % of the energy", spikes: "Values beyond the noise",
  mp_softrank: "Soft rank", nuclear_norm: "Nuclear norm",
};
const LEVEL_MARKS = { note: "circle", warn: "diamond", error: "x" };
const state = { signal: "sigma_1", weight: "", what: "spectra", metric: "effective_rank" };
const byId = (id) => document.getElementById(id);

/** The i-th weight of a run with this name. */
const weightOf = (run, name) => run.weights.find((weight) => weight.name === name);
const finite = (values) => values.filter((value) => typeof value === "number");
const log10 = (value) => (value > 0 ? Math.log10(value) : null);

/** A panel with a title and an empty chart that draws itself when seen. */
function panel(title, name, make, { low = false, hint = null } = {}) {
  const node = el("div", { class: low ? "chart low" : "chart" });
  charts.add(node, name, () => {
    const made = make();
    made.layout.uirevision = "kept"; // a zoom stays when new data come
    return made;
  });
  return el("div", { class: "panel" }, el("h3", {}, title, hint ? el("small", {}, hint) : null), node);
}

/** Empty a place, its charts forgotten. */
function clear(id) {
  const place = byId(id);
  place.querySelectorAll(".chart").forEach((node) => charts.forget(node));
  place.replaceChildren();
  return place;
}

/** The title of a chart of one of several runs. */
const runTitle = (run, title) => (runs.length > 1 ? `${title}: ${shortened(visible(run.name), 40)}` : title);

function drawFigures() {
  byId("title").textContent = runs.map((run) => visible(run.name)).join(" beside ");
  const place = clear("figures");
  for (const run of runs) {
    const now = run.state;
    const gap = now?.lanes?.cheap?.gap ?? 0;
    const spaced = now && gap > 2 * now.lanes.cheap.every;
    const fact = (label, value, small) => el("div", {}, el("dt", {}, label), el("dd", {}, value, small ? el("small", {}, small) : null));
    place.append(el("dl", { class: "figures" },
      fact("Steps", now ? whole(now.step) : DASH, now ? (now.ended ? "ended" : data.live ? "running" : "not ended") : ""),
      fact("Weights", whole(run.weights.length)),
      fact("Looks", whole(now?.lanes?.cheap?.looks ?? run.steps.length), spaced ? `spaced out to every ${whole(Math.round(gap))} steps by the budget` : `every ${whole(run.options?.every ?? 0)} steps`),
      fact("Full spectra", whole(run.weights.reduce((sum, weight) => sum + weight.spectra.length, 0))),
      fact("Time taken", now && now.seconds > 0 ? `${number((100 * now.own) / now.seconds, 2)} %` : DASH, "of the training's"),
      fact("Alarms", whole(run.alarms.length), run.alarms.length ? "" : "none")));
  }
}

function drawAlarms() {
  const place = clear("alarmcharts");
  const list = byId("alarmlist");
  list.replaceChildren();
  for (const run of runs) {
    if (!run.alarms.length) {
      place.append(el("p", { class: "quietly" }, runTitle(run, "No alarm was raised")));
      continue;
    }
    place.append(panel(runTitle(run, "Time line"), "alarms", () => alarmChart(run), { low: run.alarms.length < 12 }));
    for (const alarm of run.alarms.slice(0, 200)) {
      const evidence = Object.entries(alarm.evidence ?? {}).filter(([key]) => !["standing", "reference", "advice"].includes(key));
      list.append(el("article", { class: "rule alarm" },
        el("h4", {}, el("span", { class: `badge ${alarm.level}` }, visible(alarm.rule)), nameNode(alarm.name, 70),
          el("small", {}, `${runs.length > 1 ? `${visible(run.name)}, ` : ""}step ${whole(alarm.step)}${alarm.until === null ? "" : ` to ${whole(alarm.until)}`}`)),
        el("p", {}, visible(alarm.message), ". ", alarm.evidence?.advice ? el("span", { class: "faint" }, `${visible(alarm.evidence.advice)}.`) : null),
        el("div", { class: "evidence" }, evidence.map(([key, value]) => el("span", {}, el("i", {}, `${visible(key).replace(/_/g, " ")} `), inline(value))))));
    }
  }
}

function alarmChart(run) {
  const end = run.state?.step ?? Math.max(...run.steps, 0);
  const rules = [...new Set(run.alarms.map((alarm) => alarm.rule))];
  const traces = rules.map((rule, i) => {
    const mine = run.alarms.filter((alarm) => alarm.rule === rule);
    const x = [], y = [], text = [];
    for (const alarm of mine) {
      const line = `${chartText(alarm.name)}: ${chartText(alarm.message, 90)}`;
      x.push(alarm.step, alarm.until ?? end, null);
      y.push(chartText(rule), chartText(rule), null);
      text.push(line, line, "");
    }
    return { x, y, text, type: "scatter", mode: "lines+markers", line: { color: dataColour(i), width: 6 }, marker: { size: 11, symbol: LEVEL_MARKS[mine[0].level] ?? "circle", color: dataColour(i) }, hovertemplate: "step %{x}<br>%{text}<extra></extra>" };
  });
  return { traces, layout: { showlegend: false, xaxis: linearAxis("step", { range: [0, end * 1.03 || 1] }), yaxis: { ...axisLook(), type: "category" }, margin: { l: 120, r: 16, t: 8, b: 44 } } };
}

/** Colours from low to high that both themes can show. */
const scale = () => [[0, "#1b2a6b"], [0.25, "#0072b2"], [0.5, "#35a79c"], [0.75, "#e3b23c"], [1, "#f7ee9b"]];

function heat(x, y, z, title, more = {}) {
  const known = z.flat().filter((value) => value !== null && Number.isFinite(value));
  const low = known.length ? Math.min(...known) : 0;
  const high = known.length ? Math.max(...known) : 1;
  const count = Math.max(2, Math.min(6, Math.floor(high - low) + 1));
  const ticks = Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));
  return {
    type: "heatmap", x, y, z, colorscale: scale(), zmin: low, zmax: high > low ? high : low + 1e-9, hoverongaps: false,
    colorbar: { title: { text: title, side: "right" }, thickness: 12, tickvals: ticks, ticktext: ticks.map((t) => Number((10 ** t).toPrecision(2)).toString()), outlinewidth: 0 },
    ...more,
  };
}

function layersChart(run, signal) {
  const z = run.weights.map((weight) => (weight.signals[signal] ?? []).map(log10));
  const shown = z.map((row) => carried(row));
  const labels = run.weights.map((weight) => chartText(compact(weight.name), 34));
  const y = run.weights.map((_, i) => i);
  const text = z.map((row, i) => row.map((value, t) => `${chartText(run.weights[i].name)}<br>step ${run.steps[t]}: ${value === null ? "not looked at" : number(10 ** value)}`));
  const few = Math.max(1, Math.ceil(labels.length / 24));
  const trace = heat(run.steps, y, shown, "", { text, hovertemplate: "%{text}<extra></extra>" });
  return {
    traces: [trace],
    layout: {
      xaxis: linearAxis("step"), margin: { l: 130, r: 8, t: 8, b: 44 },
      yaxis: { ...axisLook(), autorange: "reversed", tickvals: y.filter((i) => i % few === 0), ticktext: labels.filter((_, i) => i % few === 0) },
      shapes: alarmLines(run),
    },
    weights: run.weights,
  };
}

/** A row with gaps filled from the left: a number counts until the next look. */
function carried(row) {
  let last = null;
  return row.map((value) => (last = value ?? last));
}

const alarmLines = (run, name = null) => run.alarms.filter((alarm) => name === null || alarm.name === name).slice(0, 40).map((alarm) => ({
  type: "line", x0: alarm.step, x1: alarm.step, y0: 0, y1: 1, yref: "paper", line: { color: colour(alarm.level === "error" ? "error" : "warn"), width: 1.5, dash: "dot" },
}));

function drawLayers() {
  const signals = Object.keys(SIGNALS).filter((signal) => runs.some((run) => run.weights.some((weight) => weight.signals[signal])));
  if (!signals.includes(state.signal)) state.signal = signals[0] ?? "sigma_1";
  byId("layercontrols").replaceChildren(choice("Signal", signals.map((key) => [key, SIGNALS[key]]), state.signal, (value) => { state.signal = value; drawLayers(); }));
  const place = clear("layercharts");
  for (const run of runs) {
    const node = panel(runTitle(run, SIGNALS[state.signal]), "layers", () => layersChart(run, state.signal));
    const chart = node.querySelector(".chart");
    chart.style.height = `${Math.max(220, Math.min(760, 70 + 22 * run.weights.length))}px`;
    chart.addEventListener("click", () => {}, { passive: true });
    place.append(node);
    listenTo(chart, run);
  }
  drawNotes();
}

/** A press on a row of the overview chooses that layer. */
function listenTo(chart, run) {
  const wait = setInterval(() => {
    if (!chart.isConnected) clearInterval(wait);
    if (!chart.on) return;
    clearInterval(wait);
    chart.on("plotly_click", (event) => {
      const weight = run.weights[Math.round(event.points[0].y)];
      if (weight) choose(weight.name, true);
    });
  }, 300);
}

function drawNotes() {
  const place = clear("notes");
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.notes ?? {})))].slice(0, 6);
  for (const name of names) {
    place.append(panel(visible(name), "note", () => ({
      traces: runs.filter((run) => run.notes[name]).map((run, i) => ({ type: "scatter", mode: "lines", x: run.notes[name].steps, y: run.notes[name].values, name: chartText(run.name, 30), line: { color: dataColour(i), width: 1.8 } })),
      layout: { showlegend: runs.length > 1, xaxis: linearAxis("step"), yaxis: linearAxis("") },
    }), { low: true }));
  }
}

function choose(name, scroll = false) {
  state.weight = name;
  drawLayer();
  if (scroll) byId("layer").scrollIntoView();
}

function drawControls() {
  const names = [...new Set(runs.flatMap((run) => run.weights.map((weight) => weight.name)))];
  if (!names.includes(state.weight)) state.weight = names[0] ?? "";
  const kinds = [["spectra", "weight"], ["gradients", "gradient"], ["updates", "one step's change"]].filter(([key]) => runs.some((run) => run.weights.some((weight) => weight[key].length)));
  if (!kinds.some(([key]) => key === state.what)) state.what = "spectra";
  const known = Object.keys(METRICS).filter((metric) => runs.some((run) => run.weights.some((weight) => weight.spectra.some((record) => record.metrics[metric] != null))));
  if (!known.includes(state.metric)) state.metric = known[0] ?? "effective_rank";
  byId("controls").replaceChildren(
    choice("Layer", names.map((name) => [name, shortened(visible(name), 70)]), state.weight, (value) => choose(value)),
    kinds.length > 1 ? choice("Spectra of the", kinds, state.what, (value) => { state.what = value; drawLayer(); }) : "",
    known.length ? choice("Metric of full spectra", known.map((key) => [key, METRICS[key]]), state.metric, (value) => { state.metric = value; drawLayer(); }) : "");
}

function drawLayer() {
  drawControls();
  const place = clear("panels");
  const shown = runs.map((run) => [run, weightOf(run, state.weight)]).filter(([, weight]) => weight);
  const row = (make) => place.append(el("div", { class: "runs" }, shown.map(([run, weight]) => make(run, weight))));
  row((run, weight) => panel(runTitle(run, "Every singular value against time"), "spectrum", () => spectrumChart(run, weight), { hint: "a column is one full spectrum; the brighter, the larger" }));
  row((run, weight) => panel(runTitle(run, "Curves of the leading singular values"), "leading", () => leadingChart(run, weight), { hint: `the ${run.options?.leading ?? 8} largest, found warm, from below; rings: full spectra` }));
  const together = (title, name, make, options) => panel(title, name, make, options);
  place.append(el("div", { class: "runs" },
    together("Norms", "norms", () => signalChart(shown, ["frobenius_norm", "sigma_1", "gradient_norm", "update_norm"], true), { hint: `of the weight, its gradient and its change${runs.length > 1 ? "; dashed: the other run" : ""}` }),
    together("Stable rank", "rank", () => signalChart(shown, ["stable_rank"], false), { hint: "as many directions as strong as the first would hold the energy" }),
    together(METRICS[state.metric] ?? "Metric", "metric", () => metricChart(shown, state.metric), { hint: "from full spectra; bars: the interval, where there is one" }),
    together("Tail exponent α", "tail", () => metricChart(shown, "alpha"), { hint: "power law fitted to the largest values, with its interval" })));
}

function spectrumChart(run, weight) {
  const records = weight[state.what];
  if (!records.length) return empty(run, "no full spectrum was taken yet");
  const at = [...new Set(records.flatMap((record) => record.at))].sort((a, b) => a - b);
  const columns = records.map((record) => new Map(record.at.map((index, i) => [index, record.values[i]])));
  const z = at.map((index) => columns.map((column) => log10(column.get(index) ?? 0)));
  const least = Math.max(...z.flat().filter((v) => v !== null), -300) - 6;
  const clipped = z.map((line) => line.map((value) => (value === null ? null : Math.max(value, least))));
  const x = records.map((record) => record.step);
  return {
    traces: [heat(x, at, clipped, "σ", { hovertemplate: "step %{x}, value %{y}: 10^%{z:.2f}<extra></extra>", zsmooth: false })],
    layout: { xaxis: linearAxis("step"), yaxis: logAxis("place of the singular value", { autorange: "reversed" }), margin: { l: 56, r: 8, t: 8, b: 44 }, shapes: alarmLines(run, weight.name) },
  };
}

function leadingChart(run, weight) {
  const steps = weight.leading_at.map((i) => run.leading_steps[i]);
  const width = Math.max(0, ...weight.leading.map((values) => values.length));
  const traces = Array.from({ length: width }, (_, i) => ({
    type: "scatter", mode: "lines", x: steps, y: weight.leading.map((values) => values[i]), name: `σ${i + 1}`, line: { color: dataColour(i), width: i ? 1.3 : 2.2 }, hovertemplate: `σ${i + 1} %{y:.4g} at step %{x}<extra></extra>`,
  }));
  const full = weight.spectra;
  for (let i = 0; i < Math.min(3, full[0]?.values.length ?? 0); i += 1) {
    traces.push({ type: "scatter", mode: "markers", x: full.map((record) => record.step), y: full.map((record) => record.values[i]), marker: { color: dataColour(i), symbol: "circle-open", size: 6 }, showlegend: false, hovertemplate: "%{y:.4g} at step %{x}, full spectrum<extra></extra>" });
  }
  if (!traces.length) return empty(run, "not looked at yet");
  return { traces, layout: { showlegend: false, xaxis: linearAxis("step"), yaxis: linearAxis("σ", { rangemode: "tozero" }), shapes: alarmLines(run, weight.name) } };
}

function signalChart(shown, signals, log) {
  const traces = [];
  for (const [r, [run, weight]] of shown.entries()) {
    for (const [i, signal] of signals.entries()) {
      const values = weight.signals[signal];
      if (!values || !finite(values).length) continue;
      const known = values.map((value, t) => [run.steps[t], value]).filter(([, value]) => value !== null && (!log || value > 0));
      const short = { frobenius_norm: "‖W‖", sigma_1: "σ₁", gradient_norm: "gradient", update_norm: "change", stable_rank: "stable rank" }[signal];
      traces.push({ type: "scatter", mode: "lines", x: known.map(([s]) => s), y: known.map(([, v]) => v), name: signals.length > 1 ? short : chartText(run.name, 30), showlegend: signals.length > 1 ? r === 0 : true, line: { color: dataColour(signals.length > 1 ? i : r), dash: signals.length > 1 ? DASHES[r % 4] : "solid", width: 1.8 } });
    }
  }
  const axis = log ? logAxis("") : linearAxis("", { rangemode: "tozero" });
  return { traces, layout: { showlegend: traces.length > 1, xaxis: linearAxis("step"), yaxis: axis, margin: { l: 56, r: 16, t: 34, b: 44 } } };
}

function metricChart(shown, metric) {
  const traces = shown.map(([run, weight], r) => {
    const records = weight[state.what].filter((record) => record.metrics[metric] != null);
    const bars = metric === "alpha" ? { error_y: { type: "data", symmetric: false, array: records.map((k) => (k.alpha ? k.alpha[1] - k.metrics.alpha : 0)), arrayminus: records.map((k) => (k.alpha ? k.metrics.alpha - k.alpha[0] : 0)), thickness: 1, width: 2 } } : {};
    return { type: "scatter", mode: "lines+markers", x: records.map((k) => k.step), y: records.map((k) => k.metrics[metric]), name: chartText(run.name, 30), line: { color: dataColour(r), width: 1.6 }, marker: { size: 5 }, ...bars };
  });
  if (!traces.some((trace) => trace.x.length)) return empty(shown[0]?.[0], metric === "alpha" ? "none: too few values in a tail, or no full spectrum yet" : "no full spectrum was taken yet");
  return { traces, layout: { showlegend: shown.length > 1, xaxis: linearAxis("step"), yaxis: linearAxis(""), margin: { l: 56, r: 16, t: 34, b: 44 } } };
}

function empty(run, text) {
  return { traces: [], layout: { xaxis: { visible: false }, yaxis: { visible: false }, annotations: [{ text, showarrow: false, font: { color: colour("muted"), size: 14 }, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }] } };
}

function drawAll() {
  drawFigures();
  drawAlarms();
  drawLayers();
  drawLayer();
}

/** What the page is built from, beside the numbers in its charts. */
const plan = (found) => JSON.stringify(found.map((run) => [run.name, run.weights.map((weight) => [weight.name, weight.spectra.length > 0, weight.gradients.length > 0, weight.updates.length > 0]), Object.keys(run.notes)]));

/** Take newer data in: charts that stand are drawn anew in place, the page only where its plan has changed. */
function update(fresh) {
  if (plan(fresh) !== plan(runs)) {
    runs = fresh;
    drawAll();
    return;
  }
  const alarms = JSON.stringify(runs.map((run) => run.alarms)) !== JSON.stringify(fresh.map((run) => run.alarms));
  runs.forEach((run, i) => {
    run.weights.forEach((weight, w) => Object.assign(weight, fresh[i].weights[w]));
    Object.assign(run, { ...fresh[i], weights: run.weights });
  });
  drawFigures();
  if (alarms) drawAlarms();
  charts.refreshAll();
}

/** Ask the server for what is new. */
async function follow() {
  const status = byId("live");
  status.hidden = false;
  const address = (seen) => `data.json${location.search}&seen=${seen}`;
  let seen = runs[0]?.state?.seconds ?? -1;
  for (;;) {
    try {
      const answer = await fetch(address(seen), { cache: "no-store" });
      if (answer.status === 200) {
        update((await answer.json()).runs);
        seen = runs[0]?.state?.seconds ?? -1;
      } else if (answer.status !== 204) throw new Error(String(answer.status));
      const now = runs[0]?.state;
      status.textContent = now?.ended ? "ended" : `live, step ${whole(now?.step ?? 0)}`;
    } catch {
      status.textContent = "the server does not answer";
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

theme.start();
theme.listen(() => charts.refreshAll());
byId("foot").textContent = `netspectra ${visible(runs[0]?.netspectra ?? "")}. A look at σ₁ is one warm power iteration: a lower bound, within a fraction of a percent where weights change slowly.`;
drawAll();
document.documentElement.dataset.ready = "yes";
if (data.live) follow();
