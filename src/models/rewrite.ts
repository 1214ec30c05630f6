/** @file Copies a model with some of its weights changed, tensor by tensor, as a directory that transformers loads. */
import { existsSync } from "node:fs";
import { basename, join } from "node:path";
import { setImmediate } from "node:timers/promises";
import {
  float32ToBfloat16,
  float32ToFloat16,
  InputError,
  writeDirectoryAtomic,
  writeFileAtomic,
  writeStreamAtomic,
} from "../base/index.ts";
import type { DType, TensorData } from "../runtime/index.ts";
import { Checkpoint, INDEX, SINGLE } from "./checkpoint.ts";
import type { BackboneConfig } from "./config.ts";
import { copyDescription } from "./description.ts";
import { GgufModel } from "./gguf/model.ts";
import { EMBEDDING, type ParameterInfo, parametersOf } from "./layout.ts";
import { resolveModel } from "./pull.ts";
import { bytesOf, safetensorsHeader } from "./safetensors.ts";
import { elementCount, storedDType } from "./safetensors-header.ts";
import { checkTensors } from "./weights.ts";

export interface RewriteOptions {
  /** `checkpoint` (default): each weight as it was stored; those that were quantised become float32. */
  readonly dtype?: "checkpoint" | "float32" | "bfloat16" | "float16" | undefined;
  /** Bytes of weights in one file at most, where a single weight is not larger; default: files as they were. */
  readonly maxShardSize?: number | undefined;
  /** Ends the work between two tensors; nothing is left behind. */
  readonly signal?: AbortSignal | undefined;
  /** Tensors that are written, of all. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** Gives the new values of a weight, float32 in `shape`, or undefined where it stays. `values` may be changed in place. */
export type Change = (name: string, shape: readonly number[], values: () => Float32Array) => Float32Array | undefined;

/** Dtypes that are kept. */
const FLOATS: Readonly<Record<string, DType>> = { F64: "float64", F32: "float32", F16: "float16", BF16: "bfloat16" };

type Source = Checkpoint | GgufModel;

/** A weight to be written. */
interface Planned extends ParameterInfo {
  readonly dtype: DType;
  /** As it is stored now, where it can be copied. */
  readonly stored: DType | undefined;
}

function convert(values: Float32Array, dtype: DType): TensorData {
  if (dtype === "bfloat16") return float32ToBfloat16(values);
  if (dtype === "float16") return float32ToFloat16(values);
  return dtype === "float64" ? Float64Array.from(values) : values;
}

/** Whether every number of a tensor of floats is finite. */
function allFinite(data: TensorData, dtype: DType): boolean {
  if (dtype === "float16") return (data as Uint16Array).every((bits) => (bits & 0x7c00) !== 0x7c00);
  if (dtype === "bfloat16") return (data as Uint16Array).every((bits) => (bits & 0x7f80) !== 0x7f80);
  return (data as Float32Array).every(Number.isFinite);
}

class Rewriter {
  readonly #source: Source;
  readonly #change: Change;
  readonly #options: RewriteOptions;
  readonly #total: number;
  #done = 0;

  constructor(source: Source, total: number, change: Change, options: RewriteOptions) {
    this.#source = source;
    this.#change = change;
    this.#options = options;
    this.#total = total;
  }

