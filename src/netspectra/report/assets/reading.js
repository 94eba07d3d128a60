// One weight's spectrum beside what noise and a power law would have: the bulk with its edge and spikes, and the tail.

const reading = (() => {
  const bulkNode = document.getElementById("bulk-chart");
  const tailNode = document.getElementById("tail-chart");
  const UNDECIDED = 0.1;
  const TWIN_ROWS = ["spikes", "sigma_max", "stable_rank", "effective_rank", "alpha", "mp_distance"];
  let picker = null;

  const drawable = weights.filter((weight) => weight.spectrum.quartiles[0] > 0);

  /** What a metric's findings are, when it was measured. */
  function told(weight, name) {
    const metric = metricByName.get(name);
    return metric ? finding(weight, metric) : { value: null };
  }

  /** The weight that is shown: the current choice, else the first with both a bulk and a tail. */
  function shown() {
    const current = weights[selection.current];
    if (current) return current;
    const both = (weight) => told(weight, "mp_edge").value !== null && told(weight, "alpha").value !== null;
    return drawable.find((weight) => both(weight) && weight.kind !== "embedding") ?? drawable.find(both) ?? drawable[0];
  }

  /** Short and long side, and the noise level s with s^2 = edge^2 / (sqrt(long) + sqrt(short))^2; null without a bulk. */
  function noiseOf(weight) {
    const edge = told(weight, "mp_edge").value;
    const [short, long] = [...weight.shape].sort((a, b) => a - b);
    if (!(edge > 0) || !(short > 0)) return null;
    const calibrated = told(weight, "spikes").edge;
    return { edge, short, long, s: edge / (Math.sqrt(long) + Math.sqrt(short)), calibrated: typeof calibrated === "number" ? calibrated : null };
  }

  /** Density of the singular values of noise (Marchenko and Pastur 1967), as points of a curve. */
  function law({ short, long, s }) {
    const beta = short / long;
    const unit = s * Math.sqrt(long);
    const [low, high] = [1 - Math.sqrt(beta), 1 + Math.sqrt(beta)];
    const turns = Array.from({ length: 121 }, (_, i) => (Math.PI * i) / 120);
    const x = turns.map((turn) => (low + high) / 2 - ((high - low) / 2) * Math.cos(turn));
    const root = (value) => Math.sqrt(Math.max(0, (high ** 2 - value ** 2) * (value ** 2 - low ** 2)));
    const y = x.map((value) => (value > 1e-9 ? root(value) / (Math.PI * beta * value) : root(1e-9) / (Math.PI * beta * 1e-9)));
    return { x: x.map((value) => value * unit), y: y.map((value) => value / unit) };
  }

  /** Where the values that rounding to few levels alone can make end; null for a weight that lies on no such levels. */
  function roundingOf(weight) {
    const found = told(weight, "rounding_edge");
    return found.value > 0 ? found : null;
  }

  function upright(x, ink, dash, width = 1.5) {
    return { type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: ink, width, dash } };
  }

  function label(x, text, ink, more = {}) {
    return { x, yref: "paper", y: 1, yanchor: "bottom", xanchor: "left", showarrow: false, text, font: { size: 11.5, color: ink }, ...more };
  }

  function bulk() {
    const weight = shown();
    const { density, spectrum } = weight;
    const width = density.to / density.counts.length;
    const middles = density.counts.map((_, i) => (i + 0.5) * width);
    const traces = [{
      type: "bar", x: middles, y: density.counts.map((count) => count / (spectrum.count * width)), width, showlegend: false,
      marker: { color: faded(dataColour(0), 0.38), line: { color: faded(dataColour(0), 0.75), width: 0.6 } },
      text: density.counts.map((count, i) => `${counted(count, "value")} from ${number(i * width)} to ${number((i + 1) * width)}`), hoverinfo: "text", textposition: "none",
    }];
    const noise = noiseOf(weight);
    const [shapes, annotations] = [[], []];
    const limit = noise ? noise.calibrated ?? noise.edge : Infinity;
    if (noise) {
      traces.push({ type: "scatter", mode: "lines", ...law(noise), name: "noise with this median", line: { color: dataColour(1), width: 2.2 }, hoverinfo: "skip", showlegend: false });
      shapes.push(upright(noise.edge, dataColour(1), "dot"));
      if (noise.calibrated) shapes.push(upright(noise.calibrated, colour("ink"), "dash", 1.2));
      annotations.push(label(limit, "noise ends", colour("muted"), { xanchor: limit > 0.6 * density.to ? "right" : "left" }));
    }
    const rounding = roundingOf(weight);
    if (rounding) {
      const [ink, end] = [dataColour(3), Math.min(rounding.value, density.to)];
      shapes.push({ type: "rect", x0: 0, x1: end, yref: "paper", y0: 0, y1: 1, line: { width: 0 }, fillcolor: faded(ink, 0.14), layer: "below" });
      if (rounding.value <= density.to) shapes.push(upright(rounding.value, ink, "solid", 1.6));
      annotations.push(label(0, "rounding", ink, { xshift: 3, yanchor: "top", y: 0.99 }));
    }
    const spikes = spectrum.values.filter((value) => value !== null && value > limit && value <= density.to);
    if (spikes.length) {
      traces.push({
        type: "scatter", mode: "markers", x: spikes, y: spikes.map(() => 0), showlegend: false, cliponaxis: false,
        marker: { symbol: "triangle-up", size: 7, color: dataColour(2) }, hovertemplate: "spike at %{x:.5g}<extra></extra>",
      });
    }
    if (density.beyond) {
      annotations.push(label(density.to, `${counted(density.beyond, "more value")}, up to ${number(spectrum.quartiles[0])} →`, dataColour(2), { xanchor: "right", y: 0.5, yanchor: "middle" }));
    }
    say("bulk-note", [
      noise ? `Curve: noise of ${shapeText(weight.shape)} with the same median. Dotted: where its bulk ends, ${number(noise.edge)}.` : whyNot(weight, "mp_edge", "No curve of noise"),
      rounding ? `Shaded: below ${number(rounding.value)}, what rounding in steps of ${number(rounding.step)} makes by itself.` : "",
      noise?.calibrated ? `Dashed: ${number(noise.calibrated)}, which less than 1 % of noise matrices exceed; triangles are beyond it.` : "",
    ]);
    const yaxis = linearAxis("share of the values, per unit", { rangemode: "tozero", nticks: 6 });
    return {
      traces,
      layout: { height: 380, bargap: 0, margin: { l: 62, r: 14, t: 30, b: 46 }, xaxis: linearAxis("singular value σ", { range: [0, density.to * 1.03], nticks: 9 }), yaxis, shapes, annotations },
    };
  }

  /** Share of the lambda at or above each drawn one, on log axes; lambda over the largest, so that nothing overflows. */
  function tail() {
    const weight = shown();
    const { ranks, values, count, quartiles } = weight.spectrum;
    const top = quartiles[0];
    const kept = ranks.map((rank, i) => ({ rank, x: values[i] === null ? 0 : (values[i] / top) ** 2, sigma: values[i] })).filter(({ x }) => x > 1e-12);
    const fit = fitOf(weight);
    const points = (part, ink, size) => ({
      type: "scatter", mode: "markers", x: part.map(({ x }) => x), y: part.map(({ rank }) => rank / count), showlegend: false,
      marker: { color: ink, size }, text: part.map(({ rank, sigma }) => `rank ${rank} of ${whole(count)}: σ = ${number(sigma)}, λ = ${number(sigma ** 2)}`), hoverinfo: "text",
    });
    const inside = fit ? kept.filter(({ x }) => x >= fit.start * (1 - 1e-4)) : [];
    const traces = [points(fit ? kept.filter(({ x }) => x < fit.start * (1 - 1e-4)) : kept, colour("faint"), 4)];
    const [shapes, annotations] = [[], []];
    if (fit) {
      const line = (alpha) => ({ x: [fit.start, 1], y: [fit.share, fit.share * fit.start ** (alpha - 1)] });
      const shared = { type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false };
      if (fit.low !== null) {
        traces.push({ ...shared, ...line(fit.high), line: { width: 0 } },
          { ...shared, ...line(fit.low), line: { width: 0 }, fill: "tonexty", fillcolor: faded(dataColour(1), 0.16) });
      }
      traces.push(points(inside, dataColour(0), 5), { ...shared, ...line(fit.alpha), line: { color: dataColour(1), width: 2.2 } });
      shapes.push(upright(fit.start, colour("muted"), "dot", 1.2));
      annotations.push(label(Math.log10(fit.start), "the tail begins", colour("muted"), { xanchor: fit.start > 0.05 ? "right" : "left" }));
    }
    say("tail-note", [
      fit ? `Line: power law of exponent ${number(fit.alpha, 3)}${fit.low === null ? "" : `; shaded: its interval, ${number(fit.low, 3)} to ${number(fit.high, 3)}`}. Blue: the ${whole(fit.size)} values it is fitted to.` : whyNot(weight, "alpha", "No power law"),
      "A power law is straight here; what bends down falls faster.",
    ]);
    const least = kept.reduce((low, { x }) => Math.min(low, x), 1);
    return {
      traces,
      layout: {
        height: 380, margin: { l: 62, r: 14, t: 30, b: 46 }, shapes, annotations,
        xaxis: logAxis("λ / λ₁, λ = σ²", { range: [Math.log10(Math.max(least, 1e-6, fit ? fit.start * 1e-3 : 0)) - 0.1, 0.12], nticks: 7 }),
        yaxis: logAxis("share of the λ at least as large", { range: [Math.log10(0.6 / count), 0.12], nticks: 6 }),
      },
    };
  }

  /** The fitted tail in units of lambda_1; null where there is none. */
  function fitOf(weight) {
    const alpha = told(weight, "alpha");
    const top = weight.spectrum.quartiles[0] ** 2;
    if (alpha.value === null || !(alpha.xmin > 0) || !(top > 0)) return null;
    return {
      alpha: alpha.value, low: alpha.low ?? null, high: alpha.high ?? null, size: alpha.tail,
      start: Math.min(1, alpha.xmin / top), share: alpha.tail / weight.spectrum.count,
    };
  }

  /** Why a metric has no value, as the notes tell. */
  function whyNot(weight, name, what) {
    const note = weight.notes.find((text) => typeof text === "string" && text.startsWith(`${name}: `));
    return `${what}${note ? `: ${visible(note.slice(name.length + 2))}` : metricByName.has(name) ? "" : `: ${name} was not asked for`}.`;
  }

  function say(id, parts) {
    document.getElementById(id).textContent = parts.filter(Boolean).join(" ");
  }

  /** The reading in words and small tables. */
  function words(weight) {
    const parts = [bulkWords(weight), roundingWords(weight), tailWords(weight), rivals(weight), twin(weight)].filter(Boolean);
    document.getElementById("reading-words").replaceChildren(...parts);
  }

  function card(title, ...children) {
    return el("article", { class: "rule" }, el("h4", {}, title), children);
  }

  function bulkWords(weight) {
    const noise = noiseOf(weight);
    if (!noise) return null;
    const spikes = told(weight, "spikes");
    const distance = told(weight, "mp_distance").value;
    const strengths = Array.isArray(spikes.strengths) ? spikes.strengths : [];
    return card("Against noise", el("dl", { class: "pairs" }, pairs([
      ["Noise level", `${number(noise.s)} an entry`],
      ["Spikes", spikes.value === null ? DASH : `${whole(spikes.value)} of ${whole(weight.spectrum.count)} values beyond ${number(noise.calibrated ?? noise.edge)}`],
      strengths.length ? ["Strength before noise", `${strengths.map((value) => number(value, 3)).join(", ")}${spikes.value > strengths.length ? ", …" : ""}`] : null,
      distance === null ? null : ["Distance from noise", `${number(distance, 3)}; noise of this size stays below about ${number(4 / weight.spectrum.count, 1)}`],
    ])), strengths.length ? el("p", {}, el("small", {}, "Noise lifts a direction above its own strength; the strengths undo the lift (Benaych-Georges and Nadakuditi 2012).")) : null);
  }

  function roundingWords(weight) {
    const rounding = roundingOf(weight);
    if (!rounding) return null;
    const counted = typeof rounding.above === "number" && typeof rounding.of === "number";
    return card("Rounded to few levels", el("dl", { class: "pairs" }, pairs([
      ["Levels", visible(String(rounding.grid ?? DASH))],
      typeof rounding.step === "number" ? ["Step, median", number(rounding.step)] : null,
      ["Its noise reaches up to", `σ = ${number(rounding.value)}`],
      counted ? ["Values above", `${whole(rounding.above)} of ${whole(rounding.of)}`] : null,
      typeof rounding.noise === "number" ? ["Noise", `${number(100 * rounding.noise, 3)} % of the norm`] : null,
    ])), el("p", {}, el("small", {}, "What lies below cannot be told from rounding; read tails and ranks from the original weights.")));
  }

  function tailWords(weight) {
    const alpha = told(weight, "alpha");
    if (alpha.value === null) return null;
    const judged = typeof alpha.p !== "number" ? "not tested; --thorough does" : alpha.p < UNDECIDED ? `p = ${number(alpha.p, 2)}: no power law` : `p = ${number(alpha.p, 2)}: a power law is not contradicted`;
    return card("Tail", el("dl", { class: "pairs" }, pairs([
      ["Exponent α", `${number(alpha.value, 3)}, from ${number(alpha.low, 3)} to ${number(alpha.high, 3)}`],
      ["Values in the tail", `${whole(alpha.tail)} of ${whole(weight.spectrum.count)}, λ ≥ ${number(alpha.xmin, 3)}`],
      ["Interval", visible(alpha.interval ?? DASH)],
      ["Fit", `${judged}; largest gap ${number(alpha.distance, 2)}`],
    ])));
  }

  function pairs(rows) {
    return rows.filter(Boolean).map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]);
  }

  function small(head, rows) {
    return el("div", { class: "scroller flat" }, el("table", { class: "comparison" },
      el("thead", {}, el("tr", {}, head.map((title, i) => el("th", { scope: "col", class: i && i < 3 ? "num" : null }, title)))),
      el("tbody", {}, rows.map(([title, ...cells]) => el("tr", {}, el("th", { scope: "row" }, title), cells.map((cell, i) => el("td", { class: i < 2 ? "num" : null }, cell)))))));
  }

  /** Other laws beside the power law: likelihood ratios of a thorough analysis. */
  function rivals(weight) {
    const against = told(weight, "alpha").against;
    if (!against || typeof against !== "object") return null;
    const verdict = (ratio, p) => (typeof p !== "number" || p >= UNDECIDED ? "cannot be told apart" : ratio > 0 ? "power law is likelier" : "this law is likelier");
    const rows = Object.entries(against).map(([name, found]) => [visible(name), number(found?.ratio, 3), number(found?.p, 2), verdict(found?.ratio, found?.p)]);
    return rows.length ? card("Rival laws", small(["Law", "Ratio", "p", ""], rows)) : null;
  }

  /** The same entries in random places. */
  function twin(weight) {
    const found = told(weight, "twin_distance");
    const rows = TWIN_ROWS.filter((name) => typeof found[name] === "number" && metricByName.has(name))
      .map((name) => [metricLink(metricByName.get(name)), number(told(weight, name).value), number(found[name])]);
    return rows.length ? card("Beside its randomised twin", small(["", "This weight", "Entries shuffled"], rows)) : null;
  }

  function move(step) {
    const at = drawable.indexOf(shown());
    selection.only(drawable[(at + step + drawable.length) % drawable.length].index);
  }

  function controls() {
    picker = choice("Weight", drawable.map((weight) => [String(weight.index), shortened(visible(weight.name), 90)]), "", (value) => selection.only(Number(value)));
    picker.classList.add("grow");
    const turn = (text, step) => el("button", { type: "button", class: "quiet", click: () => move(step) }, text);
    document.getElementById("reading-controls").append(picker, turn("Previous weight", -1), turn("Next weight", 1));
  }

  function draw() {
    const weight = shown();
    const empty = !(weight.spectrum.quartiles[0] > 0);
    document.getElementById("reading-charts").hidden = empty;
    document.getElementById("reading-words").hidden = empty;
    picker.querySelector("select").value = String(weight.index);
    if (empty) return;
    words(weight);
    charts.refresh(bulkNode);
    charts.refresh(tailNode);
  }

  return {
    start() {
      if (!drawable.length) {
        document.getElementById("reading-hint").textContent = "There are no singular values to draw.";
        document.getElementById("reading-charts").remove();
        return;
      }
      document.getElementById("reading-hint").textContent = "Left: where the singular values lie, and where those of pure noise would. Right: how the largest fall. The weight is the one chosen in the table.";
      controls();
      charts.add(bulkNode, "bulk", bulk);
      charts.add(tailNode, "tail", tail);
      draw();
      selection.listen(draw);
    },
  };
})();
