/** @file What the variants of `decode` and `prefill` are told and answer. */

/** What is answered at once. */
export interface Load {
  /** Tokens of each prompt, in the KV cache before the first timed step. */
  readonly past: number;
  /** Sequences that decode together, under one adapter. */
  readonly batch: number;
  /** 1: greedy; more: beam search for one sequence. */
  readonly beams: number;
  /** Timed steps after the first token; 0: only the prompt is timed. */
  readonly steps: number;
  /** In place of a routed adapter: a LoRA on just the modules that its router has chosen for this prompt before. */
  readonly unrouted?: boolean;
}

export interface DecodeSettings {
  readonly shape: string;
  readonly threads: number;
  /** Whether milora's idle threads spin. */
  readonly spin: boolean;
  /** Least memory first: peak memory is told after each. */
  readonly loads: readonly Load[];
  /** How often a round answers every load, in turns. */
  readonly repeats: number;
  /** Weights that share a scale in milora's int4 form. */
  readonly blockSize: number;
  readonly adapter?: { readonly method: string; readonly options: Readonly<Record<string, unknown>> };
  /** Of PyTorch's weights. */
  readonly dtype?: "float32" | "bfloat16";
}

/** Of a load; medians of the round. */
export interface LoadRound {
  /** From the request until every sequence has its first token, ms. */
  readonly prefillMs: number;
  /** Of every further token, ms: run, sampling, and what the API adds. Of no use where there are no steps. */
  readonly stepMs: number;
  /** Processor time of a whole answer, where it is known. */
  readonly cpuMs?: number;
}

/** What a variant says of itself. */
export interface DecodeInfo {
  /** Highest resident memory when each load, and those before it, had been answered once, bytes. */
  readonly peakRss: readonly number[];
  /** Bytes of weights, adapter and KV cache that a step of each load has to read. */
  readonly readBytes: readonly number[];
}

/** Positions that every sequence has room for. */
export function capacityOf({ loads }: DecodeSettings): number {
  return Math.ceil((Math.max(...loads.map(({ past, steps }) => past + steps)) + 1) / 256) * 256;
}

/** Numbers of keys and values that a step reads on average. */
export function cacheSize(load: Load, config: { numLayers: number; numKvHeads: number; headDim: number }): number {
  const { past, steps, batch, beams } = load;
  return batch * beams * (past + steps / 2) * 2 * config.numLayers * config.numKvHeads * config.headDim;
}

/** The prompts that every variant reads, one for each sequence: arbitrary token ids above the special ones. */
export function promptsOf({ past, batch }: Pick<Load, "past" | "batch">, vocabSize: number): number[][] {
  const prompt = (sequence: number): number[] =>
    Array.from({ length: past }, (_, i) => 260 + ((i * 7919 + sequence * 104_729) % (vocabSize - 260)));
  return Array.from({ length: batch }, (_, sequence) => prompt(sequence));
}
