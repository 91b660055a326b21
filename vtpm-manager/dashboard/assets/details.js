// A vRoT that was opened: its chain of trust, what booted, its keys.

import { headers } from "./access.js";
import { ago, byId, chip, el, facts, glyph, span } from "./dom.js";
import { drawChain } from "./picture.js";

export class Details {
  #row = null;
  #asked = 0;

  constructor(dialog, model) {
    this.dialog = dialog;
    this.model = model;
    dialog.addEventListener("close", () => {
      this.#row = null;
      byId("grid").focus();
    });
    // A click beside the drawer closes it; one within has another target.
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }

  open(row) {
    this.#row = row;
    this.body = el("div", "body", el("p", "muted", "asking the manager …"));
    this.head = el("div", "head");
    this.dialog.replaceChildren(this.head, this.body);
    this.#drawHead(Date.now());
    if (!this.dialog.open) this.dialog.showModal();
    this.#ask();
  }

  /** Draws what has changed, if the vRoT of the drawer has. */
  draw(now) {
    if (!this.#row) return;
    const row = this.model.rows.get(this.#row.key);
    if (row === this.#row) return;
    if (!row) {
      this.body.replaceChildren(el("p", "problem", "This vRoT is gone."));
      this.#row = null;
      return;
    }
    this.#row = row;
    this.#drawHead(now);
    this.#ask();
  }

  async #ask() {
    const asked = (this.#asked += 1);
    const { host, vrot } = this.#row;
    let chain;
    try {
      const answer = await fetch(`/api/hosts/${host}/vrots/${vrot}`, { headers: headers() });
      chain = await answer.json();
      if (!answer.ok) throw new Error(chain.detail);
    } catch (error) {
      if (asked === this.#asked) this.body.replaceChildren(el("p", "problem", `The chain is not known: ${error.message}`));
      return;
    }
    // Another one was opened meanwhile, or this one has changed again.
    if (asked !== this.#asked || !this.#row) return;
    this.body.replaceChildren(...sections(chain, this.#row));
  }

  #drawHead(now) {
    const row = this.#row;
    const title = el("h2", "", row.name ?? row.vm);
    title.id = "details-title";
    const close = el("button", "", "Close");
    close.type = "button";
    close.addEventListener("click", () => this.dialog.close());
    const level = row.state === "running" ? "ok" : "";
    const chips = el("div", "chips", chip(`${row.state} since ${ago(row.since, now)}`, level, row.state), chip(`tenant ${row.tenant}`));
    chips.append(...row.judged.notes.map((note) => chip(note.text, note.level, note.level || null)));
    this.head.replaceChildren(el("div", "", title, row.name ? el("p", "mono", row.vm) : null, chips), close);
  }
}

function sections(chain, row) {
  const parts = [el("section", "", el("h3", "", "Chain of trust"), drawChain(chain, row))];
  if (row.renewalProblem) parts.push(el("p", "problem", row.renewalProblem));
  parts.push(keys(chain), launch(chain), vmBoot(chain), boot(chain), programs(chain));
  return parts.filter(Boolean);
}

function section(title, ...children) {
  return el("section", "", el("h3", "", title), ...children);
}

const mono = (text) => (text ? el("span", "mono", text) : null);

function keys({ row, vrot, host }) {
  const key = (key) => (key ? [mono(key.name), el("span", "muted", until(key))] : [null]);
  if (vrot.problem) return section("Keys", el("p", "problem", vrot.problem));
  return section("Keys", facts([
    ["identity key (vIK)", ...key(vrot.vik)],
    ["TLS key", ...key(vrot.tls)],
    ["endorsement, RSA", ...key(vrot.ekRsa)],
    ["endorsement, P-256", ...key(vrot.ekP256)],
    ["host's identity key", mono(host.ik)],
    ["host's endorsement key", mono(host.ek)],
    ["vRoT", mono(row.vrot)],
    ["generation", row.generation],
    ["transport", row.transport],
  ]));
}

function until(key) {
  if (key.state === "pending") return "certificate pending";
  if (!key.notAfter) return "";
  const left = (Date.parse(key.notAfter) - Date.now()) / 1000;
  return left > 0 ? `certified for ${span(left)}` : "certificate ended";
}

const LAUNCHES = {
  "not-measured": "Nothing was measured of what this VM is launched with.",
  prepared: "Measured for its next start.",
  "in-force": "Measured for its present start: evidence tells it.",
  "used-up": "Measured for its present start, but a second VMM has attached since: evidence tells nothing of it.",
};

function launch({ launch }) {
  const said = `${LAUNCHES[launch.state] ?? launch.state}${launch.required ? " It is not started without." : ""}`;
  const parts = launch.parts.map(({ part, value }) => [part, mono(value)]);
  return section("What the VM is launched with", el("p", "muted", said), facts([...parts, ["digest", mono(launch.digest)]]));
}

const pcrs = (values, note = () => null) => Object.entries(values).map(([pcr, value]) => [`PCR ${pcr}`, mono(value), note(pcr)]);

function vmBoot({ vmBoot }) {
  if (vmBoot.problem) return section("What booted in the VM", el("p", "muted", `Not known now: ${vmBoot.problem}`));
  const said = "Its vRoT quoted these values just now, and nobody has judged them: verifiers hold evidence against a policy.";
  return section(`What booted in the VM (${vmBoot.bank.toUpperCase()})`, el("p", "muted", said), facts(pcrs(vmBoot.pcrs)));
}

function boot({ boot, host }) {
  if (boot.problem) return section("What booted on the host", el("p", "problem", boot.problem));
  const approved = boot.approved
    ? `An operator approved these values${boot.approval ? ` (${boot.approval})` : ""}.`
    : "No operator approved these values.";
  const log = host.eventLogProblem ?? host.eventLogUnchecked ?? `The event log accounts for them: ${host.eventLog}`;
  const values = pcrs(boot.pcrs, (pcr) => (boot.differing.includes(Number(pcr)) ? el("span", "bad", " not as approved") : null));
  return section(`What booted on the host (${boot.bank.toUpperCase()})`,
    el("p", boot.approved ? "muted" : "problem", approved), el("p", host.eventLogProblem ? "problem" : "muted", log), facts(values));
}

function programs({ host, vrot }) {
  const list = facts([
    ["manager now", mono(host.managerDigest)], ["backend now", mono(host.backendDigest)],
    ["manager, certified", mono(vrot.managerDigest)], ["backend, certified", mono(vrot.backendDigest)],
  ]);
  return section("Programs of the host (SHA-256)", list);
}
