// The overview: what was analysed, how large, what stands out, what was left out and why.

const SHOWN_OF_RULE = 6;
const GLANCE = ["sigma_max", "sigma_min", "condition_number", "stable_rank", "effective_rank", "alpha", "k90", "frobenius_norm"];

function drawOverview() {
  const path = report.source.path ?? "";
  document.getElementById("title").append(path ? nameNode(String(path), 120) : "Analysis");
  document.title = path ? `${shortened(visible(path), 80)} · netspectra` : "netspectra report";
  document.getElementById("lead").textContent = leadText();
  document.getElementById("figures").append(...figures().map(([term, value, more]) =>
    el("div", {}, el("dt", {}, term), el("dd", {}, value, more ? el("small", {}, more) : null))));
  if (weights.length > 1) document.getElementById("glance").append(glance(), trendsPart());
  document.getElementById("findings").append(findings());
  document.getElementById("origin").append(...[skippedPart(), originPart()].filter(Boolean));
}

/** One sentence that says how the checkpoint is. */
function leadText() {
  if (!weights.length) return "There is nothing to analyse in this source: no tensor was taken for a weight matrix.";
  const numbers = LEVELS.map((_, level) => weights.filter((weight) => weight.level === level).length);
  const parts = [];
  if (numbers[3]) parts.push(counted(numbers[3], "weight with an error", "weights with errors"));
  if (numbers[2]) parts.push(counted(numbers[2], "weight with a warning", "weights with warnings"));
  if (numbers[1]) parts.push(counted(numbers[1], "weight with a note", "weights with notes"));
  const judged = weights.some((weight) => weight.verdicts.length);
  const rest = numbers[0] === weights.length ? (judged ? "Every rule that was applied is content." : "No rule had anything to say.")
    : numbers[0] ? `${counted(numbers[0], "weight is", "weights are")} unremarkable.` : "";
  return `${parts.length ? `${parts.join(", ")}. ` : ""}${rest}`;
}

function figures() {
  const analysed = weights.reduce((sum, weight) => sum + (weight.parameters ?? 0), 0);
  const total = report.source.parameters;
  const dtypes = bySize(grouped(weights, (weight) => weight.dtype));
  const share = typeof total === "number" && total > 0 ? ` of ${amount(total)} (${number((100 * analysed) / total, 3)} %)` : "";
  const values = weights.reduce((sum, weight) => sum + weight.spectrum.count, 0);
  const out = [
    ["Weight matrices", whole(weights.length), typeof report.source.tensors === "number" ? ` of ${counted(report.source.tensors, "tensor")}` : ""],
    ["Parameters in them", amount(analysed), share],
    ["Singular values", amount(values), ` ${howText()}`],
    ["Kinds", whole(kinds.size), ` ${listed(bySize(kinds))}`],
    ["Stored as", dtypes.length ? visible(dtypes[0][0]) : DASH, dtypes.length > 1 ? ` also ${listed(dtypes.slice(1))}` : ""],
    ["Skipped", whole(report.skipped.length), report.skipped.length ? " reasons below" : " nothing"],
  ];
  return out;
}

function listed(groups) {
  const text = groups.slice(0, 4).map(([name, members]) => `${whole(members.length)} ${shortened(visible(name), 24) || "?"}`).join(", ");
  return groups.length > 4 ? `${text}, …` : text;
}

/** How the spectra are known, in a few words. */
function howText() {
  return bySize(grouped(weights, (weight) => weight.spectrum.how)).map(([how, members]) =>
    (members.length === weights.length ? `all ${visible(how)}` : `${visible(how)} for ${members.length}`)).join(", ");
}

/** A link that chooses a weight and shows its details. */
function weightLink(weight, limit = 70) {
  return el("a", { href: `#weight-${weight.index + 1}`, class: "weightlink" }, nameNode(weight.name, limit));
}

