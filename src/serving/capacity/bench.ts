/** @file `milora bench`: measures what a machine takes for a server's work, with the real server and engine. */
import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, cpus, platform, release, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { busyShare, median, Random, version } from "../../base/index.ts";
import { Engine, joinsOthers } from "../../generation/index.ts";
import type { Adapter } from "../../methods/index.ts";
import { Backbone } from "../../models/index.ts";
import { configureRuntime, type DeviceName } from "../../runtime/index.ts";
import { parseServerConfig, type ServerConfigInput } from "../http/config.ts";
import { createLog } from "../http/logs.ts";
import { Server } from "../http/server.ts";
import { Client } from "./client.ts";
import { type ClosedLoad, closedLoop, Meter, type Patience } from "./measure.ts";
import { interpolation, type MethodProfile, type Profile, profileSchema } from "./profile.ts";
import { randomAdapter } from "./random-adapter.ts";

export interface BenchOptions {
  readonly model: string;
  readonly weights?: "float32" | "int8" | "int4" | undefined;
  readonly threads?: number | undefined;
  readonly device?: DeviceName | undefined;
  readonly adapterPrecision?: ServerConfigInput["adapterPrecision"];
  readonly kvPrecision?: ServerConfigInput["kvPrecision"];
  /** Besides the bare backbone. */
  readonly methods: readonly { readonly name: string; readonly options: Readonly<Record<string, unknown>> }[];
  /** Most sequences that decode together. */
  readonly maxRows: number;
  /** A few steps of everything, to see that it works. */
  readonly quick?: boolean;
  readonly onProgress?: (what: string) => void;
}

const PATIENCE: Patience = { ms: 1000, least: 3 };
const QUICK: Patience = { ms: 20, least: 1 };
const READS = [8, 32, 128, 256, 768];
const LONG_PROMPT = 768;

/** @throws InputError for a model, method or settings that cannot be used */
export async function measureProfile(options: BenchOptions): Promise<Profile> {
  const {
    model,
    weights,
    threads,
    device,
    adapterPrecision,
    kvPrecision,
    maxRows,
    quick = false,
    onProgress = () => {},
  } = options;
  const patience = quick ? QUICK : PATIENCE;
  if (threads !== undefined) configureRuntime({ threads });
  onProgress("how busy the machine is");
  const busy = await busyShare(quick ? 50 : 1000);
  onProgress("how long the model takes to load");
  const loadMs = await loadModel(model, weights, device);
  const data = mkdtempSync(join(tmpdir(), "milora-bench-"));
  const limits = { maxBatch: maxRows, maxAdaptersPerBatch: maxRows };
  const config = parseServerConfig({
    ...{ model, data, port: 0, logLevel: "silent", limits, weights, device, adapterPrecision, kvPrecision },
    residency: { maxResidentBytes: 2 ** 40, maxBytes: 2 ** 40 },
  });
  const server = await Server.start(config, { log: createLog(config), memory: true });
  try {
    const { engine } = server.services;
    const reads = READS.filter((tokens) => tokens < Math.min(engine.contextOf(), quick ? 64 : 4096));
    const sizes = { reads, rows: doublings(maxRows), patience };
    const found: MethodProfile[] = [];
    let http: Profile["http"];
    let processBytes: number;
    {
      onProgress("the bare model");
      await using meter = new Meter(engine, maxRows, patience);
      const bare = await measureBare(meter, sizes, engine.contextOf());
      found.push({ ...bare, changedMs: await changedOf(meter, bare, [undefined]) });
      onProgress("HTTP");
      http = await measureHttp(server, meter, patience);
      processBytes = Math.max(0, process.memoryUsage.rss() - engine.backbone.byteLength - engine.kvBytes);
      for (const method of options.methods) {
        onProgress(method.name);
        found.push(await measureMethod(server, meter, { ...method, data }, sizes, bare.positionMs));
      }
    }
    const { directory, config: shape, weights: form, byteLength: bytes } = engine.backbone;
    return profileSchema.parse({
      ...{ version: 1, created: new Date().toISOString(), machine: { ...describeMachine(threads, device), busy } },
      model: {
        ...{ name: directory ?? model, type: shape.modelType, weights: form.kind },
        ...{ layers: shape.numLayers, hiddenSize: shape.hiddenSize, context: engine.contextOf() },
        ...{ bytes, loadMs, kvBytesPerPosition: engine.kvBytesPerPosition },
      },
      ...{ processBytes, http, methods: found },
    });
  } finally {
    await server.stop();
    rmSync(data, { recursive: true, force: true });
  }
}

