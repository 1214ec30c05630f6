/** @file The adapters of a batch's rows: what their graphs take is held from the first row of an adapter to the last. */
import type { Adapter, LoweredModule } from "../methods/index.ts";
import type { PreparedAdapter } from "./derived.ts";
import type { Lease } from "./graphs.ts";
import type { PackedAdapter } from "./packed-adapter.ts";
import type { Shared } from "./prefill.ts";

/** An adapter, or none, with what reading its prompts takes. */
export interface Resident extends Lease {
  /** Different for each that a batch has had. */
  readonly id: number;
  readonly adapter: Adapter | undefined;
  readonly prepared: PreparedAdapter;
  /** What it does in decoding, for rows of several adapters at once; undefined where its method cannot be put so. */
  readonly lowered: readonly LoweredModule[] | undefined;
  /** The same for milora's operators, where they are. */
  readonly packed: PackedAdapter | undefined;
}

/** Counts the rows of each adapter of a batch; one without rows is given back. */
export class Residents implements Disposable {
  readonly #shared: Shared;
  readonly #residents = new Map<Adapter | undefined, { readonly resident: Resident; uses: number }>();
  readonly #onLeave: (resident: Resident) => void;
  #made = 0;

  /** @param onLeave told of one whose last row has gone, before it is given back */
  constructor(shared: Shared, onLeave: (resident: Resident) => void) {
    this.#shared = shared;
    this.#onLeave = onLeave;
  }

  /** How many adapters have rows; the bare backbone counts as one. */
  get size(): number {
    return this.#residents.size;
  }

  /** Counts one use, to be given back with `leave`. Not to be called while another `enter` is under way. */
  async enter(adapter: Adapter | undefined): Promise<Resident> {
    let entry = this.#residents.get(adapter);
    if (!entry) {
      entry = { resident: await this.#make(adapter), uses: 0 };
      this.#residents.set(adapter, entry);
    }
    entry.uses++;
    return entry.resident;
  }

  /** Counts a further use of one that is in use. */
  stay({ adapter }: Resident): void {
    this.#residents.get(adapter)!.uses++;
  }

  leave(resident: Resident): void {
    const entry = this.#residents.get(resident.adapter);
    if (!entry || --entry.uses > 0) return;
    this.#residents.delete(resident.adapter);
    this.#onLeave(resident);
    resident[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    for (const { resident } of this.#residents.values()) resident[Symbol.dispose]();
    this.#residents.clear();
  }

  async #make(adapter: Adapter | undefined): Promise<Resident> {
    const { sessions, adapters } = this.#shared;
    const lease = await sessions.lease({ kind: "prefill", adapter });
    let prepared: PreparedAdapter | undefined;
    const close = (): void => {
      prepared?.[Symbol.dispose]();
      lease[Symbol.dispose]();
    };
    try {
      prepared = await adapters.prepare(adapter, lease.session);
      const lowered = lower(adapter, prepared);
      const packed = await prepared.packed(lowered);
      const { session, prefix } = lease;
      return { id: this.#made++, adapter, session, prefix, prepared, lowered, packed, [Symbol.dispose]: close };
    } catch (error) {
      close();
      throw error;
    }
  }
}

function lower(adapter: Adapter | undefined, prepared: PreparedAdapter): Resident["lowered"] {
  if (!adapter) return [];
  const { method, config, backbone } = adapter;
  return method.lower?.({
    config,
    backbone,
    values: (key) => adapter.values(key),
    derived: (name) => prepared.derived(name),
  });
}
