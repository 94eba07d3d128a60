// All spectra on log axes: bands of each group behind, chosen weights in front.

const BANDED_ABOVE = 24;
const MOST_GROUPS = 6;
const BAND_POINTS = 140;
const GREY_DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

const spectra = (() => {
  const look = {
    show: weights.length > BANDED_ABOVE ? "bands" : "lines",
    group: "kind",
    logX: true,
    relative: true,
  };
  const node = document.getElementById("spectra-chart");

  function longest() {
    return weights.reduce((most, weight) => Math.max(most, weight.spectrum.count), 2);
  }

  /** Where bands are measured: shares of the rank from nearly 0 to 1, dense where the axis is. */
  function shares() {
    const most = longest();
    if (look.logX) return Array.from({ length: BAND_POINTS }, (_, i) => most ** (i / (BAND_POINTS - 1) - 1));
    // An even grid with its ends refined: spectra fall steeply at both.
    return Array.from({ length: BAND_POINTS }, (_, i) => (1 - Math.cos((Math.PI * (i + 1)) / BAND_POINTS)) / 2);
  }

  function scaleOf(weight) {
    const top = weight.spectrum.quartiles[0];
    return look.relative ? (top > 0 ? top : 1) : 1;
  }

  function heights(weight) {
    const scale = scaleOf(weight);
    return weight.spectrum.values.map((value) => (value === null ? null : value / scale));
  }

  /** Logs of one curve at the given shares; shares below the first rank are those of the largest value. */
  function sampled(weight, at, bounds) {
    const { ranks, count } = weight.spectrum;
    const logs = onFloor(heights(weight), bounds).map((value) => (value === null ? NaN : Math.log10(value)));
    let right = 0;
    return at.map((share) => {
      const rank = share * count;
      if (!ranks.length) return NaN;
      while (right < ranks.length - 1 && ranks[right] < rank) right += 1;
      const left = Math.max(0, right - 1);
      const span = ranks[right] - ranks[left];
      const part = span ? Math.min(1, Math.max(0, (rank - ranks[left]) / span)) : 1;
      return logs[left] + part * (logs[right] - logs[left]);
    });
  }

  /** Smallest, quartiles and largest of a group at every share. */
  function band(members, at, bounds) {
    const curves = members.map((weight) => sampled(weight, at, bounds));
    const kept = [];
    const levels = [[], [], [], [], []];
    at.forEach((share, i) => {
      const column = Float64Array.from(curves.map((curve) => curve[i]).filter((value) => !Number.isNaN(value))).sort();
      if (!column.length) return;
      kept.push(share);
      [0, 0.25, 0.5, 0.75, 1].forEach((q, level) => levels[level].push(10 ** quantile(column, q)));
    });
    return { at: kept, levels };
  }

  function groupName(key) {
    return chartText(look.group === "kind" ? key || "?" : roleNames.get(key) ?? key, 36);
  }

  /** A group's bands: min to max faint, quartiles stronger, the median a line. */
  function bandTraces([key, members], at, bounds, ink, dash, quiet) {
    const { at: x, levels } = band(members, at, bounds);
    const shared = { type: "scatter", mode: "lines", x, legendgroup: key, hoverinfo: "skip" };
    const filled = (from, to, opacity) => [
      { ...shared, y: levels[from], line: { width: 0 }, showlegend: false },
      { ...shared, y: levels[to], line: { width: 0 }, fill: "tonexty", fillcolor: faded(ink, opacity), showlegend: false },
    ];
    const label = `${groupName(key)} (${members.length})`;
    return [
      ...filled(0, 4, quiet ? 0.08 : 0.1),
      ...filled(1, 3, quiet ? 0.14 : 0.22),
      {
        ...shared, y: levels[2], name: label, line: { color: ink, width: quiet ? 1.2 : 2, dash }, hoverinfo: undefined,
        hovertemplate: `median of ${label.replace(/%/g, "%\u200b")}<br>rank share %{x:.3g}<br>%{y:.4g}<extra></extra>`,
      },
    ];
  }

  /** One line for each weight of a group; a click on it chooses the weight. */
  function lineTraces([key, members], bounds, ink, quiet) {
    return members.map((weight, i) => ({
      type: "scatter", mode: "lines", legendgroup: key, name: `${groupName(key)} (${members.length})`, showlegend: i === 0,
      x: weight.spectrum.ranks.map((rank) => rank / weight.spectrum.count), y: onFloor(heights(weight), bounds),
      line: { color: faded(ink, quiet ? 0.25 : 0.55), width: 1.1 }, meta: weight.index,
      text: chartText(weight.name), hovertemplate: "%{text}<br>rank share %{x:.3g}<br>%{y:.4g}<extra></extra>",
    }));
  }

  function chosenTraces(bounds) {
    return selection.chosen.map((index, slot) => {
      const weight = weights[index];
      const few = weight.spectrum.count < 12;
      return {
        type: "scatter", mode: few ? "lines+markers" : "lines", name: chartText(weight.name, 48), meta: index, showlegend: false,
        x: weight.spectrum.ranks.map((rank) => rank / weight.spectrum.count), y: onFloor(heights(weight), bounds),
        line: { color: dataColour(slot), width: index === selection.current ? 3 : 2, dash: slot < 4 ? "solid" : "dash" },
        customdata: weight.spectrum.ranks, text: chartText(weight.name),
        hovertemplate: `%{text}<br>rank %{customdata} of ${weight.spectrum.count}<br>%{y:.4g}<extra></extra>`,
      };
    });
  }

  function make() {
    const drawn = weights.filter((weight) => weight.spectrum.known.length);
    const bounds = logFloor(drawn.map(heights));
    const every = bySize(grouped(drawn, (weight) => weight[look.group]));
    const groups = every.slice(0, MOST_GROUPS);
    const quiet = selection.chosen.length > 0;
    const at = shares();
    const traces = groups.flatMap((group, i) => {
      const ink = quiet ? colour("muted") : dataColour(i);
      const plain = look.show === "lines" || group[1].length === 1;
      return plain ? lineTraces(group, bounds, ink, quiet) : bandTraces(group, at, bounds, ink, quiet ? GREY_DASHES[i] : "solid", quiet);
    });
    note(drawn, bounds, every.length - groups.length);
    const xTitle = "rank as a share of all (1 = the smallest value)";
    const xaxis = look.logX ? logAxis(xTitle, { range: [-Math.log10(longest()) - 0.03, 0.02] }) : linearAxis(xTitle, { range: [-0.01, 1.01] });
    const yaxis = logAxis(look.relative ? "σ / σ₁" : "singular value σ", { range: logRange(bounds) });
    return {
      traces: [...traces, ...chosenTraces(bounds)],
      layout: { xaxis, yaxis, height: 520, ...floorMarks(bounds), legend: { ...baseLayout().legend, itemsizing: "trace" } },
    };
  }

  function note(drawn, bounds, unseen) {
    const parts = [];
    if (look.show === "bands") parts.push("Bands: smallest to largest (faint), middle half (stronger), median (line).");
    if (bounds.zeros) parts.push("Zeros are drawn on the dotted line.");
    if (bounds.cut) parts.push("The axis ends nine decades below the largest value; double-click shows all.");
    if (unseen > 0) parts.push(`${counted(unseen, "smaller group is", "smaller groups are")} not drawn; choose its weights to see them.`);
    if (drawn.length < weights.length) parts.push(`${counted(weights.length - drawn.length, "weight has", "weights have")} no values to draw.`);
    document.getElementById("spectra-note").textContent = parts.join(" ");
  }

  function controls() {
    const set = (key) => (value) => {
      look[key] = value;
      charts.refresh(node);
    };
    const kindsAndRoles = [["kind", "kind"], ["role", "role in the layer"]];
    document.getElementById("spectra-controls").append(
      choice("Show", [["bands", "a band for each group"], ["lines", "every weight"]], look.show, set("show")),
      choice("Group by", kindsAndRoles, look.group, set("group")),
      check("Log rank", look.logX, set("logX")),
      check("Over the largest value", look.relative, set("relative")));
  }

  return {
    start() {
      const part = document.getElementById("spectra");
      if (!weights.some((weight) => weight.spectrum.known.length)) {
        document.getElementById("spectra-hint").textContent = "There are no singular values to draw.";
        part.querySelector("figure").remove();
        return;
      }
      document.getElementById("spectra-hint").textContent = "Straight lines on these axes are power laws; a cliff is low rank. Chosen weights stand in front of their groups; a click on a line chooses or drops its weight.";
      controls();
      charts.add(node, "spectra", make);
      selection.listen(() => charts.refresh(node));
    },
    node,
  };
})();