interface Sizes {
  readonly reads: readonly number[];
  readonly rows: readonly number[];
  readonly patience: Patience;
}

async function measureBare(meter: Meter, { reads, rows }: Sizes, context: number): Promise<MethodProfile> {
  const read: MethodProfile["read"] = [];
  for (const tokens of reads) {
    read.push({ tokens, ms: await meter.read(tokens, [undefined]) });
  }
  const step: MethodProfile["step"] = [];
  let positions = 0;
  for (const count of rows) {
    const found = await meter.step(new Array<undefined>(count).fill(undefined));
    positions = found.positions;
    step.push({ rows: count, one: found.ms, each: found.ms });
  }
  const many = Math.min(4, rows.at(-1)!);
  const short = step.find((point) => point.rows >= many)!;
  const long = await meter.step(
    new Array<undefined>(short.rows).fill(undefined),
    Math.min(LONG_PROMPT, Math.floor(context / 2)),
  );
  const positionMs = Math.max(0, (long.ms - short.one) / (short.rows * (long.positions - positions)));
  const none = { adapterBytes: 0, loadMs: 0, promptMs: 0, changedMs: 0 };
  return { name: "bare", options: {}, joins: true, ...none, read, positions, step, positionMs };
}

async function measureMethod(
  server: Server,
  meter: Meter,
  method: { readonly name: string; readonly options: Readonly<Record<string, unknown>>; readonly data: string },
  { reads, rows, patience }: Sizes,
  positionMs: number,
): Promise<MethodProfile> {
  const { name, options } = method;
  const { engine } = server.services;
  const { adapterBytes, loadMs } = await measureLoad(server, method, patience);
  const adapters: Adapter[] = [];
  try {
    for (let i = 0; i < meter.maxRows; i++) {
      const adapter = randomAdapter(name, options, engine.backbone.config, i, engine.backbone);
      adapters.push(adapter);
      await engine.prepare(adapter);
    }
    const [first] = adapters as [Adapter];
    const joins = joinsOthers(first);
    const read: MethodProfile["read"] = [];
    for (const tokens of reads) {
      read.push({ tokens, ms: await meter.read(tokens, [first]) });
    }
    const step: MethodProfile["step"] = [];
    let positions = 0;
    for (const count of rows) {
      const one = await meter.step(new Array<Adapter>(count).fill(first));
      positions = one.positions;
      const own = joins && count > 1 ? (await meter.step(adapters.slice(0, count))).ms : undefined;
      step.push({ rows: count, one: one.ms, each: own ?? count * (step[0]?.one ?? one.ms) });
    }
    const common = { name, options: { ...options }, joins, adapterBytes, loadMs, read, positions, step, positionMs };
    const alone: MethodProfile = { ...common, promptMs: 0, changedMs: 0 };
    const readOf = interpolation(read.map((point) => [point.tokens, point.ms]));
    const several = Math.min(4, adapters.length);
    const tokens = reads[1] ?? reads[0]!;
    const together = joins ? await meter.read(tokens, adapters.slice(0, several)) : 0;
    const promptMs = several > 1 ? Math.max(0, (together - readOf(several * tokens)) / (several - 1)) : 0;
    const changedMs = await changedOf(meter, alone, adapters);
    return { ...alone, promptMs, changedMs };
  } finally {
    for (const adapter of adapters) {
      engine.forget(adapter);
      adapter.dispose();
    }
  }
}

