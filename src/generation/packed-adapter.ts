/** @file An adapter's numbers as milora's operators read them: one copy for all rows, in which B is banded. */
import { setImmediate } from "node:timers/promises";
import { sum } from "../base/index.ts";
import type { LoweredModule, LoweredRouter } from "../methods/index.ts";
import type { Backbone, Site } from "../models/index.ts";
import {
  adviseLargePages,
  type Operators,
  PACKED_FORMS,
  type PackedForm,
  type Packing,
  Tensor,
} from "../runtime/index.ts";
import { ITEM_WIDTH, type ItemGroup, itemGroups, ROUTER_WIDTH } from "./mixed-graph.ts";

/** Places of the `ITEM_WIDTH` numbers of an item, see struct Item of native/kernels.h. */
export const ITEM = {
  row: 0,
  first: 1,
  outputs: 2,
  rank: 3,
  a: 4,
  b: 5,
  scale: 6,
  bias: 7,
  form: 8,
  factor: 9,
  gate: 10,
  ranks: 11,
  rows: 12,
  expert: 13,
} as const;

/** Numbers of struct Router of native/kernels.h in place of words; order of its words below. */
const POOLING = { self_attention: 0n, mean: 1n, last: 2n, max: 3n } as const;
const ACTIVATION = { rational: 0n, gelu: 1n, relu: 2n, identity: 3n } as const;
const WEIGHTING = { straight_through: 0n, probability: 1n, renormalized: 2n } as const;

/** What an adapter does to a module. */
export interface PackedModule {
  readonly site: Site;
  readonly group: ItemGroup;
  /** See `LoweredModule`. */
  readonly expert?: number | undefined;
  /** Its item for row 0 with gate 1; undefined where it only scales the module's input. */
  readonly item: BigInt64Array | undefined;
  readonly inputScale?: Float32Array | undefined;
  /** Bytes of A, B and vectors, which a row reads. */
  readonly bytes: number;
}

/** Tensors begin at multiples of this, a cache line. */
const ALIGNMENT = 64;

/** How long it packs at a time before others have the event loop, ms. */
const TURN_MS = 16;
/** Packings in one call. */
const TOGETHER = 16;

/** What A and B are held as; int8 has a scale for each rank. */
export type AdapterPrecision = PackedForm;

/** What an adapter does, in numbers. */
export interface LoweredAdapter {
  readonly modules: readonly LoweredModule[];
  /** By layer; none where its method does not choose experts. */
  readonly routers: readonly LoweredRouter[];
}

export class PackedAdapter implements Disposable {
  readonly modules: readonly PackedModule[];
  /** Its routers for a row each, int64 [layers, 10]; empty where it has none. */
  readonly routers: BigInt64Array;
  /** Experts of a layer; 0 where there is no router. */
  readonly experts: number;
  readonly #memory: Tensor;

  private constructor(modules: readonly PackedModule[], routers: BigInt64Array, experts: number, memory: Tensor) {
    this.modules = modules;
    this.routers = routers;
    this.experts = experts;
    this.#memory = memory;
  }

  static async create(
    lowered: LoweredAdapter,
    backbone: Backbone,
    precision: AdapterPrecision,
    operators: Operators,
  ): Promise<PackedAdapter> {
    const plans = planOf(lowered.modules, backbone, precision);
    const last = plans.at(-1);
    const ofModules = last ? last.at + last.bytes : 0;
    const memory = Tensor.allocate("uint8", [ofModules + sum(lowered.routers.map(bytesOf))]);
    const base = memory.byteLength > 0 ? memory.address : 0n;
    adviseLargePages(base, memory.byteLength);
    try {
      const packings: Packing[] = [];
      const routers = packRouters(lowered.routers, base + BigInt(ofModules), packings);
      const modules = plans.map((plan) => pack(plan, base, precision, packings));
      await packAll(packings, operators);
      return new PackedAdapter(modules, routers, lowered.routers[0]?.experts ?? 0, memory);
    } catch (error) {
      memory.dispose();
      throw error;
    }
  }

  get byteLength(): number {
    return this.#memory.byteLength;
  }

  [Symbol.dispose](): void {
    this.#memory.dispose();
  }
}

async function packAll(packings: readonly Packing[], operators: Operators): Promise<void> {
  let began = performance.now();
  for (let done = 0; done < packings.length; done += TOGETHER) {
    if (performance.now() - began > TURN_MS) {
      await setImmediate();
      began = performance.now();
    }
    operators.pack(packings.slice(done, done + TOGETHER));
  }
}

interface Plan {
  readonly module: LoweredModule;
  readonly group: ItemGroup;
  /** Where the module's outputs begin among those of the group. */
  readonly first: number;
  readonly scale: Float32Array | undefined;
  readonly bias: Float32Array | undefined;
  readonly at: number;
  readonly bytes: number;
}

const aligned = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

const vectorsOf = ({ pooler, coefficients, gate }: LoweredRouter) => [pooler, ...(coefficients ?? []), gate];
const bytesOf = (router: LoweredRouter): number =>
  sum(vectorsOf(router).map((vector) => aligned(vector?.byteLength ?? 0)));

/** A vector that is copied as it is. */
const copied = (source: Float32Array, target: bigint): Packing => {
  return { source, rows: 1, columns: source.length, banded: false, form: "float32", target };
};

