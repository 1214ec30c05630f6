/** @file What follows from an adapter and the frozen weights alone, computed once per adapter: DoRA's scales, packed numbers. */
import { sum } from "../base/index.ts";
import { ADAPTER_INPUT, type Adapter, DERIVED, type LoweredModule } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { type Binding, operators, type Session, Tensor } from "../runtime/index.ts";
import type { SessionCache } from "./graphs.ts";
import { type AdapterPrecision, PackedAdapter } from "./packed-adapter.ts";
import { joinsOthers, scalesInputs } from "./pass.ts";
import type { Runner } from "./runner.ts";

type Tensors = ReadonlyMap<string, Tensor>;

/** What follows from an adapter. */
interface Derived {
  /** What was made for it, by the names of graph inputs: on another device than the CPU copies of its own tensors too. */
  readonly tensors: Tensors;
  /** All that graphs take of it, where they run. Of what is packed that is, as a rule, never asked for. */
  readonly inputs: () => Tensors;
  /** What it does, for rows of several adapters at once; undefined where its method cannot be put so. */
  readonly lowered: readonly LoweredModule[] | undefined;
  /** The same for milora's operators; undefined where those are not, or nothing is done. */
  readonly packed: PackedAdapter | undefined;
  /** Memory of `tensors` and `packed`. */
  readonly bytes: number;
}

interface Entry {
  readonly making: Promise<Derived>;
  /** Once it is there. */
  made: Derived | undefined;
  uses: number;
  /** Somebody else says how long it is kept, by `forget`. */
  kept: boolean;
  /** To be released when the last user has gone. */
  forgotten: boolean;
}

/** An adapter, or none, with everything its graphs take. Its tensors stay at least until it is given back. */
export interface PreparedAdapter extends Omit<Derived, "tensors" | "inputs">, Disposable {
  readonly adapter: Adapter | undefined;
  /** Places before a sequence's own tokens that its attention prefix takes in the cache. */
  readonly prefix: number;
  /** Binds the adapter's tensors to the inputs that a session has for them. */
  bind(session: Session, binding: Binding): void;
}

/** See `PreparedAdapter.prefix`. */
export function prefixOf(adapter: Adapter | undefined): number {
  return adapter?.method.prefixLength?.(adapter.config) ?? 0;
}

/** Of adapters, by that of the backbone: their rounding is lost in its own. */
const PRECISIONS = { float32: "float32", int8: "float16", int4: "int8" } as const;

/** Of how many adapters, and how many bytes, what was derived is kept while unused, where nobody else says so. */
const KEPT = 128;
const KEPT_BYTES = 2 ** 30;

export class AdapterCache implements Disposable {
  readonly #backbone: Backbone;
  readonly #sessions: SessionCache;
  readonly #runner: Runner;
  readonly #precision: AdapterPrecision;
  /** Least recently used first. */
  readonly #entries = new Map<Adapter, Entry>();

  /** @param precision see `EngineOptions.adapterPrecision` */
  constructor(backbone: Backbone, sessions: SessionCache, runner: Runner, precision?: AdapterPrecision) {
    this.#precision = precision ?? PRECISIONS[backbone.weights.kind];
    this.#backbone = backbone;
    this.#sessions = sessions;
    this.#runner = runner;
  }

