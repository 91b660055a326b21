// The connection to the program: lines of JSON as things change, begun again when it breaks off.

import { headers } from "./access.js";

/** It says something at least every five seconds. */
const SILENCE_MS = 15_000;
const RETRY_MS = [500, 1000, 2000, 5000];

/** Reads for ever. `on` has `line(value)`, `state(text, level)` and `denied(why)`. */
export async function follow(on) {
  for (let attempt = 0; ; attempt += 1) {
    on.state("connecting …", "idle");
    const outcome = await read(on);
    if (outcome === "denied") return;
    if (outcome === "read") attempt = 0;
    on.state("not connected: trying again", "bad");
    await new Promise((go) => setTimeout(go, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));
  }
}

async function read(on) {
  const abort = new AbortController();
  let silence = setTimeout(() => abort.abort(), SILENCE_MS);
  let outcome = "failed";
  try {
    const answer = await fetch("/api/stream", { headers: headers(), signal: abort.signal });
    if (!answer.ok) {
      const problem = await answer.json();
      if (answer.status !== 401) throw new Error(problem.detail);
      on.denied(problem.detail);
      return "denied";
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort(), SILENCE_MS);
      outcome = "read";
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) on.line(JSON.parse(line));
    }
  } catch {
    // It broke off, which the page says; the next attempt tells more.
  } finally {
    clearTimeout(silence);
  }
  return outcome;
}
