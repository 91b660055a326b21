// What happened, newest first.

import { el, glyph, say } from "./dom.js";

/** As many are drawn; the model keeps more. */
const SHOWN = 150;

const SHAPES = {
  attached: ["running", ""], detached: ["assigned", ""], certified: ["check", "ok"], reset: ["assigned", ""],
  "launch-measured": ["check", ""],
  created: ["assigned", ""], started: ["running", "ok"], stopped: ["stopped", ""], deleted: ["stopped", ""],
  suspended: ["suspended", ""], resumed: ["running", "ok"], durable: ["check", "ok"], renewed: ["check", "ok"],
  restarted: ["warn", "warn"], degraded: ["warn", "warn"], missed: ["warn", "warn"],
  "generation-changed": ["warn", "warn"], "host-restarted": ["warn", "warn"], "state-lost": ["bad", "bad"],
};

const drawn = new Map();

/** Draws what is new; the other lines stay, so that the list does not jump. */
export function drawEvents(list, model, now, open) {
  const events = model.events.slice(0, SHOWN);
  if (events.length === 0) {
    drawn.clear();
    list.replaceChildren(el("li", "nothing", "Nothing has happened since this page is open."));
    return;
  }
  const isTop = list.scrollTop < 8;
  const wanted = new Set(events);
  for (const [event, line] of drawn) {
    if (!wanted.has(event)) {
      line.remove();
      drawn.delete(event);
    }
  }
  if (list.firstChild?.className === "nothing") list.replaceChildren();
  let next = list.firstChild;
  for (const event of events) {
    const line = drawn.get(event);
    if (line) {
      // A vRoT is told of before it is known.
      if (model.rowOf(event)) say(line.querySelector("b"), name(model, event));
      next = line.nextSibling;
      continue;
    }
    const made = eventLine(model, event, open);
    drawn.set(event, made);
    list.insertBefore(made, next);
  }
  if (isTop) list.scrollTop = 0;
}

function eventLine(model, event, open) {
  const [shape, level] = SHAPES[event.kind] ?? ["assigned", ""];
  const time = el("time", "", clock(event.at));
  time.dateTime = String(event.at);
  const what = el("span", "what", el("b", "", name(model, event)), ` ${words(event.kind)}`);
  const where = [model.hostLabel(event.host), event.tenant, event.details].filter(Boolean).map(String).join(" · ");
  const line = el("li", "event", glyph(shape, level), what, time, el("span", "where", where));
  line.title = [event.vm, event.vrot, event.at, event.details].filter(Boolean).join("\n");
  line.addEventListener("click", () => {
    const found = model.rowOf(event);
    if (found) open(found);
  });
  return line;
}

function name(model, event) {
  const named = model.rowOf(event)?.name;
  return named ?? (event.vm ? String(event.vm).slice(0, 8) : model.hostLabel(event.host));
}

const words = (kind) => String(kind).replaceAll("-", " ");

function clock(at) {
  const time = new Date(at);
  return Number.isNaN(time.getTime()) ? "" : time.toLocaleTimeString("en-GB");
}
