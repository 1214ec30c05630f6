/**
 * @file The peer of `serve`: node-llama-cpp, which answers requests with different LoRAs one after another, as a context has
 * one set of LoRAs. Every LoRA has a context that is there before the requests come. Arguments: JSON of `ServeSettings`.
 */
import { linkSync } from "node:fs";
import { cached } from "../lib/cache.ts";
import { ggufLora, ggufModel } from "../lib/gguf.ts";
import { loadLlamaCpp } from "../lib/llama-cpp.ts";
import { promptOf, type ServeRound, type ServeSettings } from "../lib/serve-settings.ts";
import { shapeOf } from "../lib/shapes.ts";
import { quantile } from "../lib/statistics.ts";
import { serve } from "../lib/worker.ts";

const settings = JSON.parse(process.argv[2] ?? "") as ServeSettings;
const { shape, threads, rank, streams, past, tokens } = settings;

await serve(async () => {
  const llama = await loadLlamaCpp(threads);
  const model = await llama.loadModel({ modelPath: ggufModel(shape), gpuLayers: 0 });
  const { vocabSize } = shapeOf(shape);
  const sequences: ReturnType<Awaited<ReturnType<typeof model.createContext>>["getSequence"]>[] = [];
  for (let i = 0; i < streams; i++) {
    // A LoRA is known by its path; those of other paths are loaded anew. Equal numbers do not make it faster.
    const lora = cached(`${shape}-lora-r${rank}-f32-${i}.gguf`, (path) => linkSync(ggufLora(shape, rank), path));
    const contextSize = Math.ceil((past + tokens + 1) / 256) * 256;
    const context = await model.createContext({ sequences: 1, contextSize, batchSize: past, threads, lora });
    sequences.push(context.getSequence());
  }

  let round = 0;
  async function answerAll(): Promise<ServeRound> {
    const first: number[] = [];
    const between: number[] = [];
    let generated = 0;
    const began = performance.now();
    for (const [stream, sequence] of sequences.entries()) {
      await sequence.clearHistory();
      const prompt = promptOf(past, vocabSize, stream, round);
      let count = 0;
      let before = 0;
      for await (const _token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
        const now = performance.now();
        if (count === 0) first.push(now - began);
        else between.push(now - before);
        before = now;
        count++;
        if (count === tokens) break;
      }
      generated += count;
    }
    const seconds = (performance.now() - began) / 1000;
    round++;
    return {
      tokensPerSecond: generated / seconds,
      ...{ firstP50: quantile(first, 0.5), firstP95: quantile(first, 0.95) },
      ...{ betweenP50: quantile(between, 0.5), betweenP95: quantile(between, 0.95) },
    };
  }
  return { info: { release: llama.llamaCppRelease, systemInfo: llama.systemInfo }, round: answerAll };
});
