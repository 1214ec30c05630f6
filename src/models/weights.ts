/** @file Fills the weights of a backbone, from a checkpoint or at random, in the form they have at run time. */
import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { deriveSeed, float16Bits, InputError } from "../base/index.ts";
import { allocateLarge, type DType, type FileMapping, Tensor, type TensorData } from "../runtime/index.ts";
import type { BackboneConfig } from "./config.ts";
import { IGNORED_TENSORS } from "./families.ts";
import { quantizedNames, type WeightForm } from "./forward.ts";
import { EMBEDDING, fusedWeightsOf, HEAD, type ParameterInfo, parametersOf } from "./layout.ts";
import { type QuantizedLinear, quantizedLayout, quantizeRows } from "./quantize.ts";
import { storedDType } from "./safetensors-header.ts";
import type { TensorSource } from "./tensor-source.ts";

export type QuantizedForm = Exclude<WeightForm, { kind: "float32" }>;

export interface Held {
  readonly info: ParameterInfo;
  /** The checkpoint's tensor that it is made of. */
  readonly source: string;
  /** Undefined: held as float32. */
  readonly quantized: QuantizedForm | undefined;
}

/** Elements converted and quantised at a time. */
const ROWS_ELEMENTS = 2 ** 20;
/** Standard deviation of random weights, the usual `initializer_range`. */
const RANDOM_STD = 0.02;

/**
 * The weights to hold for a config. Besides the checkpoint's own, a quantised model with tied embeddings has a
 * quantised copy of the table as its head, since a lookup wants floats and the head is the largest matrix of all.
 */
export function held(config: BackboneConfig, form: WeightForm): Held[] {
  const quantized = form.kind === "float32" ? undefined : form;
  const list: Held[] = parametersOf(config).map((info) => {
    const multiplies = info.kind === "linear" || info.kind === "head";
    return { info, source: info.name, quantized: multiplies ? quantized : undefined };
  });
  if (quantized && config.tieWordEmbeddings) {
    const info: ParameterInfo = { name: HEAD, shape: [config.vocabSize, config.hiddenSize], kind: "head" };
    list.push({ info, source: EMBEDDING, quantized });
  }
  return list;
}

/** Compares a checkpoint with what the config asks for, and throws one error that lists every difference. */
export function checkTensors(source: TensorSource, config: BackboneConfig): void {
  const problems: string[] = [];
  const expected = new Map(parametersOf(config).map((info) => [info.name, info]));
  for (const [name, { shape }] of expected) {
    const found = source.tensors.get(name);
    if (!found) problems.push(`${name} [${shape.join(", ")}] is missing`);
    else if (found.shape.length !== shape.length || found.shape.some((dim, i) => dim !== shape[i])) {
      problems.push(`${name} is [${found.shape.join(", ")}], the config asks for [${shape.join(", ")}]`);
    } else if (!source.readable.includes(found.storedDType)) {
      problems.push(`${name} is ${found.storedDType}; weights may be ${source.readable.join(", ")}`);
    }
  }
  for (const name of source.tensors.keys()) {
    // A checkpoint with tied embeddings may repeat the table under the head's name.
    const repeatsTable = name === HEAD && config.tieWordEmbeddings;
    if (!expected.has(name) && !repeatsTable && !IGNORED_TENSORS.some((pattern) => pattern.test(name))) {
      problems.push(`${name} is not a weight of this architecture`);
    }
  }
  if (problems.length > 0) throw new InputError("CHECKPOINT_INVALID", source.path, problems);
}

export interface Weights {
  /** As in `storedLayout`. */
  readonly tensors: Map<string, Tensor>;
  /** Hex sha256 of what decides the model's numbers: the config and the stored tensors, however they are sharded. */
  readonly digest: string;
  /** The file that the tensors are pages of, where they are. */
  readonly mapping?: FileMapping;
}

