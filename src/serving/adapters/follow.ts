/** @file What other servers install, replace, remove and pin: memory here follows the rows. */
import type { AdapterRecord, AdapterTable } from "./record.ts";
import type { Residency } from "./residency.ts";

export interface FollowerParts {
  readonly table: Pick<AdapterTable, "digests" | "pinned">;
  readonly residency: Pick<Residency, "report" | "retire" | "pin">;
  /** Digests that stay whatever the rows say. */
  readonly preloaded: ReadonlySet<string>;
  /** Pins change one at a time. */
  enter(): Promise<Disposable>;
  /** Loads what is to stay. */
  keep(record: AdapterRecord): Promise<void>;
}

export class Follower {
  readonly #parts: FollowerParts;
  #running: Promise<void> | undefined;
  #again: Promise<void> | undefined;
  /** Digests of pinned rows that were seen: one that cannot be loaded is not tried at every change. */
  #seen: ReadonlySet<string> = new Set();

  constructor(parts: FollowerParts) {
    this.#parts = parts;
  }

  /** Resolves when memory is as the rows were after this call. However many ask at once, it is done twice at most. */
  follow(): Promise<void> {
    if (!this.#running) {
      this.#running = this.#follow().finally(() => {
        this.#running = undefined;
      });
      return this.#running;
    }
    this.#again ??= this.#running
      .catch(() => {})
      .then(() => {
        this.#again = undefined;
        return this.follow();
      });
    return this.#again;
  }

  async #follow(): Promise<void> {
    const { table, residency, preloaded, keep } = this.#parts;
    const missing: AdapterRecord[] = [];
    {
      using _place = await this.#parts.enter();
      const [digests, rows] = await Promise.all([table.digests(), table.pinned()]);
      const pinned = new Set(rows.map(({ digest }) => digest));
      const slots = residency.report();
      for (const { digest } of slots) {
        if (!digests.has(digest) && !preloaded.has(digest)) residency.retire(digest);
        else residency.pin(digest, pinned.has(digest) || preloaded.has(digest));
      }
      const resident = new Set(slots.filter((slot) => slot.resident).map(({ digest }) => digest));
      missing.push(...rows.filter(({ digest }) => !resident.has(digest) && !this.#seen.has(digest)));
      this.#seen = pinned;
    }
    for (const record of missing) await keep(record);
  }
}
