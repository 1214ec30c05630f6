/** @file What follows from an adapter and the frozen weights alone, computed once per adapter: DoRA's scales, packed numbers. */
import { ADAPTER_INPUT, type Adapter, DERIVED, type LoweredModule } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { type Binding, operators, type Session, Tensor } from "../runtime/index.ts";
import type { SessionCache } from "./graphs.ts";
import { type AdapterPrecision, PackedAdapter } from "./packed-adapter.ts";
import type { Runner } from "./runner.ts";

type Tensors = ReadonlyMap<string, Tensor>;

interface Entry {
  readonly tensors: Promise<Tensors>;
  packing: Promise<PackedAdapter> | undefined;
  /** Once it is there. */
  packed: PackedAdapter | undefined;
  uses: number;
  /** To be released when the last user has gone. */
  forgotten: boolean;
}

/** An adapter with everything its graphs take. Its tensors stay at least until it is given back. */
export interface PreparedAdapter extends Disposable {
  readonly adapter: Adapter | undefined;
  /** The numbers of a derived tensor. */
  derived(name: string): Float32Array;
  /** For milora's operators; undefined where those are not, or there is nothing to pack. */
  packed(lowered: readonly LoweredModule[] | undefined): Promise<PackedAdapter | undefined>;
  /** Binds the adapter's tensors to the inputs that a session has for them. */
  bind(session: Session, binding: Binding): void;
}

/** How many adapters' tensors, and bytes of packed numbers, are kept while unused. */
const KEPT = 64;
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
    this.#precision = precision ?? (backbone.weights.kind === "float32" ? "float32" : "float16");
    this.#backbone = backbone;
    this.#sessions = sessions;
    this.#runner = runner;
  }

  /** @param session any session of the adapter: it shows whether there is something to derive */
  async prepare(adapter: Adapter | undefined, session: Session): Promise<PreparedAdapter> {
    const derives = session.inputs.some(({ name }) => name.startsWith(DERIVED));
    const entry = adapter && this.#enter(adapter, derives);
    let returned = false;
    const giveBack = (): void => {
      if (returned || !entry) return;
      returned = true;
      entry.uses--;
      if (entry.forgotten && entry.uses === 0) release(entry);
    };
    let derived: Tensors;
    try {
      derived = (await entry?.tensors) ?? new Map();
    } catch (error) {
      giveBack();
      // Meanwhile it may have been forgotten and derived again.
      if (this.#entries.get(adapter!) === entry) this.#entries.delete(adapter!);
      throw error;
    }
    return {
      adapter,
      derived: (name) => derived.get(DERIVED + name)!.data as Float32Array,
      packed: async (lowered) => entry && lowered && this.#pack(entry, lowered),
      bind(target, binding) {
        for (const { name } of target.inputs) {
          if (name.startsWith(ADAPTER_INPUT)) {
            binding.input(name, adapter!.tensors.get(name.slice(ADAPTER_INPUT.length))!);
          } else if (name.startsWith(DERIVED)) {
            binding.input(name, derived.get(name)!);
          }
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

  #enter(adapter: Adapter, derives: boolean): Entry {
    let entry = this.#entries.get(adapter);
    if (entry) {
      this.#entries.delete(adapter); // to be put at the end again
    } else {
      const tensors = derives ? this.#derive(adapter) : Promise.resolve(new Map<string, Tensor>());
      entry = { tensors, packing: undefined, packed: undefined, uses: 0, forgotten: false };
    }
    this.#entries.set(adapter, entry);
    entry.uses++;
    this.#evict();
    return entry;
  }

  async #pack(entry: Entry, lowered: readonly LoweredModule[]): Promise<PackedAdapter | undefined> {
    const own = operators();
    if (!own || lowered.length === 0) return undefined;
    entry.packing ??= PackedAdapter.create(lowered, this.#backbone, this.#precision, own);
    try {
      entry.packed = await entry.packing;
    } catch (error) {
      entry.packing = undefined;
      throw error;
    }
    return entry.packed;
  }

  #evict(): void {
    let bytes = 0;
    for (const { packed, uses } of this.#entries.values()) if (uses === 0) bytes += packed?.byteLength ?? 0;
    for (const [adapter, entry] of this.#entries) {
      const gone = [...adapter.tensors.values()].some((tensor) => tensor.disposed);
      if (entry.uses > 0 || (!gone && this.#entries.size <= KEPT && bytes <= KEPT_BYTES)) continue;
      this.#entries.delete(adapter);
      bytes -= entry.packed?.byteLength ?? 0;
      release(entry);
    }
  }

  async #derive(adapter: Adapter): Promise<Tensors> {
    using lease = await this.#sessions.lease({ kind: "derive", adapter });
    const { session } = lease;
    const tensors = new Map<string, Tensor>();
    try {
      using binding = session.bind();
      for (const { name } of session.inputs)
        binding.input(name, adapter.tensors.get(name.slice(ADAPTER_INPUT.length))!);
      for (const { name, shape } of session.outputs) {
        const tensor = Tensor.allocate("float32", shape.map(Number));
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

function disposeAll(tensors: Tensors): void {
  for (const tensor of tensors.values()) tensor.dispose();
}

/** Whatever failed has nothing to release. */
function release({ tensors, packing, packed }: Entry): void {
  tensors.then(disposeAll, () => {});
  if (packed) packed[Symbol.dispose]();
  else
    packing?.then(
      (late) => late[Symbol.dispose](),
      () => {},
    );
}
