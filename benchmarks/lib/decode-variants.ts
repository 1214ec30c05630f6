/** @file The variants of `decode` and `prefill`: what they are called, how they are started, and about how much memory they take. */
import { freemem } from "node:os";
import { fileURLToPath } from "node:url";
import { methodOf } from "../../src/methods/index.ts";
import { type BackboneConfig, parametersOf, sitesOf, weightBytes } from "../../src/models/index.ts";
import { bestOf, CEILINGS, type Ceilings } from "./ceilings.ts";
import { cacheSize, capacityOf, type DecodeSettings, type Load, type LoadRound } from "./decode-settings.ts";
import { LLAMA_CPP_ENVIRONMENT } from "./llama-cpp.ts";
import { type findPython, peftArguments } from "./peft.ts";
import { shapeOf } from "./shapes.ts";
import { type Measured, measure, type Variant } from "./worker.ts";

export interface DecodeVariant {
  readonly name: string;
  readonly engine: "milora" | "llama-cpp" | "peft";
  readonly settings: DecodeSettings;
}

/** Names that ratios are taken between. */
export const NAMES = {
  bare: "milora bare",
  lora: "milora LoRA",
  dora: "milora DoRA",
  moelora: "milora MOELoRA",
  milora: "milora MiLoRA k=3",
  milora1: "milora MiLoRA k=1",
  midora: "milora MiDoRA k=3",
  llama: "llama.cpp base",
  llamaLora: "llama.cpp LoRA",
  torch: "PyTorch base",
  peft: "PEFT LoRA",
} as const;

/** All variants of a rank. llama.cpp has no beam search; PyTorch, many times slower, decodes one sequence only. */
export function variantsOf(common: Omit<DecodeSettings, "adapter" | "dtype">, r: number): DecodeVariant[] {
  const adapter = (method: string, options: object = {}) => ({ adapter: { method, options: { r, ...options } } });
  const own = (name: string, more: object = {}): DecodeVariant => {
    return { name, engine: "milora", settings: { ...common, ...more } };
  };
  const greedy = common.loads.filter(({ beams }) => beams === 1);
  const single = greedy.filter(({ batch }) => batch === 1);
  const peer = (engine: "llama-cpp" | "peft", name: string, loads: readonly Load[], more: object = {}) =>
    loads.length === 0 ? [] : [{ name, engine, settings: { ...common, loads, ...more } }];
  const torch = (dtype: "float32" | "bfloat16"): DecodeVariant[] => [
    ...peer("peft", `${NAMES.torch} ${dtype}`, single, { dtype }),
    ...peer("peft", `${NAMES.peft} ${dtype}`, single, { dtype, ...adapter("lora") }),
  ];
  return [
    own(NAMES.bare),
    own(NAMES.lora, adapter("lora")),
    own(NAMES.dora, adapter("dora")),
    own(NAMES.moelora, adapter("moelora")),
    own(NAMES.milora, adapter("milora", { top_k: 3 })),
    own(NAMES.milora1, adapter("milora", { top_k: 1 })),
    own(NAMES.midora, adapter("midora", { top_k: 3 })),
    ...peer("llama-cpp", NAMES.llama, greedy),
    ...peer("llama-cpp", NAMES.llamaLora, greedy, adapter("lora")),
    ...torch("float32"),
    ...torch("bfloat16"),
  ];
}

/**
 * Multiplications and additions of a prompt's products with the weights, the head for its last token only. What attention
 * and adapters compute comes on top.
 */
export function promptOperations(config: BackboneConfig, tokens: number): number {
  const weights = sitesOf(config).reduce((sum, { inFeatures, outFeatures }) => sum + inFeatures * outFeatures, 0);
  return 2 * (tokens * weights + config.vocabSize * config.hiddenSize);
}

