// A page of text and figures: the figures are drawn in the colours of the theme.

const page = JSON.parse(document.getElementById("data").textContent);
const PAPER = 680;

/** The same with every colour of the light theme replaced by that of the current one, however deep it lies. */
function inTheme(value) {
  if (typeof value === "string") return Object.hasOwn(page.colours, value) ? colour(page.colours[value]) : value;
  if (Array.isArray(value)) return value.map(inTheme);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, inTheme(one)]));
}

/** A figure's layout with the page's axes; its own numbers of the exponents would be refused by the policy. */
function layoutInTheme(layout) {
  const themed = inTheme(layout);
  for (const key of Object.keys(themed).filter((name) => /^[xy]axis\d*$/.test(name))) {
    themed[key] = { ...axisLook(), ticklabelstandoff: 4, ...themed[key], exponentformat: "e", minorloglabels: "none" };
  }
  return themed;
}

page.figures.forEach((figure, place) => {
  const node = document.getElementById(`figure${place}`);
  node.style.height = `${figure.layout.height ?? 450}px`;
  charts.add(node, `figure-${place + 1}`, () => ({ traces: inTheme(figure.data), layout: layoutInTheme(figure.layout) }));
});
theme.start();
theme.listen(() => charts.refreshAll());
addEventListener("beforeprint", () => {
  theme.onPaper(true);
  charts.onPaper(PAPER);
});
addEventListener("afterprint", () => {
  theme.onPaper(false);
  charts.onPaper(null);
});
document.documentElement.dataset.ready = "yes";
