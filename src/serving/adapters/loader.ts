/** @file Brings installed adapters from where their files are into memory, and remembers which are damaged. */
import { MiloraError } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { corrupt, type Gate, type InstalledOptions, loadInstalled } from "./load.ts";
import type { AdapterStorage, HeldFiles } from "./storage/storage.ts";
import type { RegistryLog } from "./types.ts";

export class Loader {
  readonly #storage: AdapterStorage;
  readonly #backbone: BackboneConfig;
  readonly #gate: Gate;
  readonly #log: RegistryLog | undefined;
  /** Digests found damaged, with what their files looked like. */
  readonly #damaged = new Map<string, string | undefined>();
  /** An adapter in memory may read its files again. */
  readonly #held = new Map<Adapter, HeldFiles>();

  constructor(storage: AdapterStorage, backbone: BackboneConfig, gate: Gate, log: RegistryLog | undefined) {
    this.#storage = storage;
    this.#backbone = backbone;
    this.#gate = gate;
    this.#log = log;
  }

  isDamaged(digest: string): boolean {
    return this.#damaged.has(digest);
  }

  /** Its files were installed anew. */
  forget(digest: string): void {
    this.#damaged.delete(digest);
  }

  /** To be called when an adapter leaves memory. */
  release(adapter: Adapter): void {
    this.#held.get(adapter)?.[Symbol.dispose]();
    this.#held.delete(adapter);
  }

  /** @throws as `loadInstalled`, and as the storage's `hold` */
  async load(digest: string, options: Omit<InstalledOptions, "digest" | "gate">): Promise<Adapter> {
    const signature = this.#storage.signature(digest);
    if (signature !== undefined && this.#damaged.get(digest) === signature) {
      throw corrupt(digest, "found at an earlier request");
    }
    try {
      const adapter = await this.#loadHeld(digest, options);
      this.#damaged.delete(digest);
      return adapter;
    } catch (error) {
      if (isDamage(error)) {
        this.#damaged.set(digest, this.#storage.signature(digest));
        this.#log?.warn({ digest }, error.message);
      }
      throw error;
    }
  }

  /** Copies that were damaged on this machine are fetched once more. */
  async #loadHeld(digest: string, options: Omit<InstalledOptions, "digest" | "gate">): Promise<Adapter> {
    for (let again = true; ; again = false) {
      const held = await this.#storage.hold(digest, options.signal);
      try {
        const adapter = await loadInstalled(held.directory, this.#backbone, { ...options, gate: this.#gate, digest });
        this.#held.set(adapter, held);
        return adapter;
      } catch (error) {
        held[Symbol.dispose]();
        if (!isDamage(error) || !again || !(await this.#storage.renew(digest))) throw error;
        this.#log?.warn({ digest }, "files of an adapter were damaged on this machine; they are fetched again");
      }
    }
  }
}

function isDamage(error: unknown): error is MiloraError {
  return error instanceof MiloraError && error.code === "ADAPTER_CORRUPT";
}
