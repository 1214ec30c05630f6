/** @file One variant of `decode` or `prefill`: milora, bare or through an adapter. Arguments: JSON of `DecodeSettings`. */
import { Engine, type RouteReport, Scheduler } from "../../src/generation/index.ts";
import type { Adapter } from "../../src/methods/index.ts";
import { Backbone, sitesOf, weightBytes } from "../../src/models/index.ts";
import { configureRuntime, operators } from "../../src/runtime/index.ts";
import { adapterBytes, randomAdapter } from "../lib/adapters.ts";
import { cacheSize, capacityOf, type DecodeSettings, type Load, promptOf } from "../lib/decode-settings.ts";
import { type Answer, type Answering, answerOf, serveLoads } from "../lib/decode-worker.ts";
import { shapeOf } from "../lib/shapes.ts";

const settings = JSON.parse(process.argv[2] ?? "") as DecodeSettings;

async function setup(): Promise<Answering> {
  configureRuntime({ threads: settings.threads, spin: settings.spin });
  const config = shapeOf(settings.shape);
  const { blockSize } = settings;
  const backbone = Backbone.random(config, { weights: "int4", blockSize });
  const engine = Engine.create(backbone, { capacity: capacityOf(settings) });
  const { method, options } = settings.adapter ?? {};
  const adapter = method === undefined ? undefined : randomAdapter(method, { ...options }, config, 0, backbone);
  const routes = new Map<number, RouteReport | undefined>();
  /** What the router chooses for the prompt of this length. */
  const routeOf = async ({ past }: Load): Promise<RouteReport | undefined> => {
    if (!adapter?.method.properties.routed) return undefined;
    if (!routes.has(past)) {
      const request = { prompt: promptOf(past, config.vocabSize), options: { maxNewTokens: 1 }, adapter };
      routes.set(past, (await engine.generate([request]))[0]!.route);
    }
    return routes.get(past);
  };
  const unrouted = new Map<number, Adapter>();
  const adapterOf = async (load: Load): Promise<Adapter | undefined> => {
    const route = await routeOf(load);
    if (!load.unrouted || !route) return adapter;
    const chosen = sitesOf(config).filter(({ layer, module }) => route.experts[layer]!.includes(module));
    const target_modules = chosen.map(({ path }) => path);
    const made = unrouted.get(load.past) ?? randomAdapter("lora", { r: options?.r, target_modules }, config);
    unrouted.set(load.past, made);
    return made;
  };

  /** Through the scheduler, as a server does it. It tells of steps, since beams give their tokens when the search is over. */
  async function answer(load: Load): Promise<Answer> {
    const { past, batch, beams, steps } = load;
    const adapter = await adapterOf(load);
    const request = {
      tenant: "",
      ...(adapter && { adapter }),
      prompt: promptOf(past, config.vocabSize),
      options: { maxNewTokens: steps + 1, eosTokenIds: [], ...(beams > 1 && { beams }) },
    };
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
    const streams = Array.from({ length: batch }, () => scheduler.submit(request));
    await Promise.all(
      streams.map(async (stream) => {
        while (!(await stream.next()).done);
      }),
    );
    if (steps === 0) times.push(performance.now());
    return answerOf(times, steps + 1);
  }

  // Of the embedding table, float32, a row is looked up.
  const weights = weightBytes(config, { kind: "int4", blockSize }) - 4 * config.vocabSize * config.hiddenSize;
  const readBytes = (load: Load): number =>
    weights + (adapter ? adapterBytes(adapter, routes.get(load.past)) : 0) + 4 * cacheSize(load, config);
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
