/** @file A backbone: config, tokenizer and frozen weights of a model, loaded once and shared by every session. */
import { InputError } from "../base/index.ts";
import type { Graph } from "../graph/index.ts";
import { Tensor } from "../runtime/index.ts";
import type { BackboneConfig } from "./config.ts";
import { readBackboneConfig } from "./config-file.ts";
import { familyOf } from "./families.ts";
import type { ForwardInputs, ForwardOutputs, Site, WeightForm } from "./forward.ts";
import { fuseWeights } from "./fuse.ts";
import { dequantize } from "./quantize.ts";
import { SHAPES } from "./shapes.ts";
import { sitesOf } from "./sites.ts";
import { Tokenizer } from "./tokenizer.ts";
import { loadWeights, randomWeights, type Weights } from "./weights.ts";

export interface BackboneOptions {
  /** How linear layers and the head are stored: float32 (default), or blockwise int4 for `MatMulNBits`. */
  readonly weights?: "float32" | "int4";
  /** Weights that share one scale with int4; 32 (default), 64 or 128. */
  readonly blockSize?: number;
}

function formOf(options: BackboneOptions): WeightForm {
  return options.weights === "int4" ? { kind: "int4", blockSize: options.blockSize ?? 32 } : { kind: "float32" };
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
  #tokenizer: Tokenizer | undefined;

  private constructor(config: BackboneConfig, form: WeightForm, weights: Weights, directory?: string) {
    this.config = config;
    this.weights = form;
    this.digest = weights.digest;
    this.sites = sitesOf(config);
    this.directory = directory;
    this.#tensors = weights.tensors;
    if (form.kind === "int4") fuseWeights(this.#tensors, familyOf(config).fused(config));
    for (const [name, { shape, values }] of familyOf(config).tables(config)) {
      this.#tensors.set(name, Tensor.from("float32", shape, values));
    }
  }

  /**
   * Loads a Hugging Face model directory. bfloat16 and float16 weights become float32 while they are read; with int4
   * only a few megabytes of linear weights are ever held as floats.
   * @throws InputError when a file is missing, damaged, or does not hold what config.json asks for
   */
  static async load(directory: string, options: BackboneOptions = {}): Promise<Backbone> {
    const config = readBackboneConfig(directory);
    const form = formOf(options);
    return new Backbone(config, form, await loadWeights(directory, config, form), directory);
  }

  /** A model with random weights; has no tokenizer. Equal seeds give equal weights. */
  static random(config: BackboneConfig, options: BackboneOptions & { readonly seed?: number } = {}): Backbone {
    const form = formOf(options);
    return new Backbone(config, form, randomWeights(config, form, options.seed ?? 0));
  }

  /** Read from the directory when first asked for. */
  get tokenizer(): Tokenizer {
    if (this.directory === undefined) {
      throw new InputError("TOKENIZER_MISSING", "backbone", "has random weights and no tokenizer; give token ids");
    }
    this.#tokenizer ??= Tokenizer.load(this.directory, this.config);
    return this.#tokenizer;
  }

  /**
   * The weights by initializer name. float32 weights are named as in the checkpoint
   * (`model.layers.0.self_attn.q_proj.weight` [out, in]); an int4 one is `<name>.q4`, uint8 [N, blocks, block / 2], and
   * `<name>.scales`, float32 [N · blocks]. The backbone stays their owner.
   */
  initializers(): ReadonlyMap<string, Tensor> {
    return this.#tensors;
  }

  /** Builds the decoder's forward pass into `graph`; its weights are parameters named as in `initializers`. */
  forward(graph: Graph, inputs: ForwardInputs): ForwardOutputs {
    const weights = { form: this.weights, provideNorms: (site: Site) => void this.squaredNorms(site) };
    return familyOf(this.config).forward(graph, this.config, weights, inputs);
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
    const values =
      this.weights.kind === "float32"
        ? (this.#tensors.get(weight)!.data as Float32Array)
        : dequantize({
            bits: 4,
            blockSize: this.weights.blockSize,
            outFeatures,
            inFeatures,
            quantized: this.#tensors.get(`${weight}.q4`)!.data as Uint8Array,
            scales: this.#tensors.get(`${weight}.scales`)!.data as Float32Array,
          });
    const norms = new Float32Array(outFeatures);
    for (let row = 0; row < outFeatures; row++) {
      let total = 0;
      for (let i = row * inFeatures; i < (row + 1) * inFeatures; i++) total += values[i]! * values[i]!;
      norms[row] = total;
    }
    this.#tensors.set(`${weight}.norms`, Tensor.from("float32", [outFeatures], norms));
    return norms;
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
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
