/** @file Is `milora plan` right? The same requests to a real server and to the simulated one, at several loads and skews. */
import { mkdirSync } from "node:fs";
import { Agent } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  arrivalsOf,
  measureProfile,
  type Profile,
  RequestDraw,
  readProfile,
  simulateServer,
  type Traffic,
  trafficSchema,
} from "../src/serving/index.ts";
import { type Answer, send } from "./lib/http-client.ts";
import { inspectMachine } from "./lib/machine.ts";
import { integer, main, parseOptions } from "./lib/options.ts";
import { report, table } from "./lib/report.ts";
import { scratch } from "./lib/scratch.ts";
import { promptOf } from "./lib/serve-settings.ts";
import { metricsOf, ServerProcess } from "./lib/server-process.ts";
import { installAdapters, preparedModel } from "./lib/serving-model.ts";
import { shapeOf } from "./lib/shapes.ts";
import { quantile } from "./lib/statistics.ts";

const USAGE = `npm run plan-check -- [options]
  --shape NAME     smollm2-135m (default), tiny, …; int4
  --method NAME    milora (default), lora, moelora
  --rank N         of the adapters (16)
  --adapters N     installed, of which half fit in memory (24)
  --streams N      most sequences that decode together (8)
  --loads A,B      shares of what the server does at most (0.5,0.8)
  --zipf A,B       exponents of the adapters' popularity (0,1.1)
  --seconds N      that are measured of each (25)
  --profile FILE   of this machine and model, instead of measuring one`;

/** How far the simulation may be off. */
const TOLERANCE = 0.15;
const WARMUP_SECONDS = 5;
const LOADS = "milora_adapter_loads_total";

interface Outcome {
  readonly requests: number;
  readonly failed: number;
  readonly tokensPerSecond: number;
  readonly firstP50: number;
  readonly firstP95: number;
  readonly betweenP50: number;
  readonly loads: number;
}

const METRICS = [
  ["tokensPerSecond", "tokens/s"],
  ["firstP50", "first token p50, ms"],
  ["firstP95", "first token p95, ms"],
  ["betweenP50", "next token p50, ms"],
] as const;
/** Those that have to be within the tolerance. */
const HELD: readonly string[] = ["tokensPerSecond", "firstP50", "firstP95"];

class Check {
  readonly #server: ServerProcess;
  readonly #profile: Profile;
  readonly #method: string;
  readonly #vocabSize: number;
  readonly #agent = new Agent({ keepAlive: true });
  #asked = 0;

  constructor(server: ServerProcess, profile: Profile, method: string, vocabSize: number) {
    this.#server = server;
    this.#profile = profile;
    this.#method = method;
    this.#vocabSize = vocabSize;
  }

