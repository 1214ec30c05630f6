/** @file Backbones by name: what planning has to know of each, and one of them open at a time. */
import { basename } from "node:path";
import { MiloraError } from "../../base/index.ts";
import { Engine } from "../../generation/index.ts";
import { Backbone, type BackboneConfig, SHAPES, type Tokenizer } from "../../models/index.ts";

export interface ModelFacts {
  /** That of a known shape while the model is not here. */
  readonly config: BackboneConfig | undefined;
  readonly digest?: string;
  readonly tokenizer?: Tokenizer;
  readonly problem?: MiloraError;
}

/** Holds the backbone that was asked for last, and an engine over it. */
export class Models implements Disposable {
  readonly #facts = new Map<string, ModelFacts>();
  #open: { readonly model: string; readonly backbone: Backbone; engine: Engine | undefined } | undefined;

  async facts(model: string): Promise<ModelFacts> {
    let facts = this.#facts.get(model);
    if (!facts) {
      facts = await this.#read(model);
      this.#facts.set(model, facts);
    }
    return facts;
  }

  async #read(model: string): Promise<ModelFacts> {
    try {
      const { config, digest, tokenizer } = await this.backbone(model);
      return { config, digest, tokenizer };
    } catch (error) {
      if (!(error instanceof MiloraError)) throw error;
      const shape = (SHAPES as Readonly<Record<string, BackboneConfig>>)[basename(model).toLowerCase()];
      return { config: shape, problem: error };
    }
  }

  async backbone(model: string): Promise<Backbone> {
    if (this.#open?.model !== model) {
      this[Symbol.dispose]();
      this.#open = { model, backbone: await Backbone.load(model), engine: undefined };
    }
    return this.#open.backbone;
  }

  async engine(model: string): Promise<Engine> {
    const backbone = await this.backbone(model);
    this.#open!.engine ??= Engine.create(backbone);
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
