/** @file One variant of `decode` or `prefill`: milora, bare or through an adapter. Arguments: JSON of `DecodeSettings`. */
import { Engine, type RouteReport, Scheduler } from "../../src/generation/index.ts";
import type { Adapter } from "../../src/methods/index.ts";
import { Backbone, sitesOf, weightBytes } from "../../src/models/index.ts";
import { configureRuntime, operators } from "../../src/runtime/index.ts";
import { adapterBytes, randomAdapter } from "../lib/adapters.ts";
import { cacheSize, capacityOf, type DecodeSettings, type Load, promptsOf } from "../lib/decode-settings.ts";
import { type Answer, type Answering, answerOf, serveLoads } from "../lib/decode-worker.ts";
import { shapeOf } from "../lib/shapes.ts";

const settings = JSON.parse(process.argv[2] ?? "") as DecodeSettings;

/** The whole answers, when all tokens have come. */
async function resultOf<T>(stream: AsyncGenerator<unknown, T>): Promise<T> {
  for (;;) {
    const { done, value } = await stream.next();
    if (done) return value as T;
  }
}

async function setup(): Promise<Answering> {
  configureRuntime({ threads: settings.threads, spin: settings.spin });
  const config = shapeOf(settings.shape);
  const { blockSize } = settings;
  const backbone = Backbone.random(config, { weights: "int4", blockSize });
  const engine = Engine.create(backbone, { capacity: capacityOf(settings) });
  const { method, options } = settings.adapter ?? {};
  const adapter = method === undefined ? undefined : randomAdapter(method, { ...options }, config, 0, backbone);
  /** What the router has chosen for each of a load's prompts. */
  const routes = new Map<string, readonly RouteReport[]>();
  const keyOf = ({ past, batch }: Load) => `${past} ${batch}`;
  const unrouted = new Map<string, Adapter>();
  const adapterOf = (load: Load): Adapter | undefined => {
    const [route] = routes.get(keyOf(load)) ?? [];
    if (!load.unrouted || !route) return adapter;
    const chosen = sitesOf(config).filter(({ layer, module }) => route.experts[layer]!.includes(module));
    const target_modules = chosen.map(({ path }) => path);
    const made = unrouted.get(keyOf(load)) ?? randomAdapter("lora", { r: options?.r, target_modules }, config);
    unrouted.set(keyOf(load), made);
    return made;
  };

  /** Through the scheduler, as a server does it. It tells of steps, since beams give their tokens when the search is over. */
  async function answer(load: Load): Promise<Answer> {
    const { past, batch, beams, steps } = load;
    const adapter = adapterOf(load);
    const options = { maxNewTokens: steps + 1, eosTokenIds: [], ...(beams > 1 && { beams }) };
    const requests = promptsOf(load, config.vocabSize).map((prompt) => ({
      ...{ tenant: "", prompt, options },
      ...(adapter && { adapter }),
    }));
    // All prompts are read together, so that all sequences decode from the first step on.
    const limits = { maxBatch: Math.max(batch, beams), maxPrefillTokens: batch * past };
    const times: number[] = [];
    const step = ({ ms }: { readonly ms: number }): void => {
      const now = performance.now();
      if (times.length === 1) times.push(now - ms); // when the first token was there
      times.push(now);
    };
    await using scheduler = new Scheduler(engine, limits, { step });
    times.push(performance.now());
    const streams = requests.map((request) => scheduler.submit(request));
    const results = await Promise.all(streams.map(resultOf));
    if (steps === 0) times.push(performance.now());
    const chosen = results.flatMap(([result]) => result?.route ?? []);
    if (chosen.length > 0) routes.set(keyOf(load), chosen);
    return answerOf(times, steps + 1);
  }

  // Of the embedding table, float32, a row is looked up.
  const weights = weightBytes(config, { kind: "int4", blockSize }) - 4 * config.vocabSize * config.hiddenSize;
  const kvNumber = engine.kvBytesPerPosition / (2 * config.numLayers * config.numKvHeads * config.headDim);
  const readBytes = (load: Load): number =>
    weights + (adapter ? adapterBytes(adapter, routes.get(keyOf(load)) ?? []) : 0) + kvNumber * cacheSize(load, config);
  return {
    answer,
    readBytes,
    info: { weightBytes: backbone.byteLength, operators: operators()?.instructions ?? "off" },
  };
}

// Without milora's operators a route that has been used for a while gets a session of its own.
const warm = operators()
  ? 1
  : Math.max(1, Math.ceil(200 / (1 + Math.max(...settings.loads.map(({ steps }) => steps)))));
await serveLoads(settings, setup, warm);
