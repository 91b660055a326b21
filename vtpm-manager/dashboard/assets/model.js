// What the page knows: hosts, vRoTs, samples, events. Lines of the stream change it.

import { judgeRow } from "./judge.js";

/** As many samples and events are kept. */
const SAMPLES = 120;
const EVENTS = 400;

export class Model {
  hosts = [];
  /** By host and vRoT. */
  rows = new Map();
  events = [];
  isReady = false;

  /** Takes one line: whether anything is to be drawn. */
  take(line) {
    switch (line.kind) {
      case "begin":
        this.isReady = false;
        this.hosts = Array.from({ length: line.hosts }, () => ({ card: null, samples: [] }));
        this.before = this.rows;
        this.rows = new Map();
        this.events = [];
        return false;
      case "host":
        this.setCard(line.host, line.card);
        break;
      case "rows":
        for (const row of line.rows) this.put(line.host, row);
        for (const vrot of line.gone) this.rows.delete(`${line.host}/${vrot}`);
        break;
      case "sample":
        keep(this.hosts[line.host].samples, line, SAMPLES);
        break;
      case "event":
        this.events.unshift({ ...line.event, host: line.host });
        this.events.length = Math.min(this.events.length, EVENTS);
        break;
      case "ready":
        this.isReady = true;
        // Each host told its own; together they are in the order of time.
        this.events.sort((a, b) => Date.parse(b.at) - Date.parse(a.at));
        break;
    }
    return this.isReady;
  }

  put(host, row) {
    const key = `${host}/${row.vrot}`;
    row.key = key;
    row.host = host;
    row.changed = this.isReady ? performance.now() : -Infinity;
    row.text = this.textOf(row);
    this.rows.set(key, row);
  }

  setCard(host, card) {
    const before = this.hostName(host);
    this.hosts[host].card = card;
    if (this.hostName(host) === before) return;
    // Rows that came before the name are found by it as well.
    for (const row of this.rows.values()) {
      if (row.host === host) row.text = this.textOf(row);
    }
  }

  /** What a search finds a row by. */
  textOf(row) {
    return [row.name, row.vm, row.vrot, row.tenant, row.state, this.hostName(row.host), row.note]
      .filter(Boolean).join("\n").toLowerCase();
  }

  /** What people call a host: its name, or else where its manager listens. */
  hostName(host) {
    const card = this.hosts[host]?.card;
    return card?.told?.name ?? card?.socket ?? "";
  }

  /** The first label of its name. */
  hostLabel(host) {
    const name = this.hostName(host);
    return name.startsWith("/") ? name : name.split(".")[0];
  }

  /** The host of this row does not answer: it shows what was. */
  isStale(row) {
    return Boolean(this.hosts[row.host]?.card?.unreachable);
  }

  /** The vRoT of an event, if it is there still. */
  rowOf(event) {
    return this.rows.get(`${event.host}/${event.vrot}`);
  }

  /** The longest that a certificate of each host has to live: what "soon" means depends on it. */
  lifetimes(now) {
    const longest = this.hosts.map(() => 0);
    for (const row of this.rows.values()) {
      const left = row.notAfter ? (Date.parse(row.notAfter) - now) / 1000 : 0;
      longest[row.host] = Math.max(longest[row.host], left);
    }
    return longest;
  }

  /** Judges every row, as of now. */
  judge(now) {
    const lifetimes = this.lifetimes(now);
    for (const row of this.rows.values()) row.judged = judgeRow(row, now, lifetimes[row.host]);
  }

  /** A counter's rises per second between samples, of all hosts together or of one; newest last. */
  rates(name, host = null) {
    const of = host === null ? this.hosts : [this.hosts[host]];
    const series = of.map(({ samples }) => samples.slice(1).map((sample, at) => {
      const before = samples[at];
      const rise = (sample.values[name] ?? 0) - (before.values[name] ?? 0);
      // A manager that was started again counts from 0.
      return Math.max(0, rise) / Math.max(0.001, (sample.at - before.at) / 1000);
    }));
    const length = Math.max(0, ...series.map((one) => one.length));
    return Array.from({ length }, (_, at) =>
      series.reduce((sum, one) => sum + (one[one.length - length + at] ?? 0), 0));
  }

  /** The newest values of a gauge or counter, of all hosts together. */
  total(...names) {
    let sum = 0;
    for (const { samples } of this.hosts) {
      for (const name of names) sum += samples.at(-1)?.values[name] ?? 0;
    }
    return sum;
  }
}

function keep(list, value, most) {
  list.push(value);
  if (list.length > most) list.shift();
}
