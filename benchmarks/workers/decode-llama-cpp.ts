/** @file One variant of `decode`: llama.cpp through node-llama-cpp. Arguments: JSON of `DecodeSettings`. */
import { type DecodeRound, type DecodeSettings, promptOf } from "../lib/decode-settings.ts";
import { ggufLora, ggufModel } from "../lib/gguf.ts";
import { loadLlamaCpp } from "../lib/llama-cpp.ts";
import { shapeOf } from "../lib/shapes.ts";
import { serve } from "../lib/worker.ts";

const settings = JSON.parse(process.argv[2] ?? "") as DecodeSettings;

await serve(async () => {
  const llama = await loadLlamaCpp(settings.threads);
  const model = await llama.loadModel({ modelPath: ggufModel(settings.shape), gpuLayers: 0 });
  const context = await model.createContext({
    sequences: 1,
    contextSize: settings.capacity,
    batchSize: 512,
    threads: settings.threads,
    ...(settings.adapter && { lora: ggufLora(settings.shape, Number(settings.adapter.options?.r ?? 32)) }),
  });
  const sequence = context.getSequence();
  const prompt = promptOf(settings.past, shapeOf(settings.shape).vocabSize);

  async function round(): Promise<DecodeRound> {
    const times: number[] = [];
    await sequence.clearHistory();
    let before = performance.now();
    for await (const _token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
      const now = performance.now();
      times.push(now - before);
      if (times.length > settings.steps) break;
      before = performance.now();
    }
    const [prefillMs = Number.NaN, ...stepMs] = times;
    return { prefillMs, stepMs };
  }

  for (let warm = 0; warm < 3; warm++) await round();
  return { info: { weightBytes: model.size, systemInfo: llama.systemInfo, release: llama.llamaCppRelease }, round };
});
