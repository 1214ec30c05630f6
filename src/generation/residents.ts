/** @file The adapters of a batch's rows: what their graphs take is held from the first row of an adapter to the last. */
import type { Adapter } from "../methods/index.ts";
import type { PreparedAdapter } from "./derived.ts";
import type { Shared } from "./shared.ts";

export interface Resident extends PreparedAdapter {
  /** Different for each that a batch has had. */
  readonly id: number;
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
    return { ...(await this.#shared.adapters.prepare(adapter)), id: this.#made++ };
  }
}
