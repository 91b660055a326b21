// The tiles: how many, and how many are not as they should be. A tile shows those in the table.

import { count, el, glyph, rate, say } from "./dom.js";
import { spark } from "./picture.js";

const is = (...marks) => (row) =>
  marks.includes(row.judged.certificate.is) || row.judged.notes.some((note) => marks.includes(note.is));

/** What each tile counts, and how grave it is if there are any. */
const TILES = [
  { key: "running", label: "Running", shape: "running", only: (row) => row.state === "running", level: "" },
  { key: "degraded", label: "Degraded", shape: "warn", only: is("degraded"), level: "warn", none: "all state is durable" },
  { key: "certificates", label: "Certificates", shape: "clock", only: is("ending", "uncertified"), level: "warn", none: "all issued and renewed" },
  { key: "lost", label: "State lost", shape: "bad", only: is("lost"), level: "bad", none: "none in this generation" },
];

/** Reasons for which requests were refused, and what they are called. */
const REFUSALS = [["refused", "orders"], ["evidenceRefused", "over quota"], ["evidenceFailed", "evidence failed"]];

export class Summary {
  constructor(element, model, show) {
    this.model = model;
    this.tiles = TILES.map((tile) => {
      const button = el("button", "tile", label(tile.label, tile.shape), el("div", "value"), el("div", "more"));
      button.type = "button";
      button.dataset.tile = tile.key;
      button.addEventListener("click", () => show(button.ariaPressed === "true" ? null : tile));
      return { ...tile, button };
    });
    this.refusals = el("div", "tile", label("Refused", "bad"), el("div", "value"), el("div", "more"));
    this.refusals.dataset.tile = "refused";
    this.evidence = el("div", "tile", label("Evidence", "check"), el("div", "value"), el("div", "more"));
    this.evidence.dataset.tile = "evidence";
    element.append(...this.tiles.map((tile) => tile.button), this.refusals, this.evidence);
  }

  /** `only`: the tile whose rows the table shows. */
  draw(only) {
    const rows = [...this.model.rows.values()];
    for (const tile of this.tiles) {
      const number = rows.filter(tile.only).length;
      const value = tile.button.children[1];
      if (tile.key === "running") {
        value.replaceChildren(count(number), el("small", "", ` of ${count(rows.length)}`));
        say(tile.button.children[2], states(rows));
      } else {
        say(value, count(number));
        say(tile.button.children[2], number === 0 ? tile.none : "show them");
      }
      tile.button.className = `tile ${number > 0 ? tile.level : ""}`;
      tile.button.ariaPressed = String(only?.key === tile.key);
    }
    const refused = this.model.total(...REFUSALS.map(([name]) => name));
    say(this.refusals.children[1], count(refused));
    const kinds = REFUSALS.map(([name, called]) => [this.model.total(name), called]);
    const told = kinds.filter(([number]) => number > 0).map(([number, called]) => `${count(number)} ${called}`);
    say(this.refusals.children[2], told.join(", ") || "since the managers started");
    const rates = this.model.rates("evidence");
    this.evidence.children[1].replaceChildren(rate(rates.at(-1) ?? 0), el("small", "", " /s"));
    say(this.evidence.children[2], `${count(this.model.total("evidence"))} answered`);
    this.evidence.querySelector(".spark")?.remove();
    if (rates.some((value) => value > 0)) this.evidence.append(spark(rates));
  }
}

const label = (text, shape) => el("div", "label", glyph(shape), text);

function states(rows) {
  const counts = new Map();
  for (const { state } of rows) if (state !== "running") counts.set(state, (counts.get(state) ?? 0) + 1);
  return [...counts].map(([state, number]) => `${count(number)} ${state}`).join(", ") || "none at rest";
}