/** Range of the main metrics over all weights, with who holds the extremes. */
function glance() {
  const shown = GLANCE.map((name) => metricByName.get(name)).filter((metric) => metric && sortedValues(metric).length > 1);
  if (!shown.length) return "";
  const end = (value, weight) => el("td", { class: "end" }, el("span", { class: "num" }, number(value)), weightLink(weight, 32));
  const rows = shown.slice(0, 6).map((metric) => {
    const sorted = sortedValues(metric);
    const holder = (value) => weights.find((weight) => metricValue(weight, metric) === value);
    return el("tr", {},
      el("th", { scope: "row" }, metricLink(metric), sorted.length < weights.length ? el("small", {}, ` ${whole(sorted.length)} of ${whole(weights.length)} known`) : null),
      end(sorted[0], holder(sorted[0])),
      el("td", { class: "strip" }, strip(metric, sorted)),
      end(sorted.at(-1), holder(sorted.at(-1))),
      el("td", { class: "num" }, number(quantile(sorted, 0.5))),
      el("td", { class: "num" }, number(report.summary.metrics?.[metric.name]?.weighted_mean)));
  });
  const head = el("tr", {}, el("th", { scope: "col" }, "Over all weights"), el("th", { scope: "col" }, "Smallest"),
    el("th", { scope: "col" }, "Where they lie (log)"), el("th", { scope: "col" }, "Largest"),
    el("th", { scope: "col", class: "num" }, "Median"), el("th", { scope: "col", class: "num" }, "Mean by size"));
  return el("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "Range of the main metrics" },
    el("table", { class: "glance" }, el("thead", {}, head), el("tbody", {}, rows)));
}

/** A tick for every weight on a log scale (linear where a value is not positive), the median marked. */
function strip(metric, sorted) {
  const scale = sorted[0] > 0 ? Math.log : (x) => x;
  const from = scale(sorted[0]);
  const width = scale(sorted.at(-1)) - from || 1;
  const at = (value) => (4 + (192 * (scale(value) - from)) / width).toFixed(1);
  const seen = new Set(Array.from(sorted, at));
  return svg("svg", { viewBox: "0 0 200 18", width: 200, height: 18, "aria-hidden": "true", class: "stripline" },
    svg("path", { d: "M4 9H196", class: "rail" }),
    svg("path", { d: [...seen].map((x) => `M${x} 4V14`).join(""), class: "ticks" }),
    svg("path", { d: `M${at(quantile(sorted, 0.5))} 1V17`, class: "mid" }));
}

/** The metric's title, leading to its entry in the glossary. */
function metricLink(metric) {
  return metric.entry ? el("a", { href: `#metric-${metric.index + 1}`, class: "plainlink" }, visible(metric.title)) : visible(metric.title);
}

/** A badge that says a level by word and shape, not by colour alone. */
function badge(level, text = LEVEL_WORDS.get(level) ?? visible(level)) {
  const known = LEVEL_WORDS.has(level) ? level : "note";
  const shapes = { ok: "M3 8l3.5 3.5L13 5", note: "M8 4v.5M8 7.5v5", warn: "M8 3v6.5M8 12v.8", error: "M4 4l8 8M12 4l-8 8" };
  return el("span", { class: `badge ${known}` }, svg("svg", { viewBox: "0 0 16 16", width: 12, height: 12, "aria-hidden": "true" }, svg("path", { d: shapes[known] })), el("span", {}, text));
}

/** Evidence as small pairs of name and value, but for what was said already. */
function evidence(verdict, said = new Map()) {
  const entries = Object.entries(verdict.evidence ?? {}).filter(([key]) => !said.has(key));
  if (!entries.length) return null;
  return el("span", { class: "evidence" }, entries.slice(0, 12).map(([key, value]) =>
    el("span", {}, el("i", {}, shortened(visible(key), 40)), ` ${inline(value)}`)));
}

