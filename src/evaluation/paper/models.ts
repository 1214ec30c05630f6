/** @file Backbones by name: what planning has to know of each, and one of them open at a time. */
import { basename } from "node:path";
import { MiloraError } from "../../base/index.ts";
import { Engine } from "../../generation/index.ts";
import { Backbone, type BackboneConfig, SHAPES, type Tokenizer, type WeightForm } from "../../models/index.ts";
import type { DeviceName } from "../../runtime/index.ts";

export interface ModelFacts {
  /** That of a known shape while the model is not here. */
  readonly config: BackboneConfig | undefined;
  readonly digest?: string;
  /** How it is held. */
  readonly weights?: WeightForm["kind"];
  readonly tokenizer?: Tokenizer;
  readonly problem?: MiloraError;
}

/** In which form, and where; what is not said is float32, or as it was prepared, on the CPU. */
export interface Holding {
  readonly weights?: WeightForm["kind"] | undefined;
  readonly device?: DeviceName | undefined;
}

/** Holds the backbone that was asked for last, and an engine over it. */
export class Models implements Disposable {
  readonly #facts = new Map<string, ModelFacts>();
  #open: { readonly key: string; readonly backbone: Backbone; engine: Engine | undefined } | undefined;

  async facts(model: string, holding: Holding = {}): Promise<ModelFacts> {
    const key = keyOf(model, holding);
    let facts = this.#facts.get(key);
    if (!facts) {
      facts = await this.#read(model, holding);
      this.#facts.set(key, facts);
    }
    return facts;
  }

  async #read(model: string, holding: Holding): Promise<ModelFacts> {
    try {
      const { config, digest, tokenizer, weights } = await this.backbone(model, holding);
      return { config, digest, tokenizer, weights: weights.kind };
    } catch (error) {
      if (!(error instanceof MiloraError)) throw error;
      const shape = (SHAPES as Readonly<Record<string, BackboneConfig>>)[basename(model).toLowerCase()];
      return { config: shape, problem: error };
    }
  }

  async backbone(model: string, holding: Holding = {}): Promise<Backbone> {
    const key = keyOf(model, holding);
    if (this.#open?.key !== key) {
      this[Symbol.dispose]();
      const { weights } = holding;
      this.#open = { key, backbone: await Backbone.load(model, weights ? { weights } : {}), engine: undefined };
    }
    return this.#open.backbone;
  }

  async engine(model: string, holding: Holding = {}): Promise<Engine> {
    const backbone = await this.backbone(model, holding);
    this.#open!.engine ??= Engine.create(backbone, { device: holding.device });
    return this.#open!.engine;
  }

  closeEngine(): void {
    this.#open?.engine?.[Symbol.dispose]();
    if (this.#open) this.#open.engine = undefined;
  }

  [Symbol.dispose](): void {
    this.closeEngine();
    this.#open?.backbone.dispose();
    this.#open = undefined;
  }
}

/** The device is an engine's, of which there is one at a time. */
const keyOf = (model: string, { weights, device }: Holding): string => `${model} ${weights ?? ""} ${device ?? ""}`;
