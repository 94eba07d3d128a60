// Text and elements. Every string of the document reaches the page through `textContent` or `setAttribute`, made
// visible first: control, bidi and zero-width characters show as escapes and cannot reorder what stands around them.

const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\u115f\u1160\u3164\ufe00-\ufe0f]/gu;
const SVG = "http://www.w3.org/2000/svg";
const DASH = "–";

/** The visible escape of one invisible character. */
function escapeOf(character) {
  const code = character.codePointAt(0);
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
  return code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

/** Any value as text without invisible characters. */
function visible(value) {
  return String(value).replace(UNSEEN, escapeOf);
}

/** Text of at most `limit` characters: the middle goes, because names differ at their ends. */
function shortened(text, limit) {
  const characters = Array.from(text);
  if (characters.length <= limit) return text;
  const head = Math.ceil(limit * 0.4);
  return `${characters.slice(0, head).join("")}…${characters.slice(head + 1 - limit).join("")}`;
}

/** Text for a chart label, where the library would read a little markup. */
function chartText(value, limit = 60) {
  return shortened(visible(value), limit).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An HTML element; attributes that are functions become listeners, strings among the children become text. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A long name without what most names share: all before the word at its layer number, and a last ".weight". */
function compact(name) {
  return name.replace(/^.+?(?=(?<=[._/])[^._/]*[._/]\d+[._/])/, "…").replace(/\.weight$/, "");
}

/** A name, isolated and escaped: all of it, free to break after dots and slashes, or at most `limit` characters,
 *  without its common parts, and without its middle where that is not enough. */
function nameNode(name, limit = 0) {
  const node = el("bdi", { class: "name" });
  const cut = limit && name.length > limit;
  const characters = Array.from(cut ? compact(name.slice(0, 200)) + name.slice(200) : name);
  if (cut) node.title = visible(shortened(name, 600));
  const head = limit && characters.length > limit ? Math.ceil(limit * 0.4) : characters.length;
  const pieces = [characters.slice(0, head).join("")];
  if (head < characters.length) pieces.push("…", characters.slice(head + 1 - limit).join(""));
  if (!name) node.append(el("span", { class: "escape" }, "(empty name)"));
  for (const piece of pieces) {
    for (const part of limit ? [piece] : piece.split(/(?<=[._/])/)) {
      let from = 0;
      for (const match of part.matchAll(UNSEEN)) {
        node.append(part.slice(from, match.index), el("span", { class: "escape" }, escapeOf(match[0])));
        from = match.index + match[0].length;
      }
      node.append(part.slice(from), limit ? "" : el("wbr"));
    }
  }
  return node;
}

const RAISED = new Map(Array.from("-0123456789", (c, i) => [c, Array.from("⁻⁰¹²³⁴⁵⁶⁷⁸⁹")[i]]));

/** A number for people: four significant digits, thin spaces in thousands, powers of ten where it is far from 1. */
function number(value, digits = 4) {
  if (typeof value !== "number" || !Number.isFinite(value)) return DASH;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return whole(value);
  if (size >= 1e-3 && size < 1e6) {
    const text = size >= 10 ** digits ? String(Math.round(value)) : value.toPrecision(digits);
    return size >= 1e4 ? whole(Number(text)) : minus(text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  }
  const [mantissa, exponent] = value.toExponential(digits - 2).split("e");
  const power = Array.from(String(Number(exponent)), (c) => RAISED.get(c)).join("");
  return `${minus(mantissa.replace(/\.?0+$/, ""))}×10${power}`;
}

function minus(text) {
  return text.replace("-", "−");
}

/** A whole number with thin spaces between thousands. */
function whole(value) {
  return minus(String(value)).replace(/\B(?=(\d{3})+$)/g, "\u2009");
}

/** 33400000 -> "33.4 M". */
function amount(value) {
  if (typeof value !== "number") return DASH;
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))}\u202f${unit}`;
  }
  return String(value);
}

/** "1 weight", "3 weights". */
function counted(count, one, many = `${one}s`) {
  return `${whole(count)} ${count === 1 ? one : many}`;
}

/** Something of the evidence or options as one line of text. */
function inline(value) {
  if (value === null || value === undefined) return DASH;
  if (typeof value === "number") return number(value);
  if (Array.isArray(value) && !value.length) return DASH;
  if (Array.isArray(value)) return value.length > 8 ? `${value.slice(0, 8).map(inline).join(", ")}, …` : value.map(inline).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([k, v]) => `${visible(k)} ${inline(v)}`).join(", ");
  return shortened(visible(value), 300);
}

/** A shape as "768 × 3072". */
function shapeText(shape) {
  return Array.isArray(shape) ? shape.map((side) => visible(side)).join(" × ") || "scalar" : inline(shape);
}
