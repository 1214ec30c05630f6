/** @file One measurement of `load`: a process that loads a model and answers. Arguments: JSON of `LoadSettings`. */
import { readFileSync } from "node:fs";
import { Engine } from "../../src/generation/index.ts";
import { Backbone } from "../../src/models/index.ts";
import { configureRuntime } from "../../src/runtime/index.ts";
import { promptsOf } from "../lib/decode-settings.ts";
import type { LoadRound, LoadSettings } from "../lib/load-settings.ts";
import { serve } from "../lib/worker.ts";

const { model, weights, threads, past } = JSON.parse(process.argv[2] ?? "") as LoadSettings;
const TOKENS = 8;

/** Peak resident memory. Linux counts that of the process before it became this one into `resourceUsage` as well. */
function peakRss(): number {
  if (process.platform !== "linux") return process.resourceUsage().maxRSS * 1024;
  const [, kilobytes] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))!;
  return Number(kilobytes) * 1024;
}

async function round(): Promise<LoadRound> {
  const startRss = peakRss();
  const cpu = process.cpuUsage();
  const started = performance.now();
  configureRuntime({ threads });
  using backbone = await Backbone.load(model, { weights });
  const loadMs = performance.now() - started;
  using engine = Engine.create(backbone);
  const options = { maxNewTokens: TOKENS, eosTokenIds: [] };
  const stream = engine.stream({ prompt: promptsOf({ past, batch: 1 }, backbone.config.vocabSize)[0]!, options });
  await stream.next();
  const first = performance.now(); // since the start of the process
  const { user, system } = process.cpuUsage(cpu);
  const firstTokenRss = peakRss();
  await stream.next();
  let before = performance.now();
  let laterTokenMs = Number.POSITIVE_INFINITY;
  while (!(await stream.next()).done) {
    const now = performance.now();
    laterTokenMs = Math.min(laterTokenMs, now - before);
    before = now;
  }
  return {
    loadMs,
    firstTokenMs: first - started,
    firstTokenCpuMs: (user + system) / 1000,
    laterTokenMs,
    processMs: first,
    startRss,
    firstTokenRss,
    peakRss: peakRss(),
  };
}

await serve(async () => ({ info: {}, round }));
