/** @file The little of node-llama-cpp that benchmarks use, typed here so that the project's checks need no benchmark package installed. */

interface Sequence {
  clearHistory(): Promise<void>;
  evaluate(
    tokens: readonly number[],
    options: { temperature: number; yieldEogToken: boolean },
  ): AsyncGenerator<number, void>;
  /** Evaluates tokens; where asked for, the logits of what may follow one, by token. */
  controlledEvaluate(
    tokens: readonly (number | readonly [number, { generateNext: { logits: true } }])[],
  ): Promise<readonly ({ next: { logits?: ReadonlyMap<number, number> } } | undefined)[]>;
}

interface Context {
  getSequence(): Sequence;
  dispose(): Promise<void>;
}

export interface Model {
  /** Bytes of the weights. */
  readonly size: number;
  createContext(options: {
    sequences: number;
    contextSize: number;
    batchSize: number;
    threads: number;
    lora?: string;
    flashAttention?: boolean;
    /** How keys and values are kept; half precision otherwise. */
    experimentalKvCacheKeyType?: "F32";
    experimentalKvCacheValueType?: "F32";
  }): Promise<Context>;
  tokenize(text: string, specialTokens: boolean): number[];
  dispose(): Promise<void>;
}

interface Llama {
  /** CPU features that the loaded build uses. */
  readonly systemInfo: string;
  readonly llamaCppRelease: unknown;
  loadModel(options: { modelPath: string; gpuLayers: number; vocabOnly?: boolean }): Promise<Model>;
}

/**
 * With more threads of libuv than one, each step runs on whichever is free, and where that wakes on the core of llama.cpp's
 * own thread, both wait for each other there: the median of a step then is anything from 4 to 20 ms, not 3.9.
 */
export const LLAMA_CPP_ENVIRONMENT = { UV_THREADPOOL_SIZE: "1" };

const PACKAGE: string = "node-llama-cpp";

/** The prebuilt CPU build; nothing is downloaded or compiled. */
export async function loadLlamaCpp(threads: number): Promise<Llama> {
  let getLlama: (options: object) => Promise<Llama>;
  try {
    ({ getLlama } = (await import(PACKAGE)) as { getLlama: (options: object) => Promise<Llama> });
  } catch (error) {
    throw new Error(`node-llama-cpp is not installed (npm ci --prefix benchmarks): ${error}`);
  }
  return getLlama({ gpu: false, build: "never", skipDownload: true, maxThreads: threads, logLevel: "error" });
}
