// The document: weights with their curves, metrics by position, roles and layer numbers, and what is chosen.

const report = JSON.parse(document.getElementById("data").textContent);
const LEVELS = ["ok", "note", "warn", "error"];
const LEVEL_WORDS = new Map([["ok", "ok"], ["note", "note"], ["warn", "warning"], ["error", "error"]]);
const MOST_CHOSEN = 8;

const glossary = new Map(report.glossary.map((entry) => [entry.name, entry]));
const metrics = report.metrics.map((name, index) => ({
  name,
  index,
  title: glossary.get(name)?.title || name.replaceAll("_", " "),
  entry: glossary.get(name) ?? null,
}));
const metricByName = new Map(metrics.map((metric) => [metric.name, metric]));

/** The curve of a spectrum: ranks from 1, values (null where unknown), how many there are in truth. */
function curveOf(spectrum) {
  return {
    ...spectrum,
    ranks: report.grids[spectrum.grid].map((position) => position + 1),
    known: spectrum.values.filter((value) => value !== null),
  };
}

/** The name without its numbers, and without what every layer shares around them. */
function roleOf(name) {
  return name.replace(/\.weight(?=\[|$)/, "").replace(/\d+/g, "#");
}

/** The first number that is a whole part of the name, as a layer number. */
function layerOf(name) {
  const match = /(?:^|[._/])(\d{1,4})(?=[._/[]|$)/.exec(name);
  return match ? Number(match[1]) : null;
}

const weights = report.weights.map((raw, index) => ({
  ...raw,
  index,
  aliases: raw.aliases ?? [],
  verdicts: raw.verdicts ?? [],
  notes: raw.notes ?? [],
  spectrum: curveOf(raw.spectrum),
  operator: raw.operator ? curveOf(raw.operator) : null,
  role: roleOf(raw.name),
  layer: layerOf(raw.name),
  level: Math.max(0, ...(raw.verdicts ?? []).map((verdict) => LEVELS.indexOf(verdict.level))),
}));

/** One metric of one weight as {value, low, high, note, ...details}; value is null where it is not known. */
function finding(weight, metric) {
  const raw = weight.metrics[metric.index];
  const own = weight.details && Object.hasOwn(weight.details, metric.name) ? weight.details[metric.name] : null;
  const more = own !== null && typeof own === "object" ? own : {};
  if (raw === null || typeof raw !== "object") return { ...more, value: typeof raw === "number" ? raw : null };
  const value = typeof raw.value === "number" ? raw.value : null;
  return { ...more, ...raw, value, note: raw.note ?? raw.reason ?? raw.why ?? "" };
}

/** The number alone, or null. */
function metricValue(weight, metric) {
  return finding(weight, metric).value;
}

/** Items gathered by a key, in order of first appearance. */
function grouped(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}

/** Groups as [name, members], largest first, ties in order of appearance. */
function bySize(groups) {
  return [...groups].sort((a, b) => b[1].length - a[1].length);
}

const kinds = grouped(weights, (weight) => weight.kind);
const roles = grouped(weights, (weight) => weight.role);
const roleNames = shortRoles([...roles.keys()]);

/** Roles by the part after their last layer number, as long as that tells them apart. */
function shortRoles(names) {
  const short = names.map((name) => (/#[._/](?=[^#]*$)(.+)$/.exec(name)?.[1] ?? name));
  const times = grouped(short, (name) => name);
  return new Map(names.map((name, i) => [name, times.get(short[i]).length === 1 ? short[i] : name]));
}

/** Sorted known values of a metric over all weights, made once. */
const sortedValues = (() => {
  const cache = new Map();
  return (metric) => {
    if (!cache.has(metric.name)) {
      const known = weights.map((weight) => metricValue(weight, metric)).filter((value) => value !== null);
      cache.set(metric.name, Float64Array.from(known).sort());
    }
    return cache.get(metric.name);
  };
})();

/** Share of the weights whose value is below this one, ties counted half; null with fewer than five weights. */
function percentile(metric, value) {
  const sorted = sortedValues(metric);
  if (sorted.length < 5 || value === null) return null;
  const below = sorted.findIndex((other) => other >= value);
  const first = below < 0 ? sorted.length : below;
  const upTo = sorted.findLastIndex((other) => other <= value) + 1;
  return (first + Math.max(upTo, first)) / 2 / sorted.length;
}

/** Linear quantile of a sorted array. */
function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** What is chosen: indices of weights in order of choice, the last of which is shown in full. */
const selection = (() => {
  let chosen = [];
  let current = null;
  const listeners = [];
  const tell = () => listeners.forEach((listener) => listener());
  return {
    get chosen() { return chosen; },
    get current() { return current; },
    has: (index) => chosen.includes(index),
    slot: (index) => chosen.indexOf(index),
    listen: (listener) => listeners.push(listener),
    only(index) {
      chosen = [index];
      current = index;
      tell();
    },
    toggle(index) {
      if (chosen.includes(index)) {
        chosen = chosen.filter((other) => other !== index);
        if (current === index) current = chosen.at(-1) ?? null;
      } else {
        chosen = [...chosen, index].slice(-MOST_CHOSEN);
        current = index;
      }
      tell();
    },
    show(index) {
      current = index;
      tell();
    },
    clear() {
      chosen = [];
      current = null;
      tell();
    },
  };
})();

/** Say something to screen readers. */
function announce(text) {
  document.getElementById("live").textContent = text;
}