/** A tensor as it lies in memory. */
export interface Described {
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/** Where the rows of a quantised weight lie in the tensor that holds them. */
interface Place {
  readonly whole: string;
  readonly firstRow: number;
}

/**
 * The tensors that hold a model's weights in a form. Quantised weights that decoding wants put together are one tensor,
 * in which each has its rows; `places` says where, by the name of the checkpoint's weight.
 */
export function storedLayout(config: BackboneConfig, form: WeightForm) {
  const wholes = new Map(fusedWeightsOf(config).flatMap(({ name, parts }) => parts.map((part) => [part, name])));
  const tensors = new Map<string, Described>();
  const places = new Map<string, Place>();
  const rows = new Map<string, number>();
  for (const { info, quantized } of held(config, form)) {
    if (!quantized) {
      tensors.set(info.name, { dtype: "float32", shape: info.shape });
      continue;
    }
    const { kind, blockSize } = quantized;
    const whole = wholes.get(info.name) ?? info.name;
    const [outFeatures, inFeatures] = info.shape as [number, number];
    const firstRow = rows.get(whole) ?? 0;
    rows.set(whole, firstRow + outFeatures);
    places.set(info.name, { whole, firstRow });
    const layout = quantizedLayout(rows.get(whole)!, inFeatures, { bits: bitsOf(kind), blockSize });
    const names = quantizedNames(whole, kind);
    tensors.set(names.quantized, { dtype: "uint8", shape: layout.shape });
    tensors.set(names.scales, { dtype: "float16", shape: [layout.blocks] });
  }
  return { tensors, places };
}

const bitsOf = (kind: QuantizedForm["kind"]): 4 | 8 => (kind === "int4" ? 4 : 8);

/** Memory of tensors that lie side by side, so that large pages hold small ones, too. */
interface Block {
  byteLength: number;
  /** Once one of them is asked for. */
  buffer: ArrayBuffer | undefined;
}

/** No more than this to a block, unless a single tensor is larger. */
const BLOCK_BYTES = 2 ** 28;
const ALIGNMENT = 64;
const sizeOf = (shape: readonly number[]): number => shape.reduce((product, dim) => product * dim, 1);

/**
 * Collects tensors over JavaScript memory, which the garbage collector knows the size of: once disposed and dropped it
 * goes under pressure, where Node before 22 would keep native memory until some collection happens by itself.
 */
class Holder {
  readonly tensors = new Map<string, Tensor>();
  readonly #layout: ReturnType<typeof storedLayout>;
  /** Where in which block a tensor lies. */
  readonly #blocks = new Map<string, { readonly block: Block; readonly byteOffset: number }>();

  constructor(config: BackboneConfig, form: WeightForm) {
    this.#layout = storedLayout(config, form);
    let block: Block | undefined;
    for (const [name, { dtype, shape }] of this.#layout.tensors) {
      const bytes = Math.ceil((storedDType(dtype).bytes * sizeOf(shape)) / ALIGNMENT) * ALIGNMENT;
      if (!block || block.byteLength + bytes > BLOCK_BYTES) block = { byteLength: 0, buffer: undefined };
      this.#blocks.set(name, { block, byteOffset: block.byteLength });
      block.byteLength += bytes;
    }
  }

  float32(name: string): Float32Array {
    return this.#data(name) as Float32Array;
  }

  /** The part of the tensors that holds one weight, to be filled. */
  quantized({ name, shape }: ParameterInfo, { kind, blockSize }: QuantizedForm): QuantizedLinear {
    const { whole, firstRow } = this.#layout.places.get(name)!;
    const [outFeatures, inFeatures] = shape as [number, number];
    const layout = quantizedLayout(outFeatures, inFeatures, { bits: bitsOf(kind), blockSize });
    const names = quantizedNames(whole, kind);
    const perRow = layout.shape[1] * layout.shape[2];
    const quantized = this.#data(names.quantized) as Uint8Array;
    const scales = this.#data(names.scales) as Uint16Array;
    const lastRow = firstRow + outFeatures;
    return {
      ...layout,
      quantized: quantized.subarray(firstRow * perRow, lastRow * perRow),
      scales: scales.subarray(firstRow * layout.shape[1], lastRow * layout.shape[1]),
    };
  }

  #data(name: string): TensorData {
    const known = this.tensors.get(name);
    if (known) return known.data;
    const { dtype, shape } = this.#layout.tensors.get(name)!;
    const { block, byteOffset } = this.#blocks.get(name)!;
    block.buffer ??= allocateLarge(block.byteLength);
    const Numbers = dtype === "float32" ? Float32Array : dtype === "float16" ? Uint16Array : Uint8Array;
    const data = new Numbers(block.buffer, byteOffset, sizeOf(shape));
    this.tensors.set(name, Tensor.from(dtype, shape, data));
    return data;
  }

