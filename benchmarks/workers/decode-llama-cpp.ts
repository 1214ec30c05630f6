/** @file One variant of `decode` or `prefill`: llama.cpp through node-llama-cpp. Arguments: JSON of `DecodeSettings`. */
import { Adapter, methodOf } from "../../src/methods/index.ts";
import { cacheSize, capacityOf, type DecodeSettings, type Load, promptsOf } from "../lib/decode-settings.ts";
import { type Answering, answerOf, serveLoads } from "../lib/decode-worker.ts";
import { ggufLora, ggufModel } from "../lib/gguf.ts";
import { loadLlamaCpp } from "../lib/llama-cpp.ts";
import { shapeOf } from "../lib/shapes.ts";

const settings = JSON.parse(process.argv[2] ?? "") as DecodeSettings;

await serveLoads(settings, async (): Promise<Answering> => {
  const { shape, threads, adapter, loads } = settings;
  const config = shapeOf(shape);
  const llama = await loadLlamaCpp(threads);
  const model = await llama.loadModel({ modelPath: ggufModel(shape), gpuLayers: 0 });
  const longest = Math.max(...loads.map(({ past }) => past));
  const contexts = new Map<number, ReturnType<typeof sequencesOf>>();
  async function sequencesOf(sequences: number) {
    const context = await model.createContext({
      sequences,
      contextSize: capacityOf(settings),
      batchSize: Math.max(512, sequences * longest),
      threads,
      ...(adapter && { lora: ggufLora(shape, Number(adapter.options.r)) }),
    });
    return Array.from({ length: sequences }, () => context.getSequence());
  }
  async function answer(load: Load) {
    const { batch, steps } = load;
    const made = contexts.get(batch) ?? sequencesOf(batch);
    contexts.set(batch, made);
    const sequences = await made;
    for (const sequence of sequences) await sequence.clearHistory();
    const prompts = promptsOf(load, config.vocabSize);
    const greedy = { temperature: 0, yieldEogToken: true };
    const times = [performance.now()];
    await Promise.all(
      sequences.map(async (sequence, i) => {
        let count = 0;
        for await (const _token of sequence.evaluate(prompts[i]!, greedy)) {
          times[++count] = performance.now(); // that of the last sequence stays
          if (count > steps) break;
        }
      }),
    );
    return answerOf(times, steps + 1);
  }
  // An embedding table of its own is looked up in, one row a token: Q4_0 as all matrices, 18 bytes for 32 weights.
  const table = config.tieWordEmbeddings ? 0 : (config.vocabSize * config.hiddenSize * 18) / 32;
  const lora = adapter ? 4 * parametersOf(adapter.options.r) : 0;
  function parametersOf(r: unknown): number {
    using same = Adapter.create(methodOf("lora"), { r }, config, 1);
    return same.specs.reduce((total, { shape }) => total + shape.reduce((a, b) => a * b, 1), 0);
  }
  const readBytes = (load: Load): number => model.size - table + lora + 2 * cacheSize(load, config);
  return {
    answer,
    readBytes,
    info: { weightBytes: model.size, systemInfo: llama.systemInfo, release: llama.llamaCppRelease },
  };
});
