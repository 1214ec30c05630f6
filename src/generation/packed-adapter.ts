/** @file An adapter's numbers as milora's operators read them: one copy for all rows, in which B is banded. */
import { setImmediate } from "node:timers/promises";
import type { LoweredModule } from "../methods/index.ts";
import type { Backbone, Site } from "../models/index.ts";
import { type Operators, Tensor } from "../runtime/index.ts";
import { ITEM_WIDTH, type ItemGroup, itemGroups } from "./mixed-graph.ts";

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
  half: 8,
  factor: 9,
  gate: 10,
} as const;

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
const SLICE_MS = 2;

/** What A and B are held as. */
export type AdapterPrecision = "float32" | "float16";

export class PackedAdapter implements Disposable {
  readonly modules: readonly PackedModule[];
  readonly #memory: Tensor;

  private constructor(modules: readonly PackedModule[], memory: Tensor) {
    this.modules = modules;
    this.#memory = memory;
  }

  static async create(
    lowered: readonly LoweredModule[],
    backbone: Backbone,
    precision: AdapterPrecision,
    operators: Operators,
  ): Promise<PackedAdapter> {
    const half = precision === "float16";
    const plans = planOf(lowered, backbone, half);
    const last = plans.at(-1);
    const memory = Tensor.allocate("uint8", [last ? last.at + last.bytes : 0]);
    const base = last ? memory.address : 0n;
    if (last) operators.useLargePages(base, memory.byteLength);
    const modules: PackedModule[] = [];
    try {
      let began = performance.now();
      for (const plan of plans) {
        modules.push(pack(plan, base, half, operators));
        if (performance.now() - began < SLICE_MS) continue;
        await setImmediate();
        began = performance.now();
      }
    } catch (error) {
      memory.dispose();
      throw error;
    }
    return new PackedAdapter(modules, memory);
  }

  get byteLength(): number {
    return this.#memory.byteLength;
  }

  [Symbol.dispose](): void {
    this.#memory.dispose();
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

function planOf(lowered: readonly LoweredModule[], backbone: Backbone, half: boolean): Plan[] {
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
    const element = half ? 2 : 4;
    const factors = low ? aligned(element * low.rank * inFeatures) + aligned(element * low.rank * outFeatures) : 0;
    const vectors = [scale, bias].reduce((sum, vector) => sum + (vector ? aligned(4 * outFeatures) : 0), 0);
    const plan = { module, group, first, scale, bias, at, bytes: factors + vectors };
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

function pack(plan: Plan, base: bigint, half: boolean, operators: Operators): PackedModule {
  const { module, group, first, scale, bias, bytes } = plan;
  const { site, low, expert, inputScale } = module;
  const { inFeatures, outFeatures } = site;
  let at = base + BigInt(plan.at);
  const put = (source: Float32Array, rows: number, columns: number, how: { banded: boolean; half: boolean }) => {
    const place = at;
    operators.pack(source, rows, columns, how, place);
    at += BigInt(aligned((how.half ? 2 : 4) * rows * columns));
    return place;
  };
  const vector = { banded: false, half: false };
  const item = new BigInt64Array(ITEM_WIDTH);
  const numbers = new Float64Array(item.buffer);
  item[ITEM.first] = BigInt(first);
  item[ITEM.outputs] = BigInt(outFeatures);
  item[ITEM.half] = half ? 1n : 0n;
  numbers[ITEM.gate] = 1;
  if (low) {
    const { rank, ranks } = low;
    const a = ranks ? low.a.map((value, i) => value * ranks[Math.floor(i / inFeatures)]!) : low.a;
    item[ITEM.rank] = BigInt(rank);
    numbers[ITEM.factor] = low.scaling;
    item[ITEM.a] = put(a, rank, inFeatures, { banded: false, half });
    item[ITEM.b] = put(low.b, outFeatures, rank, { banded: true, half });
  }
  if (scale) item[ITEM.scale] = put(scale, 1, outFeatures, vector);
  if (bias) item[ITEM.bias] = put(bias, 1, outFeatures, vector);
  const changes = low || scale || bias;
  return { site, group, expert, item: changes ? item : undefined, inputScale, bytes };
}
