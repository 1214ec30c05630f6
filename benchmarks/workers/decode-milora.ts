/** @file One variant of `decode`: milora's engine, bare or through an adapter. Arguments: JSON of `DecodeSettings`. */
import { Engine, type GenerationResult } from "../../src/generation/index.ts";
import { Backbone } from "../../src/models/index.ts";
import { configureRuntime } from "../../src/runtime/index.ts";
import { randomAdapter } from "../lib/adapters.ts";
import { type DecodeRound, type DecodeSettings, promptOf } from "../lib/decode-settings.ts";
import { shapeOf } from "../lib/shapes.ts";
import { serve } from "../lib/worker.ts";

const settings = JSON.parse(process.argv[2] ?? "") as DecodeSettings;

await serve(async () => {
  configureRuntime({ threads: settings.threads, spin: settings.spin });
  const config = shapeOf(settings.shape);
  const backbone = Backbone.random(config, { weights: "int4", blockSize: settings.blockSize });
  const engine = Engine.create(backbone, { capacity: settings.capacity });
  const { method, options = {} } = settings.adapter ?? {};
  const adapter = method === undefined ? undefined : randomAdapter(method, options, config);
  const request = {
    prompt: promptOf(settings.past, config.vocabSize),
    options: { maxNewTokens: settings.steps + 1, eosTokenIds: [] },
    ...(adapter && { adapter }),
  };

  async function round(): Promise<DecodeRound> {
    const times: number[] = [];
    const stream = engine.stream(request);
    let before = performance.now();
    let result: GenerationResult | undefined;
    while (!result) {
      const next = await stream.next();
      const now = performance.now();
      if (next.done) result = next.value;
      else times.push(now - before);
      before = now;
    }
    const [prefillMs = Number.NaN, ...stepMs] = times;
    return { prefillMs, stepMs };
  }

  // Enough tokens for the engine to have made every session that it will use, one specialised by route included.
  for (let warm = 0; warm < 3 || warm * settings.steps < 200; warm++) await round();
  return { info: { weightBytes: backbone.byteLength }, round };
});
