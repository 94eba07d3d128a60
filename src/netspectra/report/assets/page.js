// The page comes to life: text and table at once, charts when they are seen, links into the table, theme, print.

const PAPER_WIDTH = 660;

function drawGlossary() {
  const entries = [
    ...metrics.map((metric) => ({ ...metric.entry, title: metric.title, name: metric.name, id: `metric-${metric.index + 1}` })),
    ...report.glossary.filter((entry) => !metricByName.has(entry.name)),
  ];
  const part = (label, text, className) => (text ? [el("dt", {}, label), el("dd", { class: className ?? null }, visible(text))] : []);
  document.getElementById("entries").append(...(entries.length ? entries : [{ title: "No metrics were computed", name: "" }]).map((entry) =>
    el("article", { class: "entry", id: entry.id ?? null, tabindex: -1 },
      el("h3", {}, visible(entry.title || entry.name), " ", el("code", {}, visible(entry.name))),
      entry.formula ? el("p", { class: "formula" }, visible(entry.formula)) : null,
      el("p", {}, visible(entry.meaning ?? "")),
      el("dl", { class: "pairs" }, part("Range", entry.range), part("Reference", entry.reference)))));
}

/** Links like #weight-12 choose that weight and show it. */
function followHash() {
  const match = /^#weight-(\d+)$/.exec(location.hash);
  const weight = match && weights[Number(match[1]) - 1];
  if (!weight) return;
  selection.only(weight.index);
  const line = table.reveal(weight.index);
  document.getElementById("weights").scrollIntoView();
  line.focus({ preventScroll: true });
}

function startPrinting() {
  addEventListener("beforeprint", () => {
    table.draw(weights.length <= 500);
    theme.onPaper(true);
    charts.onPaper(PAPER_WIDTH);
    document.querySelectorAll("details.fold").forEach((fold) => { fold.dataset.was = fold.open; fold.open = true; });
  });
  addEventListener("afterprint", () => {
    table.draw();
    theme.onPaper(false);
    charts.onPaper(null);
    document.querySelectorAll("details.fold").forEach((fold) => { fold.open = fold.dataset.was === "true"; });
  });
}

/** Panels have as many columns as fit: draw them anew when the width has changed. */
function followWidth() {
  let width = innerWidth;
  let waiting = null;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (innerWidth === width) return;
      width = innerWidth;
      charts.refresh(depth.node);
    }, 200);
  });
}

/** Mark in the bar which section is being read. */
function followSections() {
  const links = new Map([...document.querySelectorAll(".bar nav a")].map((link) => [link.hash.slice(1), link]));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link, id) => {
        if (id === entry.target.id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    }
  }, { rootMargin: "-25% 0px -70% 0px" });
  document.querySelectorAll("main > section").forEach((section) => observer.observe(section));
}

function drawPage() {
  drawOverview();
  table.start();
  details.start();
  drawGlossary();
  document.getElementById("foot").textContent = `Made by netspectra${report.version ? ` ${visible(report.version)}` : ""}. This page is complete in itself and loads nothing.`;
  theme.start();
  theme.listen(charts.refreshAll);
  theme.listen(geometries.redraw);
  startPrinting();
  followWidth();
  followSections();
  addEventListener("hashchange", followHash);
}

/** Set up the charts; when the page rests draw the first, seen or not, and say on the root when it stood. */
function drawCharts() {
  const root = document.documentElement;
  spectra.start();
  reading.start();
  depth.start();
  geometries.start();
  followHash();
  requestAnimationFrame(() => requestIdleCallback(() => {
    const began = performance.now();
    if (spectra.node.isConnected) charts.draw(spectra.node);
    root.dataset.drawMs = Math.round(performance.now() - began - Number(root.dataset.libraryMs ?? 0));
    root.dataset.chartsMs = Math.round(performance.now());
    root.dataset.ready = "yes";
    window.netspectraReady = true;
  }, { timeout: 500 }));
}

drawPage();
document.documentElement.dataset.tableMs = Math.round(performance.now());
document.addEventListener("DOMContentLoaded", drawCharts);
