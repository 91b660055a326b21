// Pictures: the chain of trust of a vRoT, and small curves.

import { glyph, span, svg } from "./dom.js";

const WIDTH = 720;
const LEFT = { x: 1, width: 400 };
const RIGHT = { x: 466, width: 253 };
const GAP = 40;
const LINE = 17;
/** Characters that fit. */
const FITS = { left: 44, right: 27 };

/** The chain of a vRoT: who certified whom, from above, and beside it what booted. */
export function drawChain(chain, row) {
  const nodes = [issuer(chain), host(chain), vrot(chain, row), vm(chain, row)].filter(Boolean);
  let y = 1;
  for (const node of nodes) {
    node.y = y;
    node.height = Math.max(cardHeight(node), node.boot ? cardHeight(node.boot) : 0);
    y += node.height + GAP;
  }
  const height = y - GAP + 1;
  const told = nodes.map((node) => `${node.role} ${node.title}, ${node.state}`).join("; certifies ");
  const picture = svg("svg", { class: "chain", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": "" });
  picture.setAttribute("aria-label", `Chain of trust: ${told}`);
  nodes.forEach((node, at) => {
    const next = nodes[at + 1];
    if (next) picture.append(...arrowDown(node, next));
    if (node.boot) picture.append(...arrowRight(node), card(node.boot, RIGHT, node.y, node.height, FITS.right));
    picture.append(card(node, LEFT, node.y, node.height, FITS.left));
  });
  return picture;
}

function issuer({ issuer }) {
  return issuer
    ? { role: "identity issuer", title: issuer.subject, lines: [], level: "ok", verb: "certifies", state: "as the host shows it" }
    : null;
}

function host({ host, boot }) {
  const lines = [["hex", `IK ${short(host.ik)}`], ["fine", `in the physical TPM, ${host.tpm}`]];
  const left = host.notAfter ? (Date.parse(host.notAfter) - Date.now()) / 1000 : null;
  if (left !== null) lines.push(["fine", left > 0 ? `certified for ${span(left)}` : "its certificate has ended"]);
  const level = left === null ? "warn" : left <= 0 || host.tpmProblem ? "bad" : "ok";
  return {
    role: "host", title: host.name ?? "not enrolled", lines, level, verb: "certifies",
    state: level === "ok" ? "certified" : "not as it should be", boot: hostBoot(host, boot),
  };
}

function hostBoot(host, boot) {
  const about = { role: "what booted on the host", verb: "quotes", isBoot: true };
  if (boot.problem) return { ...about, title: "not known", level: "warn", lines: [["fine", boot.problem]] };
  const pcr = Object.keys(boot.pcrs).includes("4") ? "4" : Object.keys(boot.pcrs)[0];
  const lines = [
    ["fine", host.eventLogProblem ? "its event log does not account for it" : host.eventLogUnchecked ? "its event log is not checked yet" : "its event log accounts for it"],
    ["hex", pcr === undefined ? "" : `PCR ${pcr} ${short(boot.pcrs[pcr])}`],
  ];
  const title = boot.approved ? "as the operator approved" : "not approved";
  return { ...about, title, lines, level: !boot.approved || host.eventLogProblem ? "bad" : "ok" };
}

function vrot({ vrot }, row) {
  const { text, level } = row.judged.certificate;
  const lines = [["hex", `vIK ${short(vrot.vik?.name)}`], ["fine", `certificate: ${text}`], ["fine", `generation ${row.generation}${row.imported ? ", imported" : ""}`]];
  return {
    role: "vRoT", title: row.vrot, lines, level: level || "ok", verb: "is the TPM of",
    state: `certificate ${text}`,
  };
}

/** Parts of a launch, those that say most first. */
const TELLING = ["kernel", "firmware", "initramfs", "command-line", "machine"];

function launchBoot(launch) {
  const about = { role: "what booted in the VM", verb: "launched", isBoot: true };
  if (launch.state === "not-measured") {
    return { ...about, title: "told by its evidence alone", level: launch.required ? "warn" : "", lines: [["fine", "the host measured nothing of it"]] };
  }
  const value = (name) => launch.parts.find(({ part }) => part === name);
  const parts = [...TELLING.map(value).filter(Boolean), ...launch.parts.filter(({ part }) => !TELLING.includes(part))];
  const lines = parts.slice(0, 3).map(({ part, value }) => ["hex", `${part} ${short(value.replace(/^sha256:/, ""), 12)}`]);
  if (parts.length > 3) lines.push(["fine", `and ${parts.length - 3} more`]);
  const title = { prepared: "as measured for its start", "in-force": "as the host measured" }[launch.state] ?? "another VMM has attached";
  return { ...about, title, lines, level: launch.state === "used-up" ? "warn" : "ok" };
}

/** PCRs that tell boots apart, those that say most first: boot loader, what may boot, firmware. */
const BOOT_PCRS = ["4", "7", "0"];

/** What the host measured of the launch, and what the vRoT holds of the boot. */
function vmBoot({ launch, vmBoot }) {
  const launched = launchBoot(launch);
  if (vmBoot.problem) return launched;
  const measured = BOOT_PCRS.filter((pcr) => /[^0]/.test(vmBoot.pcrs[pcr] ?? "0"));
  const lines = measured.map((pcr) => ["hex", `PCR ${pcr} ${short(vmBoot.pcrs[pcr], 12)}`]);
  if (launch.state !== "not-measured") return { ...launched, lines: [...launched.lines, ...lines.slice(0, 1)] };
  if (!lines.length) return { ...launched, title: "nothing measured yet", lines: [["fine", "its vRoT's PCRs are as at a start"]] };
  return { ...launched, verb: "quotes", title: "as its vRoT quotes", lines };
}

function vm(chain, row) {
  const attached = row.attached === null ? "off" : row.attached ? "its VMM is attached" : "no VMM is attached";
  return {
    role: "VM", title: row.name ?? row.vm, level: row.state === "running" ? "ok" : "",
    lines: [["fine", `tenant ${row.tenant}`], ["fine", `vRoT ${row.state}, ${attached}`]], state: row.state,
    boot: vmBoot(chain),
  };
}

const cardHeight = ({ lines }) => 56 + lines.length * LINE;

function card(node, { x, width }, y, height, fits) {
  const group = svg("g", { class: "node" });
  group.append(svg("rect", { class: `card ${node.isBoot ? "boot" : ""} ${node.level}`, x, y, width, height, rx: 10 }));
  const mark = svg("g", { class: `mark ${node.level || "idle"}`, transform: `translate(${x + 14} ${y + 25})` });
  mark.append(glyph(node.level === "ok" ? "check" : node.level || "assigned"));
  mark.firstChild.setAttribute("width", 16);
  mark.firstChild.setAttribute("height", 16);
  group.append(mark, text("role", x + 40, y + 20, node.role, fits + 8), text("title", x + 40, y + 38, node.title, fits));
  node.lines.forEach(([kind, said], at) => group.append(text(kind, x + 40, y + 58 + at * LINE, said, kind === "hex" ? fits - 3 : fits + 4)));
  return group;
}

function arrowDown(node, next) {
  const x = LEFT.x + 22;
  const from = node.y + node.height;
  return [
    svg("path", { class: "link", d: `M${x} ${from}V${next.y - 7}` }),
    svg("path", { class: "tip", d: `M${x - 5} ${next.y - 8}h10l-5 8z` }),
    text("verb", x + 18, from + GAP / 2 + 4, node.verb, 40),
  ];
}

function arrowRight(node) {
  const y = node.y + node.height / 2;
  const from = LEFT.x + LEFT.width;
  const verb = text("verb", (from + RIGHT.x) / 2, y - 7, node.boot.verb, 12);
  verb.setAttribute("text-anchor", "middle");
  return [
    svg("path", { class: "link", d: `M${from} ${y}H${RIGHT.x - 7}` }),
    svg("path", { class: "tip", d: `M${RIGHT.x - 8} ${y - 5}v10l8-5z` }),
    verb,
  ];
}

function text(kind, x, y, said, fits) {
  const line = svg("text", { class: kind, x, y });
  const whole = String(said ?? "");
  line.textContent = whole.length > fits ? `${whole.slice(0, fits - 1)}…` : whole;
  if (whole.length > fits) {
    const title = svg("title");
    title.textContent = whole;
    line.append(title);
  }
  return line;
}

/** The beginning of a digest or name. */
function short(hex, digits = 20) {
  if (!hex) return "not known";
  return hex.length > digits ? `${hex.slice(0, digits)}…` : hex;
}

/** A curve of the newest values. */
export function spark(values) {
  const width = 120;
  const height = 30;
  const most = Math.max(...values, 0.001);
  const step = width / Math.max(1, values.length - 1);
  const points = values.map((value, at) => `${(at * step).toFixed(1)} ${(height - (value / most) * (height - 3)).toFixed(1)}`);
  const line = `M${points.join("L")}`;
  return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "area", d: `${line}L${width} ${height}L0 ${height}Z` }), svg("path", { d: line }));
}
