// Singular values against depth: one small panel for each role, or one metric for all roles.

const MOST_PANELS = 12;
const MOST_ROLES = 8;

const depth = (() => {
  const node = document.getElementById("depth-chart");
  const deep = bySize(grouped(weights.filter((weight) => weight.spectrum.known.length), (weight) => weight.role)).filter(([, members]) => members.length > 1);
  const look = { metric: deep.length ? "panels" : "sigma_max of the spectrum", group: "role", x: layersTell() ? "layer" : "index" };
  const fromSpectrum = new Map([
    ["sigma_max of the spectrum", ["Largest singular value", (weight) => weight.spectrum.quartiles[0]]],
    ["median of the spectrum", ["Median singular value", (weight) => weight.spectrum.quartiles[2]]],
    ["sigma_min of the spectrum", ["Smallest singular value", (weight) => weight.spectrum.quartiles[4]]],
  ]);

  /** Whether layer numbers order the weights: most roles meet each layer once. */
  function layersTell() {
    const clear = deep.filter(([, members]) => members.every((weight) => weight.layer !== null) && new Set(members.map((weight) => weight.layer)).size === members.length);
    const covered = clear.reduce((sum, [, members]) => sum + members.length, 0);
    return covered > 0 && covered >= deep.reduce((sum, [, members]) => sum + members.length, 0) / 2;
  }

  function at(weight) {
    return look.x === "layer" ? weight.layer : weight.index + 1;
  }

  function along(members) {
    return members.filter((weight) => at(weight) !== null).sort((a, b) => at(a) - at(b) || a.index - b.index);
  }

  function xTitle() {
    return look.x === "layer" ? "layer" : "order in the checkpoint";
  }

  function xAxis(more = {}) {
    return linearAxis(xTitle(), { tickformat: "d", rangemode: "normal", ...more });
  }

  function hover(weight) {
    const [top, q3, mid, q1, low] = weight.spectrum.quartiles.map((value) => number(value));
    return `${chartText(weight.name)}<br>σ from ${low} to ${top}<br>median ${mid}, middle half ${q1} to ${q3}`;
  }

  /** One role: the whole range faint, the middle half stronger, the median a line; chosen weights ringed. */
  function panelTraces(members, bounds, panel) {
    const line = along(members);
    const x = line.map(at);
    const level = (i) => onFloor(line.map((weight) => weight.spectrum.quartiles[i]), bounds);
    const axes = panel ? { xaxis: `x${panel + 1}`, yaxis: `y${panel + 1}` } : { xaxis: "x", yaxis: "y" };
    const shared = { type: "scatter", x, showlegend: false, hoverinfo: "skip", mode: "lines", ...axes };
    const ink = dataColour(0);
    const edge = { color: faded(ink, 0.55), width: 1 };
    return [
      { ...shared, y: level(4), line: edge },
      { ...shared, y: level(0), line: edge, fill: "tonexty", fillcolor: faded(ink, 0.12) },
      { ...shared, y: level(3), line: { width: 0 } },
      { ...shared, y: level(1), line: { width: 0 }, fill: "tonexty", fillcolor: faded(ink, 0.28) },
      {
        ...shared, y: level(2), mode: "lines+markers", hoverinfo: "text", text: line.map(hover), customdata: line.map((weight) => weight.index),
        line: { color: ink, width: 2 },
        marker: {
          size: line.map((weight) => (selection.has(weight.index) ? 11 : 5)),
          color: line.map((weight) => (selection.has(weight.index) ? dataColour(selection.slot(weight.index)) : ink)),
          line: { color: colour("surface"), width: line.map((weight) => (selection.has(weight.index) ? 2 : 0)) },
        },
      },
    ];
  }

  /** Small panels with one scale, so that roles compare. */
  function panels() {
    const width = charts.widthOf(node) || 900;
    const shown = deep.slice(0, MOST_PANELS);
    const across = Math.min(shown.length, width < 520 ? 1 : width < 900 ? 2 : width < 1250 ? 3 : 4);
    const down = Math.ceil(shown.length / across);
    const height = down * 205 + 72;
    const bounds = logFloor(shown.flatMap(([, members]) => members.map((weight) => weight.spectrum.quartiles)));
    const [gapX, gapY] = [0.025, 46 / (height - 86)];
    const layout = { height, margin: { l: 60, r: 12, t: 40, b: 46 }, annotations: [], showlegend: false };
    const places = shown.flatMap(([, members]) => along(members).map(at));
    const range = [Math.min(...places) - 0.5, Math.max(...places) + 0.5];
    shown.forEach(([key], panel) => {
      const [column, line] = [panel % across, Math.floor(panel / across)];
      const [w, h] = [(1 - gapX * (across - 1)) / across, (1 - gapY * (down - 1)) / down];
      const [x0, y1] = [column * (w + gapX), 1 - line * (h + gapY)];
      const last = panel + across >= shown.length;
      const nth = panel ? panel + 1 : "";
      layout[`xaxis${nth}`] = xAxis({ domain: [x0, x0 + w], anchor: `y${nth}`, range, title: { text: last ? xTitle() : "", standoff: 6 }, nticks: 7 });
      layout[`yaxis${nth}`] = logAxis(column ? "" : "σ", { domain: [y1 - h, y1], anchor: `x${nth}`, range: logRange(bounds), showticklabels: column === 0, dtick: 1, automargin: false });
      layout.annotations.push({
        text: chartText(roleNames.get(key) ?? key, Math.max(16, Math.floor((w * width) / 8.5))), showarrow: false, xref: "paper", yref: "paper",
        x: x0, y: y1, xanchor: "left", yanchor: "bottom", font: { size: 13, color: colour("ink") },
      });
    });
    const left = deep.length - shown.length;
    say(["Each panel: smallest to largest singular value (faint), middle half (stronger), median (line).",
      bounds.zeros ? "Zeros are drawn at the bottom." : "", left > 0 ? `${counted(left, "smaller role is", "smaller roles are")} left out.` : ""]);
    return { traces: shown.flatMap(([, members], panel) => panelTraces(members, bounds, panel)), layout };
  }

  function reading() {
    if (fromSpectrum.has(look.metric)) return fromSpectrum.get(look.metric);
    const metric = metricByName.get(look.metric);
    return metric ? [metric.title, (weight) => metricValue(weight, metric)] : [...fromSpectrum.values()][0];
  }

  /** Bars from low to high, where the metric has an interval; null where it has none. */
  function bars(members, ink) {
    const metric = metricByName.get(look.metric);
    const found = members.map((weight) => (metric ? finding(weight, metric) : {}));
    if (!found.some(({ low, high }) => typeof low === "number" && typeof high === "number")) return null;
    return {
      type: "data", symmetric: false, color: faded(ink, 0.45), thickness: 1.2, width: 2,
      array: found.map(({ value, high }) => (typeof high === "number" ? high - value : 0)),
      arrayminus: found.map(({ value, low }) => (typeof low === "number" ? value - low : 0)),
    };
  }

  /** One metric of every weight, a line for each of the larger groups. */
  function single() {
    const [title, read] = reading();
    const usable = weights.filter((weight) => read(weight) !== null && read(weight) !== undefined && at(weight) !== null);
    const values = usable.map(read);
    const positive = values.filter((value) => value > 0);
    const log = positive.length > 0 && values.every((value) => value >= 0) && Math.max(...positive) > 20 * Math.min(...positive);
    const bounds = logFloor([values]);
    const height = (weight) => (log && read(weight) === 0 ? bounds.floor : read(weight));
    const groups = bySize(grouped(usable, (weight) => weight[look.group]));
    const single = groups.slice(MOST_ROLES).flatMap(([, members]) => members);
    const named = groups.slice(0, MOST_ROLES).map(([key, members]) => [chartText(look.group === "role" ? roleNames.get(key) : key || "?", 32), members]);
    const shown = single.length ? [...named, [`other ${look.group}s`, single]] : named;
    const traces = shown.map(([name, members], i) => groupTrace(along(members), height, read, name, i, i >= MOST_ROLES));
    const unplaced = weights.length - usable.length;
    say([log && bounds.zeros ? "Zeros are drawn on the dotted line." : "",
      unplaced ? `${counted(unplaced, "weight is", "weights are")} not drawn: no ${look.x === "layer" ? "value or no layer number" : "value"}.` : ""]);
    const yaxis = log ? logAxis(visible(title), { range: logRange(bounds) }) : linearAxis(visible(title), { rangemode: "normal" });
    return { traces, layout: { height: 480, xaxis: xAxis(), yaxis, ...(log ? floorMarks(bounds) : {}) } };
  }

  function groupTrace(members, height, read, name, i, rest) {
    const places = members.map(at);
    const once = new Set(places).size === places.length;
    const ink = rest ? colour("muted") : dataColour(i);
    return {
      type: "scatter", mode: once && !rest && members.length > 1 ? "lines+markers" : "markers", name,
      x: places, y: members.map(height), customdata: members.map((weight) => weight.index),
      text: members.map((weight) => `${chartText(weight.name)}<br>${number(read(weight))}`), hoverinfo: "text", error_y: bars(members, ink),
      line: { color: ink, width: 1.8, dash: DASHES[Math.floor(i / 4) % 4] },
      marker: {
        symbol: SYMBOLS[i % SYMBOLS.length], color: ink, opacity: once ? 1 : 0.7,
        size: members.map((weight) => (selection.has(weight.index) ? 13 : 7)),
        line: { color: colour("ink"), width: members.map((weight) => (selection.has(weight.index) ? 2 : 0)) },
      },
    };
  }

  function say(parts) {
    document.getElementById("depth-note").textContent = parts.filter(Boolean).join(" ");
  }

  function controls() {
    const set = (key) => (value) => {
      look[key] = value;
      lines.hidden = look.metric === "panels";
      charts.refresh(node);
    };
    const lines = choice("Lines by", [["role", "role in the layer"], ["kind", "kind"]], look.group, set("group"));
    lines.hidden = look.metric === "panels";
    const options = [
      ...(deep.length ? [["panels", "spectrum, a panel for each role"]] : []),
      ...[...fromSpectrum].map(([key, [title]]) => [key, title]),
      ...metrics.filter((metric) => sortedValues(metric).length && !["sigma_max", "sigma_min"].includes(metric.name)).map((metric) => [metric.name, visible(metric.title)]),
    ];
    const order = [["index", "order in the checkpoint"], ...(weights.some((weight) => weight.layer !== null) ? [["layer", "layer number in the name"]] : [])];
    document.getElementById("depth-controls").append(
      choice("Show", options, look.metric, set("metric")),
      lines,
      choice("Depth", order, look.x, set("x")));
  }

  return {
    start() {
      if (!weights.some((weight) => weight.spectrum.known.length)) {
        document.getElementById("depth-hint").textContent = "There are no singular values to draw.";
        document.getElementById("depth").querySelector("figure").remove();
        return;
      }
      document.getElementById("depth-hint").textContent = "How the spectra change from the first layer to the last. Weights with the same name but for its numbers are one role. A click on a point chooses its weight.";
      controls();
      charts.add(node, "depth", () => (look.metric === "panels" ? panels() : single()));
      selection.listen(() => charts.refresh(node));
    },
    node,
  };
})();
