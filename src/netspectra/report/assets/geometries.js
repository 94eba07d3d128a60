// The section that shows the geometry of the weights for which it was asked.

const geometries = (() => {
  let view = null;

  function show(index) {
    const data = report.geometry[index];
    view = geometryView(data);
    document.getElementById("geometry-hint").textContent = geometryLead(data);
    document.getElementById("geometry-view").replaceChildren(view.node);
    view.redraw();
  }

  return {
    start() {
      if (!report.geometry.length) return;
      document.getElementById("geometry").hidden = false;
      document.querySelector('.bar a[href="#geometry"]').hidden = false;
      const names = report.geometry.map((data, i) => [String(i), shortened(visible(data.name), 90)]);
      document.getElementById("geometry-controls").append(choice("Weight", names, "0", (value) => show(Number(value))));
      show(0);
    },
    redraw: () => view?.redraw(),
  };
})();
