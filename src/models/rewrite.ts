/** @file Copies a model directory with some of its weights changed: same files, same shards, tensor by tensor. */
import { copyFileSync, existsSync, readdirSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { z } from "zod";
import { InputError, readJson, writeDirectoryAtomic, writeFileAtomic, writeStreamAtomic } from "../base/index.ts";
import type { DType, TensorData } from "../runtime/index.ts";
import { Checkpoint, INDEX, SINGLE } from "./checkpoint.ts";
import type { BackboneConfig } from "./config.ts";
import { float32ToBfloat16, float32ToFloat16 } from "./floats.ts";
import { parametersOf } from "./layout.ts";
import { resolveModel } from "./pull.ts";
import { bytesOf, type SafetensorsFile, safetensorsHeader } from "./safetensors.ts";
import { storedDType, type TensorEntry } from "./safetensors-header.ts";
import { checkTensors } from "./weights.ts";

export interface RewriteOptions {
  /** `checkpoint` (default): each weight as it was stored. */
  readonly dtype?: "checkpoint" | "float32" | undefined;
  /** Ends the work between two tensors; nothing is left behind. */
  readonly signal?: AbortSignal | undefined;
  /** Tensors that are written, of all. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** Gives the new values of a weight, float32 in `shape`, or undefined where it stays. `values` may be changed in place. */
export type Change = (name: string, shape: readonly number[], values: () => Float32Array) => Float32Array | undefined;

/** Weights in any format, which are written anew or left behind, and the model's own description. */
export const LEFT = /\.(safetensors|bin|pt|pth|gguf|onnx|h5|msgpack)$|\.index\.json$|^README|^\./;

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
  readonly #dtype: DType | undefined;
  readonly #change: Change;
  readonly #options: RewriteOptions;
  readonly #total: number;
  #done = 0;
  /** Bytes of all tensors written. */
  bytes = 0;

  constructor(total: number, change: Change, options: RewriteOptions) {
    this.#dtype = options.dtype === "float32" ? "float32" : undefined;
    this.#change = change;
    this.#options = options;
    this.#total = total;
  }

  /** The bytes of a shard with its tensors changed; one tensor is in memory at a time. */
  async *shard(file: SafetensorsFile, entries: readonly TensorEntry[]): AsyncGenerator<Uint8Array> {
    const described = new Map(
      entries.map((entry) => [entry.name, { dtype: this.#dtypeOf(entry), shape: entry.shape }]),
    );
    const { header, order } = safetensorsHeader(described, file.metadata);
    yield header;
    for (const [name, { dtype }] of order) {
      this.#options.signal?.throwIfAborted();
      const data = this.#tensor(file, file.entries.get(name)!, dtype);
      this.bytes += data.byteLength;
      yield* bytesOf(data);
      this.#options.onProgress?.(++this.#done, this.#total);
      await setImmediate();
    }
  }

  #dtypeOf({ dtype }: TensorEntry): DType {
    return this.#dtype ?? dtype!;
  }

  #tensor(file: SafetensorsFile, { name, shape, size, dtype: stored }: TensorEntry, dtype: DType): TensorData {
    const values = () => file.readFloat32(name, new Float32Array(size));
    const changed = this.#change(name, shape, values);
    if (changed === undefined) return dtype === stored ? file.read(name).data : convert(values(), dtype);
    const data = convert(changed, dtype);
    if (!allFinite(data, dtype)) {
      throw new InputError("WEIGHT_NOT_FINITE", name, `does not fit into ${storedDType(dtype).name}; write float32`);
    }
    return data;
  }
}

/** config.json, told of another dtype: `dtype` in transformers 5, `torch_dtype` in 4. */
function writeConfig(from: string, to: string, dtype: RewriteOptions["dtype"]): void {
  const config = readJson(from, z.looseObject({}));
  if (dtype === "float32") for (const key of ["dtype", "torch_dtype"]) if (key in config) config[key] = dtype;
  writeFileAtomic(to, `${JSON.stringify(config, null, 2)}\n`);
}

/**
 * Writes a copy of a model directory in which `change` has altered some weights. Tokenizer and settings are copied,
 * shards keep their names; tensors that the architecture does not use, such as the repeated head of tied embeddings, go.
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
  const directory = resolveModel(model);
  using checkpoint = Checkpoint.open(directory);
  checkTensors(checkpoint, config);
  const shards = new Map<SafetensorsFile, TensorEntry[]>();
  for (const { name } of parametersOf(config)) {
    const { file, entry } = checkpoint.tensors.get(name)!;
    shards.set(file, [...(shards.get(file) ?? []), entry]);
  }
  const rewriter = new Rewriter([...shards.values()].flat().length, change, options);
  await writeDirectoryAtomic(output, async (temporary) => {
    for (const name of readdirSync(directory).filter((file) => !LEFT.test(file))) {
      const [from, to] = [join(directory, name), join(temporary, name)];
      if (name === "config.json") writeConfig(from, to, options.dtype);
      else if (statSync(from).isFile()) copyFileSync(from, to);
    }
    for (const [file, entries] of shards) {
      await writeStreamAtomic(join(temporary, basename(file.path)), rewriter.shard(file, entries));
    }
    const names = [...shards].flatMap(([file, entries]) => entries.map(({ name }) => [name, basename(file.path)]));
    if (names.every(([, file]) => file === SINGLE)) return;
    const index = { metadata: { total_size: rewriter.bytes }, weight_map: Object.fromEntries(names) };
    writeFileAtomic(join(temporary, INDEX), `${JSON.stringify(index, null, 2)}\n`);
  });
}