/** About how much memory a variant takes at most: enough to know whether it is to be tried. */
function memoryOf({ engine, settings }: DecodeVariant): number {
  const { shape, loads, adapter, blockSize, dtype } = settings;
  const config = shapeOf(shape);
  const count = (sizes: readonly { readonly shape: readonly number[] }[]) =>
    sizes.reduce((total, { shape }) => total + shape.reduce((a, b) => a * b, 1), 0);
  const parameters = count(parametersOf(config));
  const capacity = capacityOf(settings);
  const cache = Math.max(...loads.map((load) => cacheSize({ ...load, past: capacity, steps: 0 }, config)));
  const tuned = adapter
    ? count(methodOf(adapter.method).parameters(methodOf(adapter.method).newConfig(adapter.options, config), config))
    : 0;
  const tokens = Math.min(2048, Math.max(...loads.map(({ past, batch }) => past * batch)));
  const between = 4 * tokens * (10 * config.hiddenSize + 3 * config.intermediateSize);
  const each = {
    milora: () => weightBytes(config, { kind: "int4", blockSize }) + 4 * cache + 6 * tuned,
    "llama-cpp": () => 0.57 * parameters + 2 * cache + 4 * tuned,
    peft: () => (dtype === "float32" ? 4 : 2) * (parameters + tuned + cache) + 400e6,
  };
  return each[engine]() + between + 150e6;
}

function workerPath(name: string): string {
  return fileURLToPath(new URL(`../workers/${name}.js`, import.meta.url));
}

function commandOf({ name, engine, settings }: DecodeVariant, python: string | undefined): Variant {
  if (engine === "peft") return { name, command: python!, args: peftArguments(settings) };
  const environment = engine === "llama-cpp" ? LLAMA_CPP_ENVIRONMENT : {};
  const args = [workerPath(`decode-${engine}`), JSON.stringify(settings)];
  return { name, command: process.execPath, args, environment };
}

/** What `decode` and `prefill` measure. */
export interface DecodeResults {
  readonly variants: ReadonlyMap<string, Measured<LoadRound[]>>;
  readonly ceilings: Ceilings;
  /** What was left out, and why. */
  readonly notes: readonly string[];
}

/** Runs rounds of variants in turn, one at a time where memory does not hold all. Leaves out what does not fit at all. */
export async function measureVariants(
  chosen: readonly DecodeVariant[],
  options: {
    readonly rounds: number;
    readonly threads: number;
    readonly python: ReturnType<typeof findPython>;
  },
): Promise<DecodeResults> {
  const { rounds, threads, python } = options;
  const free = freemem();
  const notes: string[] = [];
  const fitting = chosen.filter((variant) => {
    const memory = memoryOf(variant);
    const { name, engine, settings } = variant;
    const { modelType } = shapeOf(settings.shape);
    if (engine !== "milora" && modelType !== "llama")
      notes.push(`${name} left out: it is there for LLaMA's shapes only`);
    else if (engine === "peft" && python.missing) notes.push(`${name} left out: ${python.missing}`);
    else if (memory > 0.9 * free)
      notes.push(`${name} left out: needs about ${gigabytes(memory)}, free are ${gigabytes(free)}`);
    else return true;
    return false;
  });
  if (fitting.length === 0) throw new Error(notes.join("\n"));
  const all = fitting.map((variant) => commandOf(variant, python.python));
  all.push({ name: CEILINGS, command: process.execPath, args: [workerPath("ceilings"), String(threads)] });
  const together = fitting.reduce((sum, variant) => sum + memoryOf(variant), 1e9);
  const apart = together > 0.8 * free;
  if (apart) {
    const why = `all at once need about ${gigabytes(together)}, free are ${gigabytes(free)}`;
    notes.push(`One process at a time, started anew for every round: ${why}.`);
  }
  const measured = await measure<LoadRound[] | Ceilings>(all, rounds, { warmed: true, apart });
  const machine = measured.get(CEILINGS) as Measured<Ceilings>;
  measured.delete(CEILINGS);
  return {
    variants: measured as Map<string, Measured<LoadRound[]>>,
    ceilings: bestOf(machine.rounds),
    notes,
  };
}

function gigabytes(bytes: number): string {
  return `${(bytes / 2 ** 30).toFixed(1)} GiB`;
}
