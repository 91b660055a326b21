// The hosts: whether the physical TPM vouches for the store, how much a loss of power could cut off,
// what is wrong.

import { chip, count, el, glyph, rate, span } from "./dom.js";
import { judgeHost } from "./judge.js";

/** Draws all hosts anew: there are few. */
export function drawHosts(element, model, now) {
  const counts = model.hosts.map(() => 0);
  for (const row of model.rows.values()) counts[row.host] += 1;
  const cards = model.hosts.map((_, host) => hostCard(model, host, counts[host], now));
  element.replaceChildren(...cards);
}

function hostCard(model, host, vrots, now) {
  const { card, samples } = model.hosts[host];
  if (!card) return el("article", "host");
  const problems = judgeHost(card, now);
  const level = problems.find((problem) => problem.level)?.level ?? "ok";
  const told = card.told;
  const name = el("div", "name", glyph(level === "ok" ? "check" : level, level), el("span", "", model.hostName(host)));
  name.children[1].title = `${model.hostName(host)} (${card.socket})`;
  const article = el("article", "host", name);
  article.dataset.host = host;
  if (told) {
    const { store } = told;
    name.append(chip(`store ${store.state}`, store.state === "open" ? "ok" : store.state === "opening" ? "warn" : "bad"));
    article.append(...window(store), el("dl", "", ...pairs(model, host, told, vrots, samples)));
  } else if (!card.unreachable) {
    article.append(el("p", "muted", "asking …"));
  }
  for (const problem of problems) article.append(el("p", `problem ${problem.level}`, problem.text));
  return article;
}

function pairs(model, host, told, vrots, samples) {
  const { store } = told;
  const newest = samples.at(-1)?.values ?? {};
  const persecond = (name) => `${rate(model.rates(name, host).at(-1) ?? 0)} /s`;
  const list = [
    ["vRoTs", `${count(vrots)}${newest.poolReady ? `, ${count(newest.poolReady)} in the pool` : ""}`],
    ["rollback window", rollback(store)],
    ["durable changes", persecond("changes")],
    ["evidence, quotes", `${persecond("evidence")}, ${persecond("quotes")}`],
    ["physical TPM", newest.tpmSilent ? `silent for ${span(newest.tpmSilent)}` : "answers"],
  ];
  return list.flatMap(([term, said]) => {
    const dd = el("dd", "", said);
    dd.title = said;
    return [el("dt", "", term), dd];
  });
}

function rollback(store) {
  if (store.window_s === null || store.window_s === undefined) return "unknown";
  if (store.policy === "strict") return "none (strict)";
  return `${span(store.window_age_s ?? 0)} of ${span(store.window_s)}, ${count(store.uncovered_batches ?? 0)} batches`;
}

/** How much of the time that changes may be uncovered is used up, as a bar. */
function window(store) {
  if (!store.window_s) return [];
  const part = Math.min(1, (store.window_age_s ?? 0) / store.window_s);
  const meter = el("div", `meter ${part >= 1 ? "bad" : part > 0.8 ? "warn" : ""}`, el("div"));
  meter.firstChild.style.transform = `scaleX(${Math.max(part, 0.01)})`;
  meter.role = "meter";
  meter.ariaLabel = "age of the oldest change that a loss of power could cut off";
  meter.ariaValueMin = "0";
  meter.ariaValueMax = String(store.window_s);
  meter.ariaValueNow = String(store.window_age_s ?? 0);
  meter.ariaValueText = rollback(store);
  return [meter];
}