  async compare(name: string, traffic: Traffic) {
    process.stderr.write(`${name}\n`);
    const simulated = await this.#simulated(traffic);
    return { name, real: await this.#real(traffic), simulated };
  }

  async #simulated(traffic: Traffic): Promise<Outcome> {
    const profile = this.#profile;
    const method = profile.methods.find((one) => one.name === this.#method);
    if (!method) throw new Error(`the profile has no ${this.#method}`);
    const forecast = await simulateServer({ profile, method, traffic });
    return {
      ...{ requests: forecast.requests, failed: forecast.requests - forecast.answered },
      tokensPerSecond: forecast.tokens / forecast.seconds,
      firstP50: quantile([...forecast.firstTokenMs], 0.5),
      firstP95: quantile([...forecast.firstTokenMs], 0.95),
      betweenP50: quantile([...forecast.betweenTokensMs], 0.5),
      loads: forecast.adapters.loads,
    };
  }

  /** The same requests, those of the first seconds not counted. */
  async #real(traffic: Traffic): Promise<Outcome & { readonly requestsPerSecond: number }> {
    const from = 1000 * traffic.warmupSeconds;
    const to = from + 1000 * traffic.seconds;
    const draw = new RequestDraw(traffic);
    const began = performance.now();
    const now = (): number => performance.now() - began;
    let tokens = 0;
    let requests = 0;
    const failures: string[] = [];
    const first: number[] = [];
    const between: number[] = [];
    const ask = async (): Promise<void> => {
      const { tenant, prompt, answer } = draw.next();
      const counts = now() >= from && now() < to;
      if (counts) requests++;
      const given = await this.#send(tenant, prompt, answer, () => {
        if (now() >= from && now() < to) tokens++;
      });
      if (!counts) return;
      if (given.status !== 200 || !given.done) {
        failures.push(`${given.status} ${given.code ?? given.text}`);
        return;
      }
      first.push(given.eventMs[0] ?? Number.NaN);
      between.push(...given.eventMs.slice(1).map((at, i) => at - given.eventMs[i]!));
    };
    const loads = async (): Promise<number> => (await metricsOf(this.#server.url)).get(LOADS) ?? Number.NaN;
    const before = sleep(from).then(loads);
    const after = sleep(to).then(loads);
    const all: Promise<void>[] = [];
    if (traffic.streams === undefined) {
      for (const at of arrivalsOf(traffic)) {
        await sleep(Math.max(0, at - now()));
        all.push(ask());
      }
    } else {
      for (let i = 0; i < traffic.streams; i++) {
        all.push(
          (async () => {
            while (now() < to) await ask();
          })(),
        );
      }
    }
    await Promise.all(all);
    if (failures.length > 0) process.stderr.write(`failed: ${failures[0]} …\n`);
    return {
      ...{ requests, failed: failures.length, requestsPerSecond: requests / traffic.seconds },
      tokensPerSecond: tokens / traffic.seconds,
      ...{ firstP50: quantile(first, 0.5), firstP95: quantile(first, 0.95), betweenP50: quantile(between, 0.5) },
      loads: (await after) - (await before),
    };
  }

  #send(adapter: number, prompt: number, answer: number, onEvent: () => void): Promise<Answer> {
    const body = {
      model: `a${adapter}`,
      prompt: promptOf(prompt, this.#vocabSize, 0, this.#asked++),
      ...{ max_tokens: answer, temperature: 0, ignore_eos: true },
      ...{ stream: true, stream_options: { include_usage: true } },
    };
    return send({ agent: this.#agent, url: `${this.#server.url}/v1/completions`, body, onEvent });
  }
}

await main(async () => {
  const options = parseOptions(USAGE, {
    shape: { type: "string", default: "smollm2-135m" },
    method: { type: "string", default: "milora" },
    rank: { type: "string", default: "16" },
    adapters: { type: "string", default: "24" },
    streams: { type: "string", default: "8" },
    loads: { type: "string", default: "0.5,0.8" },
    zipf: { type: "string", default: "0,1.1" },
    seconds: { type: "string", default: "25" },
    profile: { type: "string" },
  });
  const machine = await inspectMachine({ allowBusy: options["allow-busy"] === true });
  const shape = String(options.shape);
  const method = String(options.method);
  const rank = integer(options.rank, "rank");
  const adapters = integer(options.adapters, "adapters");
  const streams = integer(options.streams, "streams");
  const threads = integer(options.threads, "threads");
  const seconds = integer(options.seconds, "seconds");
  const model = await preparedModel(shape);
  const profile =
    options.profile === undefined
      ? await measureProfile({
          ...{ model, threads, maxRows: streams, methods: [{ name: method, options: { r: rank } }] },
          onProgress: (what) => process.stderr.write(`measuring ${what}\n`),
        })
      : readProfile(String(options.profile));
  using place = scratch(tmpdir(), "milora-plan-");
  mkdirSync(place.path, { recursive: true });
  process.stderr.write(`installing ${adapters} adapters of rank ${rank}\n`);
  const kind = { prefix: "a", method, options: { r: rank }, count: adapters, distinct: Math.min(adapters, 16) };
  await installAdapters(place.path, model, [kind]);
  const maxResident = Math.ceil(adapters / 2);
  const residency = { maxResident, maxResidentBytes: 8 * 2 ** 30 };
  const server = await ServerProcess.start({
    ...{ model, name: "backbone", data: join(place.path), threads },
    set: [
      `limits.maxBatch=${streams}`,
      `limits.maxAdaptersPerBatch=${streams}`,
      `residency.maxResident=${maxResident}`,
      `residency.maxResidentBytes=${residency.maxResidentBytes}`,
    ],
  });
  try {
    const check = new Check(server, profile, method, shapeOf(shape).vocabSize);
    const common = {
      ...{ tenants: adapters, prompt: { min: 16, max: 96 }, answer: { min: 8, max: 48 } },
      ...{ limits: { maxBatch: streams, maxAdaptersPerBatch: streams }, residency },
      ...{ startWarm: false, warmupSeconds: WARMUP_SECONDS, seconds },
    };
    const closed = trafficSchema.parse({ ...common, streams, zipf: 1.1 });
    await check.compare("warming up", { ...closed, seconds: 5 });
    const cases = [await check.compare("as much as it can", closed)];
    const most = cases[0]!.real.requestsPerSecond;
    for (const zipf of String(options.zipf).split(",").map(Number)) {
      for (const load of String(options.loads).split(",").map(Number)) {
        const traffic = trafficSchema.parse({ ...common, requestsPerSecond: load * most, zipf });
        cases.push(await check.compare(`load ${load}, Zipf ${zipf}`, traffic));
      }
    }
    const off = cases.flatMap(({ name, real, simulated }) =>
      METRICS.filter(([key]) => HELD.includes(key) && (name !== "as much as it can" || key === "tokensPerSecond"))
        .map(([key, label]) => ({ name, label, ratio: simulated[key] / real[key] }))
        .filter(({ ratio }) => !(Math.abs(ratio - 1) <= TOLERANCE)),
    );
    const text = table(
      [
        "",
        ...METRICS.flatMap(([, label]) => [label, "simulated", "ratio"]),
        "requests",
        "failed",
        "loads",
        "simulated",
      ],
      cases.map(({ name, real, simulated }) => [
        name,
        ...METRICS.flatMap(([key]) => [
          real[key].toFixed(1),
          simulated[key].toFixed(1),
          (simulated[key] / real[key]).toFixed(2),
        ]),
        ...[real.requests, real.failed, real.loads, simulated.loads].map(String),
      ]),
    );
    const verdict =
      off.length === 0
        ? `all within ${100 * TOLERANCE} %`
        : `not within ${100 * TOLERANCE} %: ${off.map((one) => `${one.name}, ${one.label} ×${one.ratio.toFixed(2)}`).join("; ")}`;
    const trial = seconds < 20 || shape === "tiny";
    const settings = { shape, method, rank, adapters, streams, threads, seconds, maxResident };
    report(`plan-check-${shape}`, machine, trial, `${text}\n\n${verdict}`, { settings, profile, cases, off });
    if (server.failures.length > 0) throw new Error(`the server wrote of failures:\n${server.failures.join("\n")}`);
    if (off.length > 0) process.exitCode = 1;
  } finally {
    server.kill();
  }
});