function findings() {
  const all = weights.flatMap((weight) => weight.verdicts.filter((verdict) => verdict.level !== "ok").map((verdict) => ({ weight, verdict })));
  if (!all.length) return "";
  const rules = [...grouped(all, ({ verdict }) => `${verdict.level} ${verdict.rule}`).values()];
  rules.sort((a, b) => LEVELS.indexOf(b[0].verdict.level) - LEVELS.indexOf(a[0].verdict.level) || b.length - a.length);
  return el("div", { class: "block" }, el("h3", {}, "What stands out"), el("div", { class: "rules" }, rules.map(ruleCard)));
}

/** The evidence that all verdicts of a rule share: its standing, reference and advice, most often. */
function shared(items) {
  const [first, ...rest] = items.map(({ verdict }) => verdict.evidence ?? {});
  const same = (key) => rest.every((other) => JSON.stringify(other[key]) === JSON.stringify(first[key]));
  return new Map(Object.entries(first).filter(([key]) => same(key)));
}

/** Everything one rule said, the first few at once, the rest on demand. */
function ruleCard(items) {
  const said = items[0].verdict.message ?? "";
  const alike = items.length > 1 && items.every(({ verdict }) => (verdict.message ?? "") === said);
  const common = shared(items);
  const item = ({ weight, verdict }) => el("li", {}, weightLink(weight, 64), alike ? null : el("p", {}, visible(verdict.message ?? "")), evidence(verdict, common));
  const list = el("ul", {}, items.slice(0, SHOWN_OF_RULE).map(item));
  const more = items.length - SHOWN_OF_RULE;
  const all = el("button", {
    type: "button", class: "quiet", click: () => {
      list.append(...items.slice(SHOWN_OF_RULE).map(item));
      list.children[SHOWN_OF_RULE].querySelector("a").focus();
      all.remove();
    },
  }, `Show ${more} more`);
  const { level, rule } = items[0].verdict;
  return el("article", { class: `rule ${LEVEL_WORDS.has(level) ? level : "note"}` },
    el("h4", {}, badge(level), el("span", { class: "rulename" }, visible(rule ?? "")), el("small", {}, counted(items.length, "weight"))),
    alike ? el("p", { class: "said" }, visible(said)) : null, evidence({ evidence: Object.fromEntries(common) }), list, more > 0 ? all : null);
}

/** What was skipped, by reason. */
function skippedPart() {
  if (!report.skipped.length) return null;
  const reasons = bySize(grouped(report.skipped, (entry) => entry[2]));
  return el("details", { class: "fold", id: "skipped" },
    el("summary", {}, `Skipped: ${counted(report.skipped.length, "tensor")}, for ${counted(reasons.length, "reason")}`),
    reasons.map(([reason, entries]) => {
      const list = el("ul", { class: "names" });
      const show = (from, to) => list.append(...entries.slice(from, to).map(([name, shape]) => el("li", {}, nameNode(name, 100), el("small", {}, ` ${shapeText(shape)}`))));
      show(0, 40);
      const more = el("button", { type: "button", class: "quiet", click: () => { show(40); more.remove(); } }, `Show all ${entries.length}`);
      return el("div", { class: "reason" }, el("h4", {}, visible(reason), el("small", {}, counted(entries.length, "tensor"))), list, entries.length > 40 ? more : null);
    }));
}

/** Source, options and summary as they stand in the document. */
function originPart() {
  const table = (title, object) => {
    const entries = Object.entries(object);
    return entries.length ? el("div", {}, el("h4", {}, title), el("dl", { class: "pairs" }, entries.map(([key, value]) =>
      [el("dt", {}, visible(key)), el("dd", {}, typeof value === "string" ? nameNode(value, 400) : inline(value))]))) : null;
  };
  const { metrics: aggregates, trends, ...counts } = report.summary;
  return el("details", { class: "fold" }, el("summary", {}, "Source, options and summary"),
    el("div", { class: "threecol" }, table("Source", report.source), table("Options", report.options), table("Summary", counts)));
}