/** What a step takes more when rows have come or gone, than others of as many rows. */
async function changedOf(
  meter: Meter,
  method: MethodProfile,
  adapters: readonly (Adapter | undefined)[],
): Promise<number> {
  const steps = await meter.comings({ streams: meter.maxRows, prompt: 24, answer: 12 }, adapters);
  const rows = interpolation(method.step.map((point) => [point.rows, adapters.length > 1 ? point.each : point.one]));
  const over = (changed: boolean): number[] =>
    steps.filter((step) => step.changed === changed).map((step) => step.ms - rows(step.rows));
  const [come, stay] = [over(true), over(false)];
  return come.length === 0 || stay.length === 0 ? 0 : Math.max(0, median(come) - median(stay));
}

/**
 * What a request and a token of it cost beside the engine's work: how much longer the main thread is busy with long and with
 * short answers over HTTP than without. (Throughputs differ by less than they vary.)
 */
async function measureHttp(server: Server, meter: Meter, patience: Patience): Promise<Profile["http"]> {
  const { url, services } = server;
  const { vocabSize } = services.engine.backbone.config;
  const random = new Random(2);
  await using client = new Client(url);
  const over = async (load: ClosedLoad): Promise<number> => {
    const { busyMs } = await closedLoop(load, patience, async () => {
      const prompt = Array.from({ length: load.prompt }, () => random.integer(vocabSize));
      await client.post("/v1/completions", {
        ...{ model: services.base, prompt, max_tokens: load.answer, ignore_eos: true, temperature: 0 },
        ...{ stream: true, stream_options: { include_usage: true } },
      });
    });
    return busyMs;
  };
  const extra = async (answer: number): Promise<number> => {
    const load: ClosedLoad = { streams: meter.maxRows, prompt: 16, answer };
    const without = await meter.busy(load, [undefined]);
    return (await over(load)) - without;
  };
  const [few, many] = [4, 40];
  const short = await extra(few);
  const long = await extra(many);
  const tokenMs = Math.max(0, (long - short) / (many - few));
  return { requestMs: Math.max(0, short - few * tokenMs), tokenMs };
}

async function measureLoad(
  { services }: Server,
  method: { readonly name: string; readonly options: Readonly<Record<string, unknown>>; readonly data: string },
  { least }: Patience,
): Promise<{ adapterBytes: number; loadMs: number }> {
  const { registry, engine } = services;
  const { name, options, data } = method;
  const directory = join(data, `${name}-draft`);
  {
    using adapter = randomAdapter(name, options, engine.backbone.config, 1000, engine.backbone);
    await adapter.save(directory);
  }
  const record = await registry.install({ directory }, { owner: null, name });
  await sleep(50); // files of just now are hashed once more
  const times: number[] = [];
  let adapterBytes = 0;
  for (let i = 0; i <= 5 * least; i++) {
    const began = performance.now();
    await registry.load(record);
    if (i > 0) times.push(performance.now() - began);
    adapterBytes = registry.residency().find(({ digest }) => digest === record.digest)!.bytes;
    await registry.unload(record);
  }
  rmSync(directory, { recursive: true, force: true });
  return { adapterBytes, loadMs: median(times) };
}

/** From a directory to the first token of a server. */
async function loadModel(model: string, weights: BenchOptions["weights"], device?: DeviceName): Promise<number> {
  const began = performance.now();
  using backbone = await Backbone.load(model, weights ? { weights } : {});
  using engine = Engine.create(backbone, { device });
  await engine.generate([{ prompt: [0], options: { maxNewTokens: 2, eosTokenIds: [] } }]);
  return performance.now() - began;
}

/** 1, 2, 4, … and the last. */
function doublings(most: number): number[] {
  const rows: number[] = [];
  for (let count = 1; count < most; count *= 2) rows.push(count);
  return [...rows, most];
}

function describeMachine(threads: number | undefined, device: DeviceName = "cpu"): Omit<Profile["machine"], "busy"> {
  const cores = availableParallelism();
  return {
    ...{ cpu: cpus()[0]?.model.trim() || "unknown", cores, threads: threads ?? cores, memoryBytes: totalmem() },
    ...{ system: `${platform()} ${process.arch} ${release()}`, node: process.version, milora: version, device },
  };
}