  /** The bytes of a shard with its tensors changed; one tensor is in memory at a time. */
  async *shard(weights: readonly Planned[], metadata: Readonly<Record<string, string>>): AsyncGenerator<Uint8Array> {
    const { header, order } = safetensorsHeader(new Map(weights.map((weight) => [weight.name, weight])), metadata);
    yield header;
    for (const [, weight] of order) {
      this.#options.signal?.throwIfAborted();
      yield* bytesOf(this.#tensor(weight));
      this.#options.onProgress?.(++this.#done, this.#total);
      await setImmediate();
    }
  }

  #tensor({ name, shape, dtype, stored }: Planned): TensorData {
    const source = this.#source;
    const values = () => source.readFloat32(name, new Float32Array(elementCount(shape)!));
    const changed = this.#change(name, shape, values);
    if (changed === undefined && dtype === stored && source instanceof Checkpoint) {
      return source.tensors.get(name)!.file.read(name).data;
    }
    const data = convert(changed ?? values(), dtype);
    if ((changed !== undefined || dtype !== stored) && !allFinite(data, dtype)) {
      throw new InputError("WEIGHT_NOT_FINITE", name, `does not fit into ${storedDType(dtype).name}; write float32`);
    }
    return data;
  }
}

interface Shard {
  readonly file: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly weights: readonly Planned[];
}

const bytesOfWeight = ({ shape, dtype }: Planned): number => elementCount(shape)! * storedDType(dtype).bytes;

/** Files of at most `most` bytes of weights, filled in the order of the layers, named as transformers does. */
function filled(weights: readonly Planned[], most: number): Shard[] {
  const groups: Planned[][] = [[]];
  let size = 0;
  for (const weight of weights) {
    const bytes = bytesOfWeight(weight);
    if (size > 0 && size + bytes > most) {
      groups.push([]);
      size = 0;
    }
    groups.at(-1)!.push(weight);
    size += bytes;
  }
  const digits = (n: number) => String(n).padStart(5, "0");
  const name = (i: number) => `model-${digits(i + 1)}-of-${digits(groups.length)}.safetensors`;
  return groups.map((group, i) => ({
    file: groups.length === 1 ? SINGLE : name(i),
    metadata: { format: "pt" },
    weights: group,
  }));
}

/** The files of the checkpoint, each with the weights it has. */
function asTheyWere(source: Checkpoint, weights: readonly Planned[]): Shard[] {
  const shards = new Map<string, Shard & { readonly weights: Planned[] }>();
  for (const weight of weights) {
    const { path, metadata } = source.tensors.get(weight.name)!.file;
    const shard = shards.get(path) ?? { file: basename(path), metadata, weights: [] };
    shard.weights.push(weight);
    shards.set(path, shard);
  }
  return [...shards.values()];
}

/**
 * Writes a copy of a model in which `change` has altered some weights. Tokenizer and settings are copied, or written
 * from a GGUF file's metadata; tensors that the architecture does not use, such as the repeated head of tied
 * embeddings, go.
 * @throws InputError OUTPUT_EXISTS, WEIGHT_NOT_FINITE, or what loading the checkpoint throws
 */
export async function rewriteCheckpoint(
  model: string,
  config: BackboneConfig,
  output: string,
  change: Change,
  options: RewriteOptions = {},
): Promise<void> {
  if (existsSync(output)) {
    throw new InputError("OUTPUT_EXISTS", output, "exists already; remove it or choose another directory");
  }
  const path = resolveModel(model);
  using source: Source = GgufModel.is(path) ? GgufModel.open(path) : Checkpoint.open(path);
  checkTensors(source, config);
  const { dtype = "checkpoint", maxShardSize } = options;
  const weights = parametersOf(config).map((info): Planned => {
    const stored = FLOATS[source.tensors.get(info.name)!.storedDType];
    return { ...info, stored, dtype: dtype === "checkpoint" ? (stored ?? "float32") : dtype };
  });
  const shards =
    source instanceof Checkpoint && maxShardSize === undefined
      ? asTheyWere(source, weights)
      : filled(weights, maxShardSize ?? Number.POSITIVE_INFINITY);
  const rewriter = new Rewriter(source, weights.length, change, options);
  // A GGUF file does not say what its weights become.
  const named = source instanceof Checkpoint ? undefined : weights.find(({ name }) => name === EMBEDDING)?.dtype;
  await writeDirectoryAtomic(output, async (temporary) => {
    copyDescription(path, temporary, dtype === "checkpoint" ? named : dtype);
    for (const { file, weights: list, metadata } of shards) {
      await writeStreamAtomic(join(temporary, file), rewriter.shard(list, metadata));
    }
    if (shards.every(({ file }) => file === SINGLE)) return;
    const map = shards.flatMap(({ file, weights: list }) => list.map(({ name }) => [name, file]));
    const bytes = weights.reduce((total, weight) => total + bytesOfWeight(weight), 0);
    const index = { metadata: { total_size: bytes }, weight_map: Object.fromEntries(map) };
    writeFileAtomic(join(temporary, INDEX), `${JSON.stringify(index, null, 2)}\n`);
  });
}
