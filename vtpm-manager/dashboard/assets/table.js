// The table of vRoTs. Only the rows in sight are in the document, so that a thousand cost what forty do.

import { ago, byId, chip, count, el, glyph, say, svg } from "./dom.js";

/** As in table.css. */
const ROW = 48;
const HEAD = 34;
/** Rows beyond either edge. */
const MARGIN = 8;

/** What a column is called, what it sorts by, and what it shows. */
const COLUMNS = [
  { key: "state", label: "State", by: (row) => row.state, cell: stateCell },
  { key: "vm", label: "VM", by: (row) => row.name ?? row.vm, cell: vmCell },
  { key: "tenant", label: "Tenant", by: (row) => row.tenant, cell: (row) => [row.tenant] },
  { key: "host", label: "Host", by: (row, model) => model.hostName(row.host), cell: (row, _, model) => [model.hostLabel(row.host)] },
  { key: "certificate", label: "Certificate", by: (row) => row.notAfter ?? "", cell: certificateCell },
  { key: "since", label: "Since", by: (row) => row.since, cell: (row, now) => [ago(row.since, now)] },
  { key: "notes", label: "Notes", by: (row) => row.judged.level + row.judged.notes.map((note) => note.text).join(), cell: notesCell },
];

const compare = new Intl.Collator("en", { numeric: true }).compare;

export class Table {
  only = null;
  onshow = () => {};
  #words = [];
  #sort = { column: COLUMNS[1], down: false };
  #rows = [];
  #drawn = new Map();
  #chosen = null;
  #now = Date.now();

