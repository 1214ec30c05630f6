/** @file The little of node-llama-cpp that benchmarks use, typed here so that the project's checks need no benchmark package installed. */

interface Sequence {
  clearHistory(): Promise<void>;
  evaluate(
    tokens: readonly number[],
    options: { temperature: number; yieldEogToken: boolean },
  ): AsyncGenerator<number, void>;
}

interface Context {
  getSequence(): Sequence;
}

interface Model {
  /** Bytes of the weights. */
  readonly size: number;
  createContext(options: {
    sequences: number;
    contextSize: number;
    batchSize: number;
    threads: number;
    lora?: string;
  }): Promise<Context>;
}

interface Llama {
  /** CPU features that the loaded build uses. */
  readonly systemInfo: string;
  readonly llamaCppRelease: unknown;
  loadModel(options: { modelPath: string; gpuLayers: number }): Promise<Model>;
}

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
