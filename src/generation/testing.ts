/** @file Backbones, adapters and expected numbers of test/fixtures, for the tests of this room. */
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Random } from "../base/index.ts";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone, type BackboneConfig } from "../models/index.ts";
import type { DeviceName } from "../runtime/index.ts";
import { AdapterCache } from "./derived.ts";
import { SessionCache } from "./graphs.ts";
import type { AdapterPrecision } from "./packed-adapter.ts";
import { BufferPool } from "./pool.ts";
import { PrefixCache, type PrefixCacheOptions } from "./prefix-cache.ts";
import { Runner } from "./runner.ts";
import type { Shared } from "./shared.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
const fixtures = `${root}test/fixtures/`;

/** Numbers of a checkpoint or of a LoRA adapter, see test/reference/README.md. */
export interface ExpectedSequence {
  readonly tokens: number[];
  readonly logits?: number[][];
  readonly lastLogits?: number[];
  readonly logProbs: number[];
  readonly greedy: number[] | null;
}

/** Numbers of a MiLoRA adapter. */
export interface ExpectedPrompt {
  readonly prompt: number[];
  readonly response: number[];
  readonly routes: number[][];
  readonly probabilities: number[][];
  readonly logits: number[][];
  readonly logProbs: number[];
  readonly greedy: number[];
}

export function readFixture<T>(path: string): T {
  return JSON.parse(readFileSync(fixtures + path, "utf8")) as T;
}

export function fixtureNames(directory: string): string[] {
  return readdirSync(fixtures + directory).toSorted();
}

export function loadBackbone(name: string): Promise<Backbone> {
  return Backbone.load(`${fixtures}backbones/${name}`);
}

export function loadAdapter(path: string, backbone: Backbone): Adapter {
  return Adapter.load(fixtures + path, backbone.config);
}

/** The bundled model: small, trained, with a tokenizer. */
export function loadTiny(): Promise<Backbone> {
  return Backbone.load(`${root}assets/tiny-llama`);
}

/** A backbone for tests that need speed and no particular numbers. */
export const smallConfig: BackboneConfig = {
  modelType: "llama",
  hiddenSize: 32,
  intermediateSize: 64,
  numLayers: 2,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 16,
  vocabSize: 96,
  rmsNormEps: 1e-5,
  ropeTheta: 10000,
  maxPositions: 512,
  tieWordEmbeddings: false,
  hiddenAct: "silu",
  eosTokenIds: [2],
};

/** Largest absolute difference of two lists of numbers. */
export function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i]! - b[i]!);
    if (!(d <= largest)) largest = d; // NaN comes through
  }
  return largest;
}

/** An adapter whose every number is moved away from where training begins. */
export function moved(backbone: Backbone, method: string, options: Record<string, unknown> = {}, seed = 1): Adapter {
  const adapter = Adapter.create(methodOf(method), options, backbone.config, seed, backbone, { totalSteps: 10 });
  const random = new Random(99 + seed);
  for (const { key } of adapter.specs) {
    adapter.values(key).set(adapter.values(key).map((value) => value + 0.08 * random.normal()));
  }
  return adapter;
}

/** The most likely token. */
export function greedy(values: Float32Array): number {
  return values.indexOf(values.reduce((a, b) => Math.max(a, b)));
}

/** Everything a batch takes. */
export class Bench implements Disposable {
  readonly shared: Shared;

  constructor(
    backbone: Backbone,
    prefixCache?: PrefixCacheOptions,
    context = 200,
    precision?: AdapterPrecision,
    device: DeviceName = "cpu",
    halves = false,
  ) {
    const sessions = new SessionCache(backbone, { routes: 0, device, halves });
    const runner = new Runner();
    const adapters = new AdapterCache(backbone, sessions, runner, precision);
    const prefixes = prefixCache && new PrefixCache(backbone, prefixCache);
    const sizes = { context, capacity: undefined };
    this.shared = {
      backbone,
      device,
      sessions,
      adapters,
      pool: new BufferPool(2, device, halves),
      runner,
      prefixes,
      ...sizes,
    };
  }

  [Symbol.dispose](): void {
    this.shared.adapters[Symbol.dispose]();
    this.shared.sessions[Symbol.dispose]();
    this.shared.pool[Symbol.dispose]();
  }
}