  /** @param keep until it is forgotten, however many others there are */
  async prepare(adapter: Adapter | undefined, keep = false): Promise<PreparedAdapter> {
    if (!adapter) return BARE;
    const entry = this.#enter(adapter);
    entry.kept ||= keep;
    let returned = false;
    const giveBack = (): void => {
      if (returned) return;
      returned = true;
      entry.uses--;
      if (entry.forgotten && entry.uses === 0) release(entry);
    };
    try {
      entry.made = await entry.making;
    } catch (error) {
      giveBack();
      // Meanwhile it may have been forgotten and derived again.
      if (this.#entries.get(adapter) === entry) this.#entries.delete(adapter);
      throw error;
    }
    const { inputs, lowered, packed, bytes } = entry.made;
    return {
      adapter,
      prefix: prefixOf(adapter),
      lowered,
      packed,
      bytes,
      bind(session, binding) {
        for (const { name } of session.inputs) {
          if (!name.startsWith(ADAPTER_INPUT) && !name.startsWith(DERIVED)) continue;
          const tensor = inputs().get(name);
          if (tensor) binding.input(name, tensor);
        }
      },
      [Symbol.dispose]: giveBack,
    };
  }

  /** Drops what was derived from an adapter, because its numbers have changed or it is not needed any more. */
  forget(adapter: Adapter): void {
    const entry = this.#entries.get(adapter);
    if (!entry) return;
    this.#entries.delete(adapter);
    entry.forgotten = true;
    if (entry.uses === 0) release(entry);
  }

  /** Only when nothing is in use. */
  [Symbol.dispose](): void {
    for (const entry of this.#entries.values()) release(entry);
    this.#entries.clear();
  }

  #enter(adapter: Adapter): Entry {
    let entry = this.#entries.get(adapter);
    if (entry)
      this.#entries.delete(adapter); // to be put at the end again
    else entry = { making: this.#make(adapter), made: undefined, uses: 0, kept: false, forgotten: false };
    this.#entries.set(adapter, entry);
    entry.uses++;
    this.#evict();
    return entry;
  }

  #evict(): void {
    const unused = [...this.#entries].filter(([, { uses }]) => uses === 0);
    const spare = unused.filter(([, { kept }]) => !kept);
    let count = spare.length;
    let bytes = sum(spare.map(([, { made }]) => made?.bytes ?? 0));
    for (const [adapter, entry] of unused) {
      const goes = adapter.disposed || (!entry.kept && (count > KEPT || bytes > KEPT_BYTES));
      if (!goes) continue;
      this.#entries.delete(adapter);
      if (!entry.kept) count--;
      if (!entry.kept) bytes -= entry.made?.bytes ?? 0;
      release(entry);
    }
  }

  async #make(adapter: Adapter): Promise<Derived> {
    const tensors = this.#sessions.derives(adapter) ? await this.#derive(adapter) : new Map<string, Tensor>();
    const { device } = this.#sessions;
    try {
      const own = () => [...adapter.tensors].map(([key, tensor]) => [ADAPTER_INPUT + key, tensor] as const);
      if (device !== "cpu") {
        for (const [name, tensor] of own()) tensors.set(name, tensor.copyTo(device));
        return { tensors, inputs: () => tensors, lowered: undefined, packed: undefined, bytes: bytesOf(tensors) };
      }
      let all: Tensors | undefined;
      const inputs = (): Tensors => {
        all ??= new Map([...own(), ...tensors]);
        return all;
      };
      const { method, config, backbone } = adapter;
      const operating = operators();
      if (!operating || !joinsOthers(adapter)) inputs(); // numbers of a file are good for packing only
      const derived = (name: string) => tensors.get(DERIVED + name)!.data as Float32Array;
      const context = { config, backbone, values: (key: string) => adapter.values(key), derived };
      const lowered = method.lower?.(context);
      if (!operating || !lowered) return { tensors, inputs, lowered, packed: undefined, bytes: bytesOf(tensors) };
      const numbers = { modules: lowered, routers: method.lowerRouters?.(context) ?? [] };
      const packed = await PackedAdapter.create(numbers, this.#backbone, this.#precision, operating);
      if (scalesInputs(lowered)) inputs(); // while its numbers are at hand
      return { tensors, inputs, lowered, packed, bytes: bytesOf(tensors) + packed.byteLength };
    } catch (error) {
      disposeAll(tensors);
      throw error;
    }
  }

  async #derive(adapter: Adapter): Promise<Map<string, Tensor>> {
    using lease = await this.#sessions.lease({ kind: "derive", adapter });
    const { session } = lease;
    const tensors = new Map<string, Tensor>();
    try {
      using binding = session.bind();
      for (const { name } of session.inputs)
        binding.input(name, adapter.tensors.get(name.slice(ADAPTER_INPUT.length))!);
      for (const { name, shape } of session.outputs) {
        const tensor = Tensor.allocate("float32", shape.map(Number), this.#sessions.device);
        tensors.set(name, tensor);
        binding.output(name, tensor);
      }
      await this.#runner.run(session, binding, this.#backbone.config.numLayers);
    } catch (error) {
      disposeAll(tensors);
      throw error;
    }
    return tensors;
  }
}

/** The backbone alone. */
const BARE: PreparedAdapter = {
  adapter: undefined,
  prefix: 0,
  lowered: [],
  packed: undefined,
  bytes: 0,
  bind() {},
  [Symbol.dispose]() {},
};

function bytesOf(tensors: Tensors): number {
  return sum([...tensors.values()].map(({ byteLength }) => byteLength));
}

function disposeAll(tensors: Tensors): void {
  for (const tensor of tensors.values()) tensor.dispose();
}

function free({ tensors, packed }: Derived): void {
  disposeAll(tensors);
  packed?.[Symbol.dispose]();
}

/** Whatever failed has nothing to release. */
function release({ making, made }: Entry): void {
  if (made) free(made);
  else making.then(free, () => {});
}
