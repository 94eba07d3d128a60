// What all charts share: colours of the theme, layout, drawing when seen, and drawing anew when something changes.

const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star", "pentagon"];

function logAxis(title, more = {}) {
  return { type: "log", title: { text: title, standoff: 8 }, ...axisLook(), ...more };
}

function linearAxis(title, more = {}) {
  return { type: "linear", title: { text: title, standoff: 8 }, ...axisLook(), ...more };
}

function axisLook() {
  return {
    gridcolor: colour("grid"),
    zeroline: false,
    linecolor: colour("line"),
    showline: false,
    ticks: "",
    automargin: true,
    // Powers of ten as raised text would be inline styles, which the policy refuses.
    exponentformat: "e",
    minorloglabels: "none",
  };
}

/** The layout every chart starts from. */
function baseLayout(more = {}) {
  return {
    font: { family: "system-ui, sans-serif", size: 13, color: colour("muted") },
    paper_bgcolor: colour("surface"),
    plot_bgcolor: colour("surface"),
    margin: { l: 56, r: 16, t: 16, b: 48 },
    hoverlabel: {
      bgcolor: colour("raised"), bordercolor: colour("line"), align: "left",
      font: { family: "system-ui, sans-serif", size: 13, color: colour("ink") },
    },
    hovermode: "closest",
    // On a touch screen a finger on a chart scrolls the page.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0, xanchor: "left", font: { color: colour("ink") } },
    ...more,
  };
}

/** The library's settings; `name` is the file name of an exported picture. */
function chartConfig(name) {
  return {
    displayModeBar: innerWidth < 560 ? false : "hover",
    displaylogo: false,
    // The library would offer to upload a chart to a server: a report stays where it is.
    showSendToCloud: false,
    showEditInChartStudio: false,
    plotlyServerURL: "",
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
    toImageButtonOptions: { filename: `netspectra-${name}`, scale: 2 },
  };
}

/** Run the charts' library, which stands in the page as text: it takes longer to start than all else together. */
function startLibrary() {
  if (window.Plotly) return;
  const began = performance.now();
  const script = document.createElement("script");
  const source = document.getElementById("library");
  script.textContent = source.textContent;
  source.replaceWith(script);
  document.documentElement.dataset.libraryMs = Math.round(performance.now() - began);
}

/** All charts of the page: each draws itself once it is near the screen, and again on `refresh`. */
const charts = (() => {
  const all = new Map();
  let paper = null;
  const draw = (node) => {
    startLibrary();
    const chart = all.get(node);
    if (!chart.drawn) node.replaceChildren();
    chart.drawn = true;
    const { traces, layout, onPick } = chart.make();
    Plotly.react(node, traces, baseLayout(paper ? { ...layout, width: paper } : layout), chartConfig(chart.name));
    if (chart.listening) return;
    chart.listening = true;
    node.on("plotly_click", (event) => {
      const picked = event.points.map((point) => point.customdata ?? point.data.meta).find(Number.isInteger);
      if (picked !== undefined) (onPick ?? selection.toggle)(picked);
    });
  };
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && all.get(entry.target)?.drawn === false) draw(entry.target);
    }
  }, { rootMargin: "300px" });
  return {
    /** Let `make() -> {traces, layout}` draw into `node` when it is seen. */
    add(node, name, make) {
      all.set(node, { name, make, drawn: false });
      node.append(el("p", { class: "waiting" }, "Drawing…"));
      observer.observe(node);
    },
    forget(node) {
      observer.unobserve(node);
      if (all.get(node)?.drawn) Plotly.purge(node);
      all.delete(node);
    },
    /** Draw now, seen or not. */
    draw,
    /** Draw everything at this width for paper, or, with null, as wide as there is room. */
    onPaper(width) {
      paper = width;
      all.forEach((chart, node) => {
        draw(node);
        if (!width) Plotly.Plots.resize(node);
      });
    },
    /** How wide a chart in this node will be. */
    widthOf: (node) => paper ?? node.clientWidth,
    /** Draw anew what has been drawn. */
    refresh(node) {
      if (all.get(node)?.drawn) draw(node);
    },
    refreshAll: () => [...all.keys()].forEach((node) => all.get(node).drawn && draw(node)),
  };
})();

/** Where zeros are drawn on a log axis, and where the axis starts; null when nothing is positive. */
function logFloor(curves) {
  let top = 0;
  let least = Infinity;
  let zeros = 0;
  for (const values of curves) {
    for (const value of values) {
      if (value > 0) {
        top = Math.max(top, value);
        least = Math.min(least, value);
      } else if (value !== null) zeros += 1;
    }
  }
  if (top === 0) return { top: 1, start: 0.01, floor: 0.02, zeros, cut: false };
  const cut = least < top * 1e-9;
  const lowest = cut ? top * 1e-9 : least;
  const floor = 10 ** Math.floor(Math.log10(lowest) - (zeros ? 0.3 : 0));
  return { top, start: zeros ? floor * 0.6 : lowest * 0.7, floor, zeros, cut };
}

/** Range of a log axis that shows everything of `bounds`. */
function logRange(bounds) {
  return [Math.log10(bounds.start), Math.log10(bounds.top * 1.6)];
}

/** The dashed line at the floor, with its label; nothing when there are no zeros. */
function floorMarks(bounds) {
  if (!bounds.zeros) return { shapes: [], annotations: [] };
  return {
    shapes: [{
      type: "line", xref: "paper", x0: 0, x1: 1, y0: bounds.floor, y1: bounds.floor,
      line: { color: colour("muted"), width: 1, dash: "dot" },
    }],
    annotations: [{
      xref: "paper", x: 0, xanchor: "left", yanchor: "bottom", y: Math.log10(bounds.floor), showarrow: false,
      text: "zero is drawn here", font: { size: 11, color: colour("muted") },
    }],
  };
}

/** Values with zeros at the floor. */
function onFloor(values, bounds) {
  return values.map((value) => (value === null ? null : value > 0 ? value : bounds.floor));
}

/** A labelled select that calls back with the chosen value. */
function choice(label, options, value, onChange) {
  const select = el("select", { change: (event) => onChange(event.target.value) });
  for (const [key, text] of options) select.append(el("option", { value: key, selected: key === value }, text));
  return el("label", { class: "field" }, el("span", {}, label), select);
}

/** A labelled check box. */
function check(label, value, onChange) {
  const box = el("input", { type: "checkbox", checked: value, change: (event) => onChange(event.target.checked) });
  return el("label", { class: "tick" }, box, el("span", {}, label));
}
