// The chosen weights: chips, their spectra on one chart, and all that is known of the current one.

const TOLD_ELSEWHERE = ["value", "low", "high", "note", "reason", "why", "against", "interval"];
const MOST_FINDINGS = 8;

const details = (() => {
  const panel = document.getElementById("details");
  const look = { logX: true };
  let chart = null;

  /** One chip for each chosen weight: press to show it, the cross drops it. */
  function chips() {
    if (!selection.chosen.length) return null;
    const one = (index, slot) => el("span", { class: "chip", "data-slot": slot + 1, "data-current": index === selection.current ? "" : null },
      el("button", { type: "button", "aria-pressed": String(index === selection.current), click: () => selection.show(index) }, el("span", { class: "swatch", "aria-hidden": "true" }), nameNode(weights[index].name, 38)),
      el("button", { type: "button", class: "drop", "aria-label": `Drop weight ${index + 1}`, click: () => selection.toggle(index) }, "×"));
    return el("div", { class: "chips" }, selection.chosen.map(one), el("button", { type: "button", class: "quiet", click: () => selection.clear() }, "Clear"));
  }

  function draw() {
    if (chart) charts.forget(chart);
    chart = null;
    document.getElementById("spectra-chosen").replaceChildren(...[chips()].filter(Boolean));
    const weight = weights[selection.current];
    if (!weight) {
      panel.replaceChildren(empty());
      return;
    }
    chart = el("div", { class: "chart small" });
    const several = selection.chosen.length > 1;
    panel.replaceChildren(...[
      several ? chips() : null,
      el("div", { class: "detailhead" },
        el("h3", { id: "details-title", tabindex: -1 }, nameNode(weight.name)),
        several ? null : el("button", { type: "button", class: "quiet", click: () => selection.clear() }, "Close")),
      facts(weight), verdictList(weight), noteList(weight),
      el("div", { class: "controls tight" }, check("Log rank", look.logX, (on) => { look.logX = on; charts.refresh(chart); })),
      el("figure", {}, chart, el("figcaption", {}, spectrumNote(weight))),
      weight.spectrum.quartiles[0] > 0 ? el("p", {}, el("a", { href: "#reading" }, "Bulk and tail of this weight"), geometries.has(weight) ? [" · ", el("a", { href: "#geometry" }, "Geometry")] : null) : null,
      metricTable(weight),
    ].filter(Boolean));
    charts.add(chart, "weight", () => make(weight));
    announce(`Details of ${shortened(visible(weight.name), 80)}`);
  }

  function empty() {
    return el("p", { class: "emptystate" }, weights.length ? "Choose a row to see its full spectrum, every metric with its meaning, and what the rules found." : "There are no weights to show.");
  }

  function facts(weight) {
    const pairs = [
      ["Kind", visible(weight.kind) || DASH], ["Shape", shapeText(weight.shape)], ["Stored as", visible(weight.dtype) || DASH],
      ["Parameters", inline(weight.parameters)], ["Values", `${whole(weight.spectrum.count)}, ${visible(weight.spectrum.how) || "unknown how"}`],
      ["Error of each", weight.spectrum.error === null ? "not given" : `≤ ${number(weight.spectrum.error)}`],
      weight.layer === null ? null : ["Layer", whole(weight.layer)],
      weight.aliases.length ? ["Also named", el("span", {}, weight.aliases.map((alias) => [nameNode(alias, 90), " "]))] : null,
      weight.delta ? ["Change", inline(weight.delta)] : null,
      weight.operator ? ["Operator", operatorText(weight.operator)] : null,
    ].filter(Boolean);
    return el("dl", { class: "facts" }, pairs.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
  }

  function operatorText(operator) {
    const extra = Object.entries(operator.extra ?? {}).map(([key, value]) => `${visible(key)} ${inline(value)}`).join(", ");
    return `${counted(operator.count, "value")}, ${visible(operator.how)}${extra ? `; ${extra}` : ""}${operator.error === null ? "" : `; error ≤ ${number(operator.error)}`}`;
  }

  function verdictList(weight) {
    if (!weight.verdicts.length) return null;
    return el("ul", { class: "verdicts" }, weight.verdicts.map((verdict) =>
      el("li", {}, badge(verdict.level), " ", el("span", { class: "rulename" }, visible(verdict.rule ?? "")), el("p", {}, visible(verdict.message ?? "")), evidence(verdict))));
  }

  function noteList(weight) {
    return weight.notes.length ? el("ul", { class: "notes" }, weight.notes.map((note) => el("li", {}, inline(note)))) : null;
  }

  function spectrumNote(weight) {
    const { count, ranks, quartiles, drowned, known } = weight.spectrum;
    const parts = [];
    if (!count) parts.push("No singular values are known.");
    else if (!known.length) parts.push("None of the values is a finite number.");
    else if (quartiles[0] === 0) parts.push("Every singular value is zero.");
    if (ranks.length < count) parts.push(`${ranks.length} of ${whole(count)} values are drawn: both ends, the extremes, and a log grid between.`);
    if (weight.spectrum.how === "partial") parts.push("Only the leading values are known.");
    if (weight.spectrum.how === "estimated") parts.push("The values are estimates.");
    if (drowned) parts.push(`${counted(drowned, "value is", "values are")} no larger than the error bound, so they cannot be told from zero.`);
    if (weight.operator) parts.push("Dashed: the true operator; solid: the unfolded matrix.");
    return parts.join(" ");
  }

  /** All chosen spectra against rank, the current one strongest, with its operator and its error bound. */
  function make(weight) {
    const chosen = selection.chosen.map((index) => weights[index]);
    const bounds = logFloor([...chosen.map((other) => other.spectrum.values), weight.operator?.values ?? []]);
    const trace = (curve, slot, name, dash, width) => ({
      type: "scatter", mode: curve.known.length < 12 ? "lines+markers" : "lines", showlegend: false,
      x: curve.ranks, y: onFloor(curve.values, bounds), line: { color: dataColour(slot), width, dash },
      text: name, hovertemplate: "%{text}<br>rank %{x}: %{y:.5g}<extra></extra>",
    });
    const traces = chosen.map((other, slot) => trace(other.spectrum, slot, chartText(other.name, 44), slot < 4 ? "solid" : "dash", other === weight ? 2.6 : 1.4));
    if (weight.operator) traces.push(trace(weight.operator, selection.slot(weight.index), "operator", "dash", 1.8));
    const marks = floorMarks(bounds);
    const error = weight.spectrum.error;
    if (error > bounds.start && error < bounds.top) {
      marks.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: error, y1: error, line: { color: colour("warn"), width: 1.2, dash: "dash" } });
      marks.annotations.push({ xref: "paper", x: 0, xanchor: "left", yanchor: "bottom", y: Math.log10(error), showarrow: false, text: "error bound", font: { size: 11, color: colour("warn") } });
    }
    const most = Math.max(1, ...chosen.map((other) => other.spectrum.count), look.logX ? weight.operator?.count ?? 1 : 1);
    const xaxis = look.logX ? logAxis("rank", { range: [-0.03, Math.log10(most * 1.05)] }) : linearAxis("rank", { rangemode: "tozero" });
    return { traces, layout: { height: 300, margin: { l: 54, r: 8, t: 12, b: 44 }, xaxis, yaxis: logAxis("σ", { range: logRange(bounds) }), ...marks } };
  }

  /** All metrics: one weight with place among all and meaning, several weights side by side. */
  function metricTable(weight) {
    if (!metrics.length) return null;
    return selection.chosen.length > 1 ? comparison() : el("dl", { class: "metrics" }, metrics.map((metric) => metricEntry(weight, metric)));
  }

  function metricEntry(weight, metric) {
    const found = finding(weight, metric);
    const share = percentile(metric, found.value);
    const plain = Object.entries(found).filter(([key, value]) => !TOLD_ELSEWHERE.includes(key) && value !== null && value !== "");
    const more = plain.slice(0, MOST_FINDINGS);
    const range = typeof found.low === "number" && typeof found.high === "number" ? `${number(found.low)} to ${number(found.high)}` : "";
    return el("div", {},
      el("dt", {}, metricLink(metric)),
      el("dd", { class: "value" }, number(found.value, 5), range ? el("small", {}, ` ${range}`) : null),
      el("dd", { class: "place" }, share === null ? "" : meter(share)),
      el("dd", { class: "meaning" }, [found.note && visible(found.note), more.map(([key, value]) => `${visible(key).replaceAll("_", " ")} ${inline(value)}`).join(", ") + (plain.length > more.length ? ", …" : ""), metric.entry?.meaning && visible(metric.entry.meaning)].filter(Boolean).map((text) => el("span", {}, text))));
  }

  /** Where the value lies among all weights, as a line with a mark. */
  function meter(share) {
    const text = `larger than in ${Math.round(100 * share)} % of the weights`;
    return svg("svg", { viewBox: "0 0 100 12", width: 100, height: 12, role: "img", "aria-label": text, class: "meter" }, svg("title", {}, text),
      svg("path", { d: "M2 6H98", class: "rail" }), svg("circle", { cx: (4 + 92 * share).toFixed(1), cy: 6, r: 4 }));
  }

  function comparison() {
    const head = el("tr", {}, el("th", { scope: "col" }, "Metric"), selection.chosen.map((index, slot) =>
      el("th", { scope: "col", class: "num", "data-slot": slot + 1, title: visible(shortened(weights[index].name, 300)) }, el("span", { class: "swatch" }), `#${index + 1}`)));
    const rows = metrics.map((metric) => el("tr", {}, el("th", { scope: "row" }, metricLink(metric)),
      selection.chosen.map((index) => el("td", { class: "num" }, number(metricValue(weights[index], metric))))));
    return el("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "Comparison of the chosen weights" },
      el("table", { class: "comparison" }, el("thead", {}, head), el("tbody", {}, rows)));
  }

  return {
    start() {
      selection.listen(draw);
      draw();
    },
    /** Focus the heading of the details. */
    focus: () => document.getElementById("details-title")?.focus({ preventScroll: true }),
  };
})();
