/** @file A backbone: config, tokenizer and frozen weights of a model, loaded once and shared by every session. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { float16ToFloat32, InputError } from "../base/index.ts";
import type { Graph } from "../graph/index.ts";
import { type FileMapping, Tensor } from "../runtime/index.ts";
import { formName, knownDigest, preparedPath } from "./cache.ts";
import { Checkpoint } from "./checkpoint.ts";
import type { BackboneConfig } from "./config.ts";
import { readBackboneConfig } from "./config-file.ts";
import { decoderForward } from "./decoder.ts";
import { type ForwardInputs, type ForwardOutputs, quantizedNames, type Site, type WeightForm } from "./forward.ts";
import { splitWeights } from "./fuse.ts";
import { GgufModel } from "./gguf/model.ts";
import { hasTokenizer, tokenizerFiles } from "./gguf/tokenizer.ts";
import { fusedWeightsOf, sitesOf } from "./layout.ts";
import { openPrepared, PREPARED, writePrepared } from "./prepared.ts";
import { resolveModel } from "./pull.ts";
import { dequantize } from "./quantize.ts";
import { ropeTables } from "./rope.ts";
import { SHAPES } from "./shapes.ts";
import type { TensorSource } from "./tensor-source.ts";
import { hasTokenizerFiles } from "./tokenizer/files.ts";
import { Tokenizer } from "./tokenizer.ts";
import { loadWeights, randomWeights, type Weights } from "./weights.ts";

export interface BackboneOptions {
  /** How linear layers and the head are stored: float32 (default), or blockwise int4 or int8 for `MatMulNBits`. */
  readonly weights?: WeightForm["kind"];
  /** Quantised weights that share one scale; 32 (default), 64 or 128. */
  readonly blockSize?: number;
  /** Whether prepared weights are taken from the cache where they are there. Default: true. */
  readonly cached?: boolean;
}

function formOf({ weights: kind = "float32", blockSize = 32 }: BackboneOptions): WeightForm {
  return kind === "float32" ? { kind } : { kind, blockSize };
}

/** Packing reads 10 or 20 MB of weights in this time. */
const FORGET_MS = 20;

/** The weights of a model directory or GGUF file; headers are checked, nothing else is read. */
export function openTensors(path: string): TensorSource {
  return GgufModel.is(path) ? GgufModel.open(path) : Checkpoint.open(path);
}

/** Shows every quantised weight as a matrix of levels too, over the same bytes: gradients are computed from that. */
function addLevels(tensors: Map<string, Tensor>, kind: "int4" | "int8"): void {
  const { quantized: suffix, levels } = quantizedNames("", kind);
  for (const [name, tensor] of [...tensors]) {
    if (!name.endsWith(suffix)) continue;
    const [rows, blocks, bytes] = tensor.shape as [number, number, number];
    const shape = [rows, kind === "int4" ? blocks * bytes * 2 : blocks * bytes];
    tensors.set(name.slice(0, -suffix.length) + levels, tensor.as(kind === "int4" ? "uint4" : "uint8", shape));
  }
}

function loadTokenizer(path: string, config: BackboneConfig): Tokenizer {
  if (!GgufModel.is(path)) return Tokenizer.load(path, config);
  using model = GgufModel.open(path);
  return Tokenizer.from({ ...tokenizerFiles(model.metadata, path), ids: config, where: path });
}

function ggufHasTokenizer(path: string): boolean {
  using model = GgufModel.open(path);
  return hasTokenizer(model.metadata);
}

/** A frozen model. Owns its weights: dispose it after every session that uses them. */
export class Backbone implements Disposable {
  /** Configs of well-known models, for random weights of their shape. */
  static readonly shapes = SHAPES;

  readonly config: BackboneConfig;
  readonly weights: WeightForm;
  /** Hex sha256 of what decides the model's numbers: the config and the stored tensors, however they are sharded. */
  readonly digest: string;
  readonly sites: readonly Site[];
  /** Where it was loaded from; undefined for random weights. */
  readonly directory: string | undefined;
  readonly #tensors: Map<string, Tensor>;
  readonly #mapping: FileMapping | undefined;
  #tokenizer: Tokenizer | undefined;
  #hasTokenizer: boolean | undefined;