  constructor(grid, model, open) {
    this.grid = grid;
    this.model = model;
    this.open = open;
    this.body = el("div", "rows");
    this.body.role = "rowgroup";
    this.empty = el("p", "nothing");
    grid.append(this.#heads(), this.body, this.empty);
    grid.addEventListener("scroll", () => this.#drawRows(), { passive: true });
    grid.addEventListener("keydown", (event) => this.#key(event));
    this.body.addEventListener("click", (event) => this.#click(event));
    new ResizeObserver(() => this.#drawRows()).observe(grid);
  }

  /** Shows rows that have all these words in them. */
  search(text) {
    this.#words = text.toLowerCase().split(/\s+/).filter(Boolean);
    this.grid.scrollTop = 0;
    this.onshow();
  }

  /** Shows those of a tile, or all. */
  show(tile) {
    this.only = tile;
    this.grid.scrollTop = 0;
    this.onshow();
  }

  draw(now) {
    this.#now = now;
    const all = [...this.model.rows.values()];
    this.#rows = all.filter((row) =>
      (!this.only || this.only.only(row)) && this.#words.every((word) => row.text.includes(word)));
    const { column, down } = this.#sort;
    const keyed = this.#rows.map((row) => [String(column.by(row, this.model)), row]);
    keyed.sort(([a, rowA], [b, rowB]) => (compare(a, b) || compare(rowA.vrot, rowB.vrot)) * (down ? -1 : 1));
    this.#rows = keyed.map(([, row]) => row);

    const isPart = this.only !== null || this.#words.length > 0;
    say(byId("count"), isPart ? `${count(this.#rows.length)} of ${count(all.length)}` : count(all.length));
    byId("clear").hidden = !isPart;
    this.body.style.height = `${this.#rows.length * ROW}px`;
    this.grid.ariaRowCount = String(this.#rows.length + 1);
    this.empty.hidden = this.#rows.length > 0;
    say(this.empty, isPart ? "No vRoT is like this." : "No vRoTs yet: vtpmctl create makes one.");
    this.#drawRows();
  }

  #drawRows() {
    const first = Math.max(0, Math.floor((this.grid.scrollTop - HEAD) / ROW) - MARGIN);
    const last = Math.min(this.#rows.length, Math.ceil((this.grid.scrollTop + this.grid.clientHeight) / ROW) + MARGIN);
    const wanted = new Set();
    for (let at = first; at < last; at += 1) {
      const row = this.#rows[at];
      wanted.add(row.key);
      this.#drawRow(row, at);
    }
    for (const [key, { element }] of this.#drawn) {
      if (!wanted.has(key)) {
        element.remove();
        this.#drawn.delete(key);
      }
    }
    const chosen = this.#drawn.get(this.#chosen)?.element.id ?? "";
    if (chosen) this.grid.setAttribute("aria-activedescendant", chosen);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  #drawRow(row, at) {
    let drawn = this.#drawn.get(row.key);
    if (!drawn) {
      const element = el("div", "row");
      element.role = "row";
      element.id = `row-${row.key.replace("/", "-")}`;
      element.dataset.key = row.key;
      drawn = { element };
      this.#drawn.set(row.key, drawn);
      this.body.append(element);
    }
    const { element } = drawn;
    if (drawn.row !== row || drawn.now !== this.#now) {
      if (drawn.row && drawn.row !== row) blink(element);
      element.replaceChildren(...COLUMNS.map((column) => {
        const cell = el("div", `cell ${column.key}`, ...column.cell(row, this.#now, this.model));
        cell.role = "gridcell";
        return cell;
      }));
      drawn.row = row;
      drawn.now = this.#now;
    }
    if (drawn.at !== at) {
      element.style.transform = `translateY(${at * ROW}px)`;
      element.ariaRowIndex = String(at + 2);
      drawn.at = at;
    }
    element.ariaSelected = String(row.key === this.#chosen);
    element.classList.toggle("stale", this.model.isStale(row));
  }

  #heads() {
    const cells = COLUMNS.map((column) => {
      const button = el("button", "", column.label);
      button.type = "button";
      const cell = el("div", "", button);
      cell.role = "columnheader";
      button.addEventListener("click", () => {
        const isSame = this.#sort.column === column;
        this.#sort = { column, down: isSame && !this.#sort.down };
        this.#markSort();
        this.onshow();
      });
      return cell;
    });
    this.heads = el("div", "heads", ...cells);
    this.heads.role = "row";
    this.#markSort();
    return this.heads;
  }

  #markSort() {
    COLUMNS.forEach((column, at) => {
      const cell = this.heads.children[at];
      cell.querySelector(".arrow")?.remove();
      if (this.#sort.column !== column) return cell.removeAttribute("aria-sort");
      cell.ariaSort = this.#sort.down ? "descending" : "ascending";
      const d = this.#sort.down ? "M1 3h8L5 8z" : "M1 7h8L5 2z";
      cell.firstChild.append(svg("svg", { class: "arrow", viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("path", { d })));
    });
  }

  #click(event) {
    const key = event.target.closest(".row")?.dataset.key;
    const row = this.model.rows.get(key);
    if (!row) return;
    this.#chosen = key;
    this.#drawRows();
    this.open(row);
  }

  #key(event) {
    if (event.target !== this.grid || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.#rows.findIndex((row) => row.key === this.#chosen);
    const page = Math.max(1, Math.floor((this.grid.clientHeight - HEAD) / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" && at >= 0) {
      event.preventDefault();
      this.open(this.#rows[at]);
    } else if (event.key in moves && this.#rows.length > 0) {
      event.preventDefault();
      const from = at < 0 ? (moves[event.key] > 0 ? -1 : 0) : at;
      this.#choose(Math.min(this.#rows.length - 1, Math.max(0, from + moves[event.key])));
    }
  }

  #choose(at) {
    this.#chosen = this.#rows[at].key;
    const top = at * ROW;
    const sight = this.grid.clientHeight - HEAD;
    if (top < this.grid.scrollTop) this.grid.scrollTop = top;
    else if (top + ROW > this.grid.scrollTop + sight) this.grid.scrollTop = top + ROW - sight;
    this.#drawRows();
  }
}

function stateCell(row) {
  const level = row.state === "running" ? (row.judged.level === "bad" || row.judged.level === "warn" ? row.judged.level : "ok") : "idle";
  return [glyph(row.state, level), row.state];
}

function vmCell(row) {
  const number = el("div", row.name ? "mono" : "mono alone", row.vm);
  return row.name ? [el("div", "name", row.name), number] : [number];
}

function certificateCell(row) {
  const { text, level } = row.judged.certificate;
  return level ? [glyph(level, level), el("span", level, text)] : [text];
}

function notesCell(row) {
  return row.judged.notes.map((note) => chip(note.text, note.level, note.level || null));
}

/** Begins the animation of a change again. */
function blink(element) {
  element.classList.remove("changed");
  void element.offsetWidth;
  element.classList.add("changed");
}
