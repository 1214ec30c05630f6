/**
 * @file Is `milora plan` right? The same requests to a real server and to the simulated one, at several loads and skews.
 * Whoever asks has a processor of its own, so that what is compared is the server.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { Agent } from "node:http";
import { cpus, platform, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  arrivalsOf,
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
import { report, spread, table } from "./lib/report.ts";
import { scratch } from "./lib/scratch.ts";
import { promptOf } from "./lib/serve-settings.ts";
import { COMMAND, metricsOf, on, ServerProcess } from "./lib/server-process.ts";
import { installAdapters, preparedModel } from "./lib/serving-model.ts";
import { shapeOf } from "./lib/shapes.ts";
import { quantile, ratios, summarize } from "./lib/statistics.ts";

const USAGE = `npm run plan-check -- [options]
  --shape NAME     smollm2-135m (default), tiny, …; int4
  --method NAME    milora (default), lora, moelora
  --rank N         of the adapters (16)
  --adapters N     installed, of which half fit in memory (24)
  --streams N      most sequences that decode together (8)
  --loads A,B      shares of what the server does at most (0.5,0.8)
  --zipf A,B       exponents of the adapters' popularity (0,1.1)
  --seconds N      that are measured of each (25)
  --profile FILE   of this machine and model, instead of measuring one in each round`;

/** How far the simulation may be off, on the median of the rounds. */
const TOLERANCE = 0.15;
const WARMUP_SECONDS = 5;
const PROBE_SECONDS = 4;
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

interface Case {
  readonly name: string;
  readonly rounds: Awaited<ReturnType<Check["compare"]>>[];
}

const SATURATED = "as much as it can";

const METRICS = [
  ["tokensPerSecond", "tokens/s"],
  ["firstP50", "first token p50, ms"],
  ["firstP95", "first token p95, ms"],
  ["betweenP50", "next token p50, ms"],
] as const;
type Metric = (typeof METRICS)[number][0];
/** With the machine as slow as it was meanwhile, or as it was measured. */
type Simulated = "simulated" | "measured";
/** Those that have to be within the tolerance. */
const HELD: readonly string[] = ["tokensPerSecond", "firstP50", "firstP95"];

class Check {
  readonly #server: ServerProcess;
  readonly #profile: Profile;
  readonly #method: string;
  readonly #vocabSize: number;
  readonly #probe: Traffic;
  readonly #agent = new Agent({ keepAlive: true });
  #asked = 0;

  /** @param probe one stream that asks for one adapter */
  constructor(server: ServerProcess, profile: Profile, method: string, vocabSize: number, probe: Traffic) {
    this.#probe = probe;
    this.#server = server;
    this.#profile = profile;
    this.#method = method;
    this.#vocabSize = vocabSize;
  }

