// The section that shows the geometry of the weights for which it was asked.

const geometries = (() => {
  const places = new Map(report.geometry.map((data, i) => [data.name, i]));
  let view = null;
  let shown = null;

  function show(index) {
    if (index === shown) return;
    shown = index;
    const data = report.geometry[index];
    document.querySelector("#geometry-controls select").value = String(index);
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
      selection.listen(() => {
        const current = weights[selection.current];
        if (current && places.has(current.name)) show(places.get(current.name));
      });
    },
    /** Whether there is one of this weight. */
    has: (weight) => places.has(weight.name),
    redraw: () => view?.redraw(),
  };
})();
