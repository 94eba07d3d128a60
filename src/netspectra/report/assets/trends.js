// What changes with depth, by the document's summary: the trends that are beyond chance and more than a little.

const CHANGE = 1.5;
const MOST_TRENDS = 8;

function trendsPart() {
  const all = Array.isArray(report.summary.trends) ? report.summary.trends : [];
  const size = ({ first, last }) => Math.abs(Math.log(last / first));
  const told = all.filter((trend) => trend.p < 0.01 / all.length && size(trend) > Math.log(CHANGE)).sort((a, b) => size(b) - size(a));
  if (!told.length) return "";
  const rows = told.slice(0, MOST_TRENDS).map(({ role, metric, layers, first, last, tau }) => {
    const known = metricByName.get(metric);
    return el("tr", {},
      el("th", { scope: "row" }, nameNode(String(role), 48)),
      el("td", {}, known ? metricLink(known) : visible(metric)),
      el("td", { class: "num" }, number(first, 3)), el("td", { class: "num" }, number(last, 3)),
      el("td", { class: "num" }, number(tau, 2)), el("td", { class: "num" }, whole(layers)));
  });
  const head = [["With depth"], ["Metric"], ["First layer", "num"], ["Last layer", "num"], ["Kendall’s τ", "num"], ["Layers", "num"]];
  const more = told.length - rows.length;
  return el("div", { class: "block" },
    el("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "What changes with depth" },
      el("table", { class: "glance trends" },
        el("thead", {}, el("tr", {}, head.map(([text, style]) => el("th", { scope: "col", class: style }, text)))), el("tbody", {}, rows))),
    el("p", { class: "hint" }, `Ends of the line through the layers; only trends beyond chance (p < 0.01, divided by the ${counted(all.length, "trend")} tried) and of ${CHANGE} times or more.${more > 0 ? ` ${more} more in the JSON.` : ""}`));
}