  dispose(): void {
    for (const tensor of this.tensors.values()) tensor.dispose();
  }
}

/** What of a config decides the numbers a model computes; its special tokens do not. */
export function numericConfig(config: BackboneConfig): string {
  const { bosTokenId: _bos, eosTokenIds: _eos, padTokenId: _pad, ...rest } = config;
  return JSON.stringify(Object.entries(rest).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Reads the weights of a checkpoint. Gives way to other work of the event loop between tensors. */
export async function loadWeights(
  checkpoint: TensorSource,
  config: BackboneConfig,
  form: WeightForm,
): Promise<Weights> {
  checkTensors(checkpoint, config);
  const hash = createHash("sha256").update(numericConfig(config));
  const holder = new Holder(config, form);
  const scratch = new Float32Array(form.kind === "float32" ? 0 : ROWS_ELEMENTS);
  // A fixed order, so that the digest does not depend on the order of the file.
  const list = held(config, form).sort((a, b) => (a.info.name < b.info.name ? -1 : 1));
  try {
    for (const { info, source, quantized } of list) {
      const { storedDType, shape } = checkpoint.tensors.get(source)!;
      const observe = info.name === source ? (bytes: Uint8Array) => hash.update(bytes) : undefined;
      if (observe) hash.update(`\n${source} ${storedDType} ${shape.join(",")}\n`);
      if (quantized) {
        const target = holder.quantized(info, quantized);
        const { outFeatures, inFeatures } = target;
        const step = Math.max(1, Math.floor(ROWS_ELEMENTS / inFeatures));
        const whole = checkpoint.readQuantized?.(source, target, observe);
        for (let row = whole ? outFeatures : 0; row < outFeatures; row += step) {
          const size = Math.min(step, outFeatures - row) * inFeatures;
          const rows = size <= scratch.length ? scratch.subarray(0, size) : new Float32Array(size);
          checkpoint.readFloat32(source, rows, row * inFeatures, observe);
          quantizeRows(rows, target, row, source);
        }
      } else {
        const values = checkpoint.readFloat32(source, holder.float32(info.name), 0, observe);
        if (info.offset) for (let i = 0; i < values.length; i++) values[i]! += info.offset;
      }
      await setImmediate();
    }
  } catch (error) {
    holder.dispose();
    throw error;
  }
  return { tensors: holder.tensors, digest: hash.digest("hex") };
}

/** xorshift32 (Marsaglia 2003): one multiplication-free step a number, for filling gigabytes. */
function fillRandom(target: Uint32Array, seed: number): void {
  let state = seed >>> 0 || 0x9e3779b9;
  for (let i = 0; i < target.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    target[i] = state;
  }
}

/** Random weights of the right shapes; quantised ones are drawn as such, which needs no float copy of the model. */
export function randomWeights(config: BackboneConfig, form: WeightForm, seed: number): Weights {
  const holder = new Holder(config, form);
  for (const { info, quantized } of held(config, form)) {
    const own = deriveSeed(seed, info.name);
    if (quantized) {
      const linear = holder.quantized(info, quantized);
      const { buffer, byteOffset, byteLength } = linear.quantized;
      fillRandom(new Uint32Array(buffer, byteOffset, byteLength / 4), own);
      // Levels −n/2 … n/2 − 1 have mean −0.5 and variance (n² − 1) / 12; signs by turns make the mean zero.
      const bits = float16Bits(RANDOM_STD / Math.sqrt((4 ** linear.bits - 1) / 12));
      for (let i = 0; i < linear.scales.length; i++) linear.scales[i] = i % 2 === 0 ? bits : bits | 0x8000;
      continue;
    }
    const values = holder.float32(info.name);
    if (info.kind === "norm") values.fill(1);
    else {
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      fillRandom(bits, own);
      const step = (2 * Math.sqrt(3) * RANDOM_STD) / 2 ** 32; // a uniform of this width has RANDOM_STD
      const half = Math.sqrt(3) * RANDOM_STD;
      for (let i = 0; i < values.length; i++) values[i] = bits[i]! * step - half;
    }
  }
  const hash = createHash("sha256").update(numericConfig(config)).update(`\nrandom ${form.kind} ${seed}`);
  return { tensors: holder.tensors, digest: hash.digest("hex") };
}
