// What is as it should be, and what is not: of vRoTs and of hosts.

import { span } from "./dom.js";

const HOUR = 3600;
const DAY = 24 * HOUR;
/** The certificate of a host is renewed by people. */
const HOST_SOON = 14 * DAY;

const LEVELS = ["idle", "ok", "warn", "bad"];

/** The graver of two levels. */
export const graver = (a, b) => (LEVELS.indexOf(a) > LEVELS.indexOf(b) ? a : b);

/** `lifetime`: the longest that any certificate of this host has to live, in seconds. */
export function judgeRow(row, now, lifetime) {
  const notes = [];
  const note = (text, level, is) => notes.push({ text, level, is });
  if (row.degraded) note("degraded", "warn", "degraded");
  if (row.lost) note("state may be lost", "bad", "lost");
  if (row.launchRequired && row.launch === "not-measured") note("launch not measured", "warn", "launch");
  if (row.launch === "used-up") note("second VMM", "warn", "launch");
  if (row.note) note(row.note, "warn", "note");
  if (row.generation > 1) note(`generation ${row.generation}`, "", "generation");
  if (row.imported) note("imported", "", "imported");
  if (row.attached === false) note("no VMM", "", "unattached");
  const certificate = judgeCertificate(row, now, lifetime);
  let level = row.state === "running" ? "ok" : "idle";
  for (const { level: other } of [...notes, certificate]) if (other) level = graver(level, other);
  return { notes, certificate, level };
}

function judgeCertificate(row, now, lifetime) {
  if (row.certificate === "pending") {
    return row.renewalProblem
      ? { text: "not issued", level: "bad", is: "uncertified" }
      : { text: "pending", level: "warn", is: "uncertified" };
  }
  if (!row.notAfter) return { text: "none", level: "", is: "" };
  const left = (Date.parse(row.notAfter) - now) / 1000;
  if (left <= 0) return { text: "ended", level: "bad", is: "ending" };
  // They are renewed at half of their life: a quarter is late, and so is what could not be renewed.
  if (row.renewalProblem) return { text: `${span(left)}, not renewed`, level: "bad", is: "ending" };
  if (left < Math.min(6 * HOUR, lifetime / 4)) return { text: `${span(left)} left`, level: "warn", is: "ending" };
  return { text: `${span(left)} left`, level: "", is: "" };
}

/** What is wrong with a host, gravest first. */
export function judgeHost(card, now) {
  const problems = [];
  const add = (level, text) => problems.push({ level, text });
  if (card.unreachable) add("bad", card.unreachable);
  const told = card.told;
  if (!told) return problems;
  const { store } = told;
  if (store.state === "refused" || store.state === "locked") add("bad", `store ${store.state}: ${store.problem ?? ""}`);
  else if (store.problem) add("warn", store.problem);
  if (told.tpmProblem) add("bad", `physical TPM: ${told.tpmProblem}`);
  if (told.eventLogProblem) add("bad", `event log: ${told.eventLogProblem}`);
  if (!told.ik) add("warn", "no keys yet: vtpmctl host init");
  else if (!told.name) add("warn", "not enrolled with an issuer");
  if (told.notAfter) {
    const left = (Date.parse(told.notAfter) - now) / 1000;
    if (left <= 0) add("bad", "the host's certificate has ended");
    else if (left < HOST_SOON) add("warn", `the host's certificate ends in ${span(left)}`);
  }
  if (store.unadopted) add("warn", `${store.unadopted} backends go on without a manager`);
  if (store.power_loss) add("warn", "a loss of power may have cut off state");
  if (told.isolation === "shared-user") add("warn", "backends share the manager's user");
  if (told.lastFault) add("warn", `the manager ended by a fault at ${told.lastFault.place}`);
  if (told.log.lost + told.log.left_out > 0) add("", `${told.log.lost + told.log.left_out} log lines are missing`);
  return problems.sort((a, b) => LEVELS.indexOf(b.level) - LEVELS.indexOf(a.level));
}