  /** How much slower a single stream is answered now than the profile says: what others do to the machine. */
  async slower(): Promise<number> {
    const [real, simulated] = [await this.#real(this.#probe), await this.#simulated(this.#probe)];
    return simulated.tokensPerSecond / real.tokensPerSecond;
  }

  /** Simulated with the profile as it was measured, and with one as slow as the machine was just before and after. */
  async compare(traffic: Traffic) {
    const before = await this.slower();
    const real = await this.#real(traffic);
    const slower = Math.sqrt(before * (await this.slower()));
    return {
      real,
      measured: await this.#simulated(traffic),
      slower,
      simulated: await this.#simulated(traffic, slower),
    };
  }

  async #simulated(traffic: Traffic, slower = 1): Promise<Outcome> {
    const profile = slowed(this.#profile, slower);
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

/** The profile of a machine that takes `factor` as long for everything. */
function slowed(profile: Profile, factor: number): Profile {
  const times = ({ requestMs, tokenMs }: Profile["http"]) => ({
    requestMs: requestMs * factor,
    tokenMs: tokenMs * factor,
  });
  const methods = profile.methods.map((method) => ({
    ...method,
    ...{ loadMs: method.loadMs * factor, promptMs: method.promptMs * factor },
    ...{ positionMs: method.positionMs * factor, changedMs: method.changedMs * factor },
    read: method.read.map(({ tokens, ms }) => ({ tokens, ms: ms * factor })),
    step: method.step.map(({ rows, one, each }) => ({ rows, one: one * factor, each: each * factor })),
  }));
  return { ...profile, http: times(profile.http), methods };
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
  if (cpus().length < 2 || platform() !== "linux") throw new Error("needs Linux and two processors, one for who asks");
  const threads = cpus().length - 1;
  const seconds = integer(options.seconds, "seconds");
  const rounds = integer(options.rounds ?? "3", "rounds");
  const model = await preparedModel(shape);
  const processors = `0-${cpus().length - 2}`;
  execFileSync("taskset", ["--all-tasks", "--pid", "--cpu-list", String(cpus().length - 1), String(process.pid)]);
  using place = scratch(tmpdir(), "milora-plan-");
  const profileOf = (round: number): Profile => {
    if (options.profile !== undefined) return readProfile(String(options.profile));
    const output = join(place.path, `profile-${round}.json`);
    const [command, ...before] = on(processors);
    const flags = { model, threads, "max-batch": streams, "adapter-method": method, rank, output };
    const args = Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, String(value)]);
    execFileSync(command, [...before, COMMAND, "bench", ...args], { stdio: ["ignore", "ignore", "inherit"] });
    return readProfile(output);
  };
  process.stderr.write(`installing ${adapters} adapters of rank ${rank}\n`);
  const kind = { prefix: "a", method, options: { r: rank }, count: adapters, distinct: Math.min(adapters, 16) };
  const data = join(place.path, "data");
  mkdirSync(data);
  await installAdapters(data, model, [kind]);
  const maxResident = Math.ceil(adapters / 2);
  const residency = { maxResident, maxResidentBytes: 8 * 2 ** 30 };
  const server = await ServerProcess.start({
    ...{ model, name: "backbone", data, threads, processors },
    set: [
      `limits.maxBatch=${streams}`,
      `limits.maxAdaptersPerBatch=${streams}`,
      `residency.maxResident=${maxResident}`,
      `residency.maxResidentBytes=${residency.maxResidentBytes}`,
    ],
  });
  try {
    const common = {
      ...{ tenants: adapters, prompt: { min: 16, max: 96 }, answer: { min: 8, max: 48 } },
      ...{ limits: { maxBatch: streams, maxAdaptersPerBatch: streams }, residency },
      ...{ startWarm: false, warmupSeconds: WARMUP_SECONDS, seconds },
    };
    const loads = String(options.zipf)
      .split(",")
      .flatMap((zipf) =>
        String(options.loads)
          .split(",")
          .map((load) => [Number(load), Number(zipf)] as const),
      );
    const cases: Case[] = [SATURATED, ...loads.map(([load, zipf]) => `load ${load}, Zipf ${zipf}`)].map((name) => {
      return { name, rounds: [] };
    });
    const profiles: Profile[] = [];
    /** By how much a single stream was slower than the profile right after it was measured. */
    const atOnce: number[] = [];
    for (let round = 0; round < rounds; round++) {
      process.stderr.write(`round ${round + 1}/${rounds}\n`);
      const profile = profileOf(round);
      profiles.push(profile);
      const alone = { tenants: 1, streams: 1, warmupSeconds: 1, seconds: PROBE_SECONDS };
      const probe = trafficSchema.parse({ ...common, seed: round, ...alone });
      const check = new Check(server, profile, method, shapeOf(shape).vocabSize, probe);
      const closed = trafficSchema.parse({ ...common, seed: round, streams, zipf: 1.1 });
      if (round === 0) await check.compare({ ...closed, seconds: 5 });
      atOnce.push(await check.slower());
      const most = await check.compare(closed);
      cases[0]!.rounds.push(most);
      for (const [i, [load, zipf]] of loads.entries()) {
        const requestsPerSecond = load * most.real.requestsPerSecond;
        const traffic = trafficSchema.parse({ ...common, seed: round, requestsPerSecond, zipf });
        cases[i + 1]!.rounds.push(await check.compare(traffic));
      }
    }
    const ratioOf = (rounds: Case["rounds"], key: Metric, which: Simulated = "simulated") =>
      ratios(
        rounds.map((one) => one[which][key]),
        rounds.map(({ real }) => real[key]),
      );
    const right = summarize(atOnce);
    const off = [
      { name: "a single stream", label: "tokens/s", ratio: right.median },
      ...cases.flatMap(({ name, rounds: all }) =>
        METRICS.filter(([key]) => HELD.includes(key) && (name !== SATURATED || key === "tokensPerSecond")).map(
          ([key, label]) => ({ name, label, ratio: ratioOf(all, key).median }),
        ),
      ),
    ].filter(({ ratio }) => !(Math.abs(ratio - 1) <= TOLERANCE));
    const sum = (all: Case["rounds"], of: (one: Case["rounds"][number]) => number): string =>
      String(all.reduce((total, one) => total + of(one), 0));
    const middle = (all: Case["rounds"], which: "real" | Simulated, key: Metric): string =>
      quantile(
        all.map((one) => one[which][key]),
        0.5,
      ).toFixed(1);
    const text = [
      table(
        [
          "",
          ...METRICS.flatMap(([, label]) => [label, "simulated", "ratio"]),
          "requests",
          "failed",
          "loads",
          "simulated",
        ],
        cases.map(({ name, rounds: all }) => [
          name,
          ...METRICS.flatMap(([key]) => [
            ...[middle(all, "real", key), middle(all, "simulated", key)],
            spread(ratioOf(all, key)),
          ]),
          ...[sum(all, ({ real }) => real.requests), sum(all, ({ real }) => real.failed)],
          ...[sum(all, ({ real }) => real.loads), sum(all, ({ simulated }) => simulated.loads)],
        ]),
      ),
      `A single stream right after the machine was measured, simulated over real: ${spread(right)}. Above, the simulation is as much slower as a single stream was just before and after each load; with the machine as it was measured:`,
      table(
        ["", ...METRICS.map(([, label]) => label), "a single stream"],
        cases.map(({ name, rounds: all }) => [
          name,
          ...METRICS.map(([key]) => spread(ratioOf(all, key, "measured"))),
          spread(summarize(all.map(({ slower }) => slower))),
        ]),
      ),
      off.length === 0
        ? `all within ${100 * TOLERANCE} %`
        : `not within ${100 * TOLERANCE} %: ${off.map((one) => `${one.name}, ${one.label} ×${one.ratio.toFixed(2)}`).join("; ")}`,
    ].join("\n\n");
    const trial = seconds < 20 || rounds < 3 || shape === "tiny";
    const settings = { shape, method, rank, adapters, streams, threads, seconds, maxResident };
    report(`plan-check-${shape}`, machine, trial, text, { settings, profiles, atOnce, cases, off });
    if (server.failures.length > 0) throw new Error(`the server wrote of failures:\n${server.failures.join("\n")}`);
    if (off.length > 0) process.exitCode = 1;
  } finally {
    server.kill();
  }
});