  private constructor(config: BackboneConfig, form: WeightForm, weights: Weights, directory?: string) {
    this.config = config;
    this.weights = form;
    this.digest = weights.digest;
    this.sites = sitesOf(config);
    this.directory = directory;
    this.#tensors = weights.tensors;
    this.#mapping = weights.mapping;
    if (form.kind !== "float32") {
      const rows = new Map(this.sites.map(({ path, outFeatures }) => [`${path}.weight`, outFeatures]));
      splitWeights(this.#tensors, fusedWeightsOf(config), form.kind, (weight) => rows.get(weight)!);
      addLevels(this.#tensors, form.kind);
    }
    for (const [name, { shape, values }] of ropeTables(config)) {
      this.#tensors.set(name, Tensor.from("float32", shape, values));
    }
  }

  /**
   * Loads a Hugging Face model directory or a GGUF file. Weights stored in another form become float32 while they are
   * read; when quantised only a few megabytes of linear weights are ever held as floats. Of a model that has been
   * prepared in this form the prepared weights are mapped instead: that reads nothing and has the same numbers.
   * @param model its directory or GGUF file, or `ORG/NAME[@revision]` of a model that was pulled
   * @throws InputError when a file is missing, damaged, or does not hold what config.json asks for
   */
  static async load(model: string, options: BackboneOptions = {}): Promise<Backbone> {
    const directory = resolveModel(model);
    const config = readBackboneConfig(directory);
    const own = join(directory, PREPARED);
    if (existsSync(own)) {
      const backbone = Backbone.#map(own, config, directory);
      if (options.weights === undefined || formName(formOf(options)) === formName(backbone.weights)) return backbone;
      backbone.dispose();
      const { kind, ...rest } = backbone.weights;
      const form = "blockSize" in rest ? `${kind} in blocks of ${rest.blockSize}` : kind;
      const problem = `its weights are prepared as ${form}; ask for that form (weights: ${kind}), or name the model it was made of`;
      throw new InputError("WEIGHTS_PREPARED", directory, problem);
    }
    const form = formOf(options);
    const digest = options.cached === false ? undefined : knownDigest(directory);
    const prepared = digest === undefined ? undefined : preparedPath(digest, form);
    const damaged = prepared !== undefined && existsSync(prepared);
    if (damaged) {
      try {
        return Backbone.#map(prepared, config, directory);
      } catch (error) {
        if (!(error instanceof InputError)) throw error; // else it is made anew
      }
    }
    using checkpoint = openTensors(directory);
    const backbone = new Backbone(config, form, await loadWeights(checkpoint, config, form), directory);
    // Where the cache cannot be written to, the model is here all the same.
    if (damaged) await writePrepared(prepared, backbone).catch(() => undefined);
    return backbone;
  }

  static #map(path: string, config: BackboneConfig, directory: string): Backbone {
    const { info, weights } = openPrepared(path, config);
    return new Backbone(config, info.form, weights, directory);
  }

  /** A model with random weights; has no tokenizer. Equal seeds give equal weights. */
  static random(config: BackboneConfig, options: BackboneOptions & { readonly seed?: number } = {}): Backbone {
    const form = formOf(options);
    return new Backbone(config, form, randomWeights(config, form, options.seed ?? 0));
  }

  /** False for random weights and for checkpoints that come without one: token ids only. */
  get hasTokenizer(): boolean {
    const path = this.directory;
    if (path === undefined) return false;
    this.#hasTokenizer ??= GgufModel.is(path) ? ggufHasTokenizer(path) : hasTokenizerFiles(path);
    return this.#hasTokenizer;
  }

  /** Read from the directory when first asked for. */
  get tokenizer(): Tokenizer {
    if (this.directory === undefined) {
      throw new InputError("TOKENIZER_MISSING", "backbone", "has random weights and no tokenizer; give token ids");
    }
    this.#tokenizer ??= loadTokenizer(this.directory, this.config);
    return this.#tokenizer;
  }

  /**
   * The weights by initializer name. float32 weights are named as in the checkpoint
   * (`model.layers.0.self_attn.q_proj.weight` [out, in]); an int4 one is `<name>.q4`, uint8 [N, blocks, block / 2]
   * (int8: `<name>.q8`, [N, blocks, block]), the same bytes as `<name>.levels`, uint4 or uint8 [N, blocks · block], and
   * `<name>.scales`, float16 [N · blocks]; where a graph needs them, the same in float32 as `<name>.scales32`. The backbone
   * stays their owner.
   */
  initializers(): ReadonlyMap<string, Tensor> {
    return this.#tensors;
  }

  /** Waits for a session that packs the weights, giving back pages of prepared ones as they have been read. */
  async whilePacking<T>(session: Promise<T>): Promise<T> {
    const mapping = this.#mapping;
    if (mapping === undefined) return session;
    const timer = setInterval(() => mapping.forget(), FORGET_MS);
    try {
      return await session;
    } finally {
      clearInterval(timer);
      mapping.forget();
    }
  }

  /** Builds the decoder's forward pass into `graph`; its weights are parameters named as in `initializers`. */
  forward(graph: Graph, inputs: ForwardInputs): ForwardOutputs {
    const weights = {
      form: this.weights,
      provideNorms: (site: Site) => void this.squaredNorms(site),
      provideWideScales: (name: string) => this.#widenScales(name),
    };
    return decoderForward(graph, this.config, weights, inputs);
  }

  /**
   * Squared L2 norm of each row of a site's weight as it is at run time, float32 [out]. Computed when first asked for,
   * and an initializer `<path>.weight.norms` from then on.
   */
  squaredNorms(site: Site): Float32Array {
    const weight = `${site.path}.weight`;
    const known = this.#tensors.get(`${weight}.norms`);
    if (known) return known.data as Float32Array;
    const { inFeatures, outFeatures } = site;
    const values = this.#floats(weight, outFeatures, inFeatures);
    const norms = new Float32Array(outFeatures);
    for (let row = 0; row < outFeatures; row++) {
      let total = 0;
      for (let i = row * inFeatures; i < (row + 1) * inFeatures; i++) total += values[i]! * values[i]!;
      norms[row] = total;
    }
    this.#tensors.set(`${weight}.norms`, Tensor.from("float32", [outFeatures], norms));
    return norms;
  }

  /** A linear weight [out, in] as it is at run time. */
  #floats(name: string, outFeatures: number, inFeatures: number): Float32Array {
    const form = this.weights;
    if (form.kind === "float32") return this.#tensors.get(name)!.data as Float32Array;
    const names = quantizedNames(name, form.kind);
    return dequantize({
      bits: form.kind === "int4" ? 4 : 8,
      blockSize: form.blockSize,
      outFeatures,
      inFeatures,
      quantized: this.#tensors.get(names.quantized)!.data as Uint8Array,
      scales: this.#tensors.get(names.scales)!.data as Uint16Array,
    });
  }

  /** Makes the scales of a quantised weight available in float32, which all but milora's own products take. */
  #widenScales(name: string): void {
    if (this.weights.kind === "float32") return;
    const { scales, wideScales } = quantizedNames(name, this.weights.kind);
    if (this.#tensors.has(wideScales)) return;
    const { data, shape, size } = this.#tensors.get(scales)!;
    const values = new Float32Array(size);
    float16ToFloat32(data as Uint16Array, values);
    this.#tensors.set(wideScales, Tensor.from("float32", shape, values));
  }

  /** Bytes of all weights in memory. */
  get byteLength(): number {
    // Parts of a fused weight are views of it: count buffers, not tensors.
    const buffers = new Set([...this.#tensors.values()].map(({ data }) => data.buffer));
    return [...buffers].reduce((total, buffer) => total + buffer.byteLength, 0);
  }

  /** Releases every weight; disposing twice is fine. */
  dispose(): void {
    for (const tensor of this.#tensors.values()) tensor.dispose();
    this.#tensors.clear();
    this.#mapping?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
