// The page: what it is told goes into the model, and what has changed is drawn once a frame.

import { ask, token } from "./access.js";
import { Details } from "./details.js";
import { byId, glyph } from "./dom.js";
import { drawEvents } from "./events.js";
import { drawHosts } from "./hosts.js";
import { Model } from "./model.js";
import { follow } from "./stream.js";
import { Summary } from "./summary.js";
import { Table } from "./table.js";

/** What is told as a distance in time is drawn anew this often. */
const CLOCK_MS = 10_000;

const model = new Model();
const details = new Details(byId("details"), model);
const table = new Table(byId("grid"), model, (row) => details.open(row));
const summary = new Summary(byId("summary"), model, (only) => table.show(only));
let isDue = false;

function draw() {
  isDue = false;
  const now = Date.now();
  model.judge(now);
  summary.draw(table.only);
  drawHosts(byId("hosts"), model, now);
  table.draw(now);
  drawEvents(byId("events"), model, now, (row) => details.open(row));
  details.draw(now);
}

function drawSoon() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(draw);
}

function state(text, level) {
  const line = byId("connection");
  line.replaceChildren(glyph(level === "bad" ? "bad" : "running", level), text);
}

function look() {
  byId("login").hidden = true;
  byId("page").hidden = false;
  follow({
    line(value) {
      if (!model.take(value)) return;
      if (value.kind === "ready") state("live", "ok");
      drawSoon();
    },
    state,
    denied(why) {
      byId("details").close();
      ask(model.isReady || isRemembered ? "Enter the token of the program that runs now." : why, enter);
    },
  });
  byId("grid").focus();
}

/** A token that is remembered may be that of a program that has ended. */
let isRemembered = token() !== null;

function enter() {
  isRemembered = false;
  look();
}

byId("search").addEventListener("input", (event) => table.search(event.target.value));
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    event.target.value = "";
    table.search("");
  }
  if (["Escape", "ArrowDown", "Enter"].includes(event.key)) {
    event.preventDefault();
    byId("grid").focus();
  }
});
byId("clear").addEventListener("click", () => {
  byId("search").value = "";
  table.search("");
  table.show(null);
  byId("grid").focus();
});
document.addEventListener("keydown", (event) => {
  const isTyped = event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey;
  if (event.key === "/" && !isTyped && !byId("page").hidden && !byId("details").open) {
    event.preventDefault();
    byId("search").focus();
    byId("search").select();
  }
});
// At once, so that the next key finds the rows that it was pressed for.
table.onshow = draw;
setInterval(drawSoon, CLOCK_MS);

if (isRemembered) look();
else ask("", enter);