/** Has the numbers of routers copied to `at`; returns structs Router of native/kernels.h, int64 [layers, 10]. */
function packRouters(routers: readonly LoweredRouter[], at: bigint, packings: Packing[]): BigInt64Array {
  const structs = new BigInt64Array(routers.length * ROUTER_WIDTH);
  const vector = (source: Float32Array | undefined): bigint => {
    if (!source) return 0n;
    const place = at;
    at += BigInt(aligned(source.byteLength));
    packings.push(copied(source, place));
    return place;
  };
  for (const [layer, router] of routers.entries()) {
    const [numerator, denominator] = router.coefficients ?? [];
    const addresses = [router.pooler, numerator, denominator, router.gate].map(vector);
    const kinds = [POOLING[router.pooling], ACTIVATION[router.activation]];
    const rest = [BigInt(router.topK), WEIGHTING[router.weighting], BigInt(router.normalized), BigInt(router.experts)];
    structs.set([...addresses, ...kinds, ...rest], layer * ROUTER_WIDTH);
  }
  return structs;
}

function planOf(lowered: readonly LoweredModule[], backbone: Backbone, form: PackedForm): Plan[] {
  const places = new Map<string, { group: ItemGroup; first: number }>();
  for (const group of itemGroups(backbone)) {
    let first = 0;
    for (const site of group.sites) {
      places.set(site.path, { group, first });
      first += site.outFeatures;
    }
  }
  let at = 0;
  return lowered.map((module) => {
    const { site, low, scale } = module;
    const { group, first } = places.get(site.path)!;
    const bias = biasOf(module, backbone, group);
    const { inFeatures, outFeatures } = site;
    const { bytes: element } = PACKED_FORMS[form];
    const factors = low ? [low.rank * inFeatures, low.rank * outFeatures].map((size) => aligned(element * size)) : [];
    if (low && form === "int8") factors.push(aligned(4 * low.rank));
    const vectors = [scale, bias].reduce((sum, vector) => sum + (vector ? aligned(4 * outFeatures) : 0), 0);
    const plan = { module, group, first, scale, bias, at, bytes: sum(factors) + vectors };
    at += plan.bytes;
    return plan;
  });
}

/**
 * What is added after scaling. Where modules are multiplied together their frozen biases come after the items, else they
 * are in y already: what is missing, or too much, is put right.
 */
function biasOf({ site, scale, bias, keepsBias }: LoweredModule, backbone: Backbone, group: ItemGroup) {
  if (!scale || !site.hasBias) return bias;
  const comesAfter = group.sites.length > 1;
  if (comesAfter === (keepsBias === true)) return bias;
  const frozen = backbone.initializers().get(`${site.path}.bias`)!.data as Float32Array;
  const missing = frozen.map((b, o) => b * (comesAfter ? scale[o]! - 1 : 1 - scale[o]!));
  return bias ? bias.map((b, o) => b + missing[o]!) : missing;
}

/** Has a module's numbers packed; returns what it will be. */
function pack(plan: Plan, base: bigint, form: PackedForm, packings: Packing[]): PackedModule {
  const { module, group, first, scale, bias, bytes } = plan;
  const { site, low, expert, inputScale } = module;
  const { inFeatures, outFeatures } = site;
  let at = base + BigInt(plan.at);
  const take = (bytes: number): bigint => {
    const place = at;
    at += BigInt(aligned(bytes));
    return place;
  };
  const vector = (source: Float32Array): bigint => {
    const place = take(source.byteLength);
    packings.push(copied(source, place));
    return place;
  };
  const item = new BigInt64Array(ITEM_WIDTH);
  const numbers = new Float64Array(item.buffer);
  item[ITEM.first] = BigInt(first);
  item[ITEM.outputs] = BigInt(outFeatures);
  item[ITEM.form] = BigInt(PACKED_FORMS[form].code);
  item[ITEM.rows] = 1n;
  item[ITEM.expert] = -1n;
  numbers[ITEM.gate] = 1;
  if (low) {
    const { rank, ranks } = low;
    const a = ranks ? low.a.map((value, i) => value * ranks[Math.floor(i / inFeatures)]!) : low.a;
    item[ITEM.rank] = BigInt(rank);
    numbers[ITEM.factor] = low.scaling;
    const { bytes: element } = PACKED_FORMS[form];
    const target = { a: take(element * rank * inFeatures), b: take(element * rank * outFeatures) };
    const scales = form === "int8" ? vector(new Float32Array(rank).fill(1)) : undefined;
    packings.push(
      { source: a, rows: rank, columns: inFeatures, banded: false, form, target: target.a, ranks: scales },
      { source: low.b, rows: outFeatures, columns: rank, banded: true, form, target: target.b, ranks: scales },
    );
    item[ITEM.a] = target.a;
    item[ITEM.b] = target.b;
    item[ITEM.ranks] = scales ?? 0n;
  }
  if (scale) item[ITEM.scale] = vector(scale);
  if (bias) item[ITEM.bias] = vector(bias);
  const changes = low || scale || bias;
  return { site, group, expert, item: changes ? item : undefined, inputScale: inputScale?.slice(), bytes };
}
