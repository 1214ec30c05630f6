/** @file Tensors that follow from an adapter and the frozen weights alone (DoRA's scales): computed once per adapter. */
import { ADAPTER_INPUT, type Adapter, DERIVED } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { type Binding, type Session, Tensor } from "../runtime/index.ts";
import type { SessionCache } from "./graphs.ts";
import type { Runner } from "./runner.ts";

type Tensors = ReadonlyMap<string, Tensor>;

interface Entry {
  readonly tensors: Promise<Tensors>;
  uses: number;
  /** To be released when the last user has gone. */
  forgotten: boolean;
}

/** An adapter with everything its graphs take. Its tensors stay at least until it is given back. */
export interface PreparedAdapter extends Disposable {
  readonly adapter: Adapter | undefined;
  /** The numbers of a derived tensor. */
  derived(name: string): Float32Array;
  /** Binds the adapter's tensors to the inputs that a session has for them. */
  bind(session: Session, binding: Binding): void;
}

/** Adapters whose derived tensors are kept while unused. */
const KEPT = 64;

export class AdapterCache implements Disposable {
  readonly #backbone: Backbone;
  readonly #sessions: SessionCache;
  readonly #runner: Runner;
  /** Least recently used first. */
  readonly #entries = new Map<Adapter, Entry>();

  constructor(backbone: Backbone, sessions: SessionCache, runner: Runner) {
    this.#backbone = backbone;
    this.#sessions = sessions;
    this.#runner = runner;
  }

  /** @param session any session of the adapter: it shows whether there is something to derive */
  async prepare(adapter: Adapter | undefined, session: Session): Promise<PreparedAdapter> {
    const derives = session.inputs.some(({ name }) => name.startsWith(DERIVED));
    const entry = adapter && derives ? this.#enter(adapter) : undefined;
    let returned = false;
    const giveBack = (): void => {
      if (returned || !entry) return;
      returned = true;
      entry.uses--;
      if (entry.forgotten && entry.uses === 0) entry.tensors.then(release, () => {});
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
    if (entry.uses === 0) entry.tensors.then(release, () => {});
  }

  /** Only when nothing is in use. */
  [Symbol.dispose](): void {
    for (const { tensors } of this.#entries.values()) tensors.then(release, () => {});
    this.#entries.clear();
  }

  #enter(adapter: Adapter): Entry {
    let entry = this.#entries.get(adapter);
    if (entry) {
      this.#entries.delete(adapter); // to be put at the end again
    } else {
      this.#evict();
      entry = { tensors: this.#derive(adapter), uses: 0, forgotten: false };
    }
    this.#entries.set(adapter, entry);
    entry.uses++;
    return entry;
  }

  #evict(): void {
    for (const [adapter, { tensors, uses }] of this.#entries) {
      const gone = [...adapter.tensors.values()].some((tensor) => tensor.disposed);
      if (uses > 0 || (!gone && this.#entries.size < KEPT)) continue;
      this.#entries.delete(adapter);
      tensors.then(release, () => {});
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
      release(tensors);
      throw error;
    }
    return tensors;
  }
}

function release(tensors: Tensors): void {
  for (const tensor of tensors.values()) tensor.dispose();
}
