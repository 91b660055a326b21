// Elements. Whatever comes from a manager becomes text here, and nothing else: no markup is ever
// parsed, and the policy that this page came with would not let it.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with a class, attributes, and children, which are elements or texts. */
export function el(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An SVG element with attributes, which are numbers and words of this page's own. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Sets a text if it is another one. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A shape for each state, so that none is told by colour alone. 16 by 16.
const SHAPES = {
  running: () => [svg("circle", { cx: 8, cy: 8, r: 5.5 })],
  stopped: () => [svg("rect", { class: "outline", x: 3.4, y: 3.4, width: 9.2, height: 9.2, rx: 1.5 })],
  suspended: () => [svg("rect", { x: 3.5, y: 3, width: 3.4, height: 10, rx: 1 }), svg("rect", { x: 9.1, y: 3, width: 3.4, height: 10, rx: 1 })],
  assigned: () => [svg("circle", { class: "outline", cx: 8, cy: 8, r: 5 })],
  check: () => [svg("path", { class: "outline", d: "M3 8.6 6.5 12 13 4.6", "stroke-linecap": "round", "stroke-linejoin": "round" })],
  warn: () => [svg("path", { d: "M8 1.8 15 14H1z" }), svg("path", { d: "M8 6v4M8 11.4v1.2", stroke: "var(--surface)", "stroke-width": 1.6 })],
  bad: () => [svg("path", { d: "M5.3 1.5h5.4l3.8 3.8v5.4l-3.8 3.8H5.3l-3.8-3.8V5.3z" }), svg("path", { d: "M8 4.4v4.6M8 10.4v1.4", stroke: "var(--surface)", "stroke-width": 1.6 })],
  clock: () => [svg("circle", { class: "outline", cx: 8, cy: 8, r: 6 }), svg("path", { class: "outline", d: "M8 4.6V8l2.4 1.6", "stroke-linecap": "round" })],
};

/** A small shape; the text beside it says the same. */
export function glyph(name, level = "") {
  const shape = SHAPES[name] ?? SHAPES.assigned;
  return svg("svg", { class: `glyph ${level}`, viewBox: "0 0 16 16", "aria-hidden": "true" }, ...shape());
}

/** A short word on a ground of its own. */
export function chip(text, level = "", shape = null) {
  return el("span", `chip ${level}`, shape && glyph(shape), text);
}

/** Terms and what they say, as pairs; those that say nothing are left out. */
export function facts(pairs) {
  const list = el("dl", "facts");
  for (const [term, ...said] of pairs) {
    if (said.some((part) => part !== null && part !== undefined && part !== "")) {
      list.append(el("dt", "", term), el("dd", "", ...said));
    }
  }
  return list;
}

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/** Seconds as people say them. */
export function span(seconds) {
  const left = Math.max(0, Math.round(seconds));
  const [unit, size] = UNITS.find(([, size]) => left >= size * (size === 1 ? 0 : 2)) ?? UNITS[3];
  return `${Math.floor(left / size)} ${unit}`;
}

/** How long ago a time was, in words. */
export function ago(time, now) {
  const seconds = (now - Date.parse(time)) / 1000;
  return seconds < 5 ? "just now" : `${span(seconds)} ago`;
}

/** A number with its thousands apart. */
export const count = (number) => number.toLocaleString("en");

/** A rate, with no more digits than it deserves. */
export function rate(perSecond) {
  if (perSecond >= 100) return count(Math.round(perSecond));
  return perSecond >= 10 ? perSecond.toFixed(0) : perSecond.toFixed(1);
}
