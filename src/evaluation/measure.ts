/** @file Asks the engine for what rows need, in chunks that are kept as they come: likelihoods of choices, or answers. */
import { InputError, sum } from "../base/index.ts";
import type { Engine } from "../generation/index.ts";
import type { Adapter } from "../methods/index.ts";
import type { DataOptions } from "./load.ts";
import type { ScoringPair } from "./prompts.ts";
import { digestOf, type RowOutput, RowStore } from "./store.ts";

/** How answers are decoded. */
export interface Decoding {
  readonly beams: number;
  readonly maxNewTokens: number;
  /** 0: nothing is drawn. */
  readonly temperature: number;
  readonly stop: readonly string[];
  /** Where tokens are drawn: from how many, and with which seed. */
  readonly topK?: number;
  readonly seed?: number;
}

/** What a row asks of the model. */
export type Ask =
  | { readonly kind: "choice"; readonly pairs: readonly ScoringPair[] }
  | { readonly kind: "generate"; readonly prompt: readonly number[]; readonly decoding: Decoding };

export interface MeasureOptions {
  readonly adapter?: Adapter | undefined;
  readonly store?: RowStore | undefined;
  /** Written beside kept outputs. */
  readonly about?: object | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Rows that are finished; first of all those that were kept. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** What a measurement of any task may be told. */
export interface TaskOptions extends Omit<MeasureOptions, "about"> {
  readonly data?: DataOptions;
  /** Only the first rows. */
  readonly limit?: number | undefined;
  /** Where the model writes: 1 (default) is greedy; the paper uses 3. */
  readonly beams?: number | undefined;
  /** Longest answer instead of the task's own. */
  readonly maxNewTokens?: number | undefined;
}

/** @throws InputError FLAG_INVALID when answers of `most` tokens leave no room for a prompt */
export function checkRoom(most: number, context: number): void {
  if (most < context) return;
  const problem = `answers of ${most} tokens leave no room for a prompt in a context of ${context}; ask for fewer`;
  throw new InputError("FLAG_INVALID", "--max-new-tokens", problem);
}

/** Rows between two writes, in times of what the engine decodes together. */
const CHUNK = 4;

const lengthOf = (ask: Ask): number =>
  ask.kind === "generate"
    ? ask.prompt.length
    : ask.pairs.reduce((total, { prompt, continuation }) => total + prompt.length + continuation.length, 0);

/**
 * Outputs for `asks`, in their order; those that the store has are not made again.
 * @throws what the engine throws; the signal's reason when it was aborted
 */
export async function measure(
  engine: Engine,
  asks: readonly Ask[],
  options: MeasureOptions = {},
): Promise<RowOutput[]> {
  const { adapter, store = new RowStore(), about = {}, signal, onProgress } = options;
  const { digest, weights } = engine.backbone;
  const model = { backbone: digest, weights, adapter: adapter?.digest ?? null };
  const keys = asks.map((ask) => digestOf([model, ask]));
  const missing = [...asks.keys()].filter((row) => !isAnswer(asks[row]!, store.get(keys[row]!)));
  // Alike in length together; the longest first, so that the time left is never underestimated.
  missing.sort((a, b) => lengthOf(asks[b]!) - lengthOf(asks[a]!));
  let done = asks.length - missing.length;
  onProgress?.(done, asks.length);
  // Where beginnings are kept, the first row is read alone, so that all others find what it begins with.
  let size = engine.prefixCache ? 1 : engine.maxBatch * CHUNK;
  while (missing.length > 0) {
    signal?.throwIfAborted();
    const rows = missing.splice(0, size);
    size = engine.maxBatch * CHUNK;
    const outputs = await run(
      engine,
      rows.map((row) => asks[row]!),
      options,
      (finished) => onProgress?.(done + finished, asks.length),
    ).catch((error: unknown) => {
      signal?.throwIfAborted(); // a run that was stopped says less of why
      throw error;
    });
    store.put(rows.map((row, i) => ({ key: keys[row]!, about: { ...about, row }, output: outputs[i]! })));
    done += rows.length;
    onProgress?.(done, asks.length);
  }
  return keys.map((key) => store.get(key)!);
}

/** Whether what was kept can be what was asked for; a file that was damaged may hold anything. */
function isAnswer(ask: Ask, output: RowOutput | undefined): boolean {
  if (output?.kind === "generate") return ask.kind === "generate";
  return output !== undefined && ask.kind === "choice" && output.greedy.length === ask.pairs.length;
}

async function run(
  engine: Engine,
  asks: readonly Ask[],
  { adapter, signal }: MeasureOptions,
  onProgress: (finished: number) => void,
): Promise<RowOutput[]> {
  const outputs = new Array<RowOutput>(asks.length);
  const choices = [...asks.entries()].flatMap(([row, ask]) =>
    ask.kind === "choice" ? ask.pairs.map((pair) => ({ row, pair })) : [],
  );
  if (choices.length) {
    const scores = await engine.score(
      choices.map(({ pair }) => pair),
      adapter,
      { signal, onProgress: (finished, total) => onProgress(Math.floor((finished / total) * asks.length)) },
    );
    for (const [row, ask] of asks.entries()) {
      if (ask.kind !== "choice") continue;
      const own = scores.filter((_, i) => choices[i]!.row === row);
      outputs[row] = {
        kind: "choice",
        logLikelihoods: own.map(({ logprobs }) => sum(logprobs)),
        greedy: own.map(({ greedy }) => greedy),
      };
    }
  }
  const texts = [...asks.entries()].flatMap(([row, ask]) => (ask.kind === "generate" ? [{ row, ask }] : []));
  if (texts.length) {
    const results = await engine.generate(
      texts.map(({ ask: { prompt, decoding } }) => ({
        prompt,
        options: { ...decoding },
        ...(adapter ? { adapter } : {}),
        ...(signal ? { signal } : {}),
      })),
      onProgress,
    );
    signal?.throwIfAborted();
    for (const [i, { row }] of texts.entries()) {
      outputs[row] = { kind: "generate", text: results[i]!.text, tokens: results[i]!.tokens.length };
    }
  }
  return outputs;
}
