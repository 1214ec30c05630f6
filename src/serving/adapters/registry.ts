/** @file The adapter registry: names in the database, files by content, tensors in memory while they are used. */
import { InputError, MiloraError, reasonOf, sum } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { readArchive } from "./archive.ts";
import { type Draft, readDirectory } from "./files.ts";
import { Follower } from "./follow.ts";
import { InFlight } from "./in-flight.ts";
import { type RegistryLimits, registryLimitsSchema } from "./limits.ts";
import { Gate, loadStrictly, PARALLEL_LOADS } from "./load.ts";
import { Loader } from "./loader.ts";
import { exceedsMemory } from "./memory-errors.ts";
import { checkName, modelNotFound, parseModel } from "./names.ts";
import { type AdapterRecord, type AdapterTable, type NewAdapter, qualified } from "./record.ts";
import { Residency, type ResidencyStats, type Wish } from "./residency.ts";
import { Sole } from "./sole.ts";
import type { AdapterStorage, CacheStats } from "./storage/storage.ts";
import type {
  AdapterLease,
  AdapterSource,
  AdapterUser,
  Installed,
  InstallOptions,
  Presence,
  RegistryLog,
  RegistryOptions,
} from "./types.ts";

/** What was uploaded may be removed as unused before it has a name; hardly ever again. */
const UPLOADS = 3;

/** Names, files and tensors of adapters. Dispose it when no request runs any more. */
export class AdapterRegistry implements AsyncDisposable {
  readonly limits: RegistryLimits;
  readonly bases: readonly string[];
  readonly #storage: AdapterStorage;
  readonly #table: AdapterTable;
  readonly #backbone: BackboneConfig;
  readonly #backboneDigest: string | undefined;
  readonly #log: RegistryLog | undefined;
  readonly #residency: Residency;
  readonly #loads = new Gate(PARALLEL_LOADS);
  readonly #loader: Loader;
  /** What is installed is checked one at a time: it is in memory meanwhile. */
  readonly #checks = new Gate(1);
  /** Files become visible, and go, one at a time. */
  readonly #sole: Sole;
  readonly #inFlight = new InFlight();
  /** Pins follow the rows one at a time. */
  readonly #pinning = new Gate(1);
  /** Digests of what was to be preloaded: pinned while this process lives. */
  readonly #preloaded = new Set<string>();
  /** Digests of which the log has been told that they are another backbone's. */
  readonly #foreign = new Set<string>();
  readonly #follower: Follower;
  #sweeper: NodeJS.Timeout | undefined;

  private constructor(options: RegistryOptions) {
    this.limits = registryLimitsSchema.parse(options.limits ?? {});
    this.bases = options.bases ?? [];
    this.#storage = options.storage;
    this.#table = options.adapters;
    this.#sole = new Sole(options.adapters);
    this.#backbone = options.backbone;
    this.#backboneDigest = options.backboneDigest;
    this.#log = options.log;
    this.#loader = new Loader(options.storage, options.backbone, this.#loads, options.log);
    this.#residency = new Residency({
      maxBytes: this.limits.maxResidentBytes,
      maxAdapters: this.limits.maxResident,
      waitMs: this.limits.leaseTimeoutMs,
      load: async (digest, { reserve, settle }, signal, claim) => {
        const prepare = async (adapter: Adapter): Promise<void> => {
          options.engine?.identify?.(adapter, digest);
          try {
            const made = await options.engine?.prepare?.(adapter);
            if (made !== undefined) settle(made + adapter.heldBytes);
          } catch (error) {
            options.engine?.forget(adapter);
            throw error;
          }
        };
        return this.#loader.load(digest, { reserve, signal, claim, prepare });
      },
      forget: (adapter) => {
        options.engine?.forget(adapter);
        this.#loader.release(adapter);
      },
    });
    this.#follower = new Follower({
      ...{ table: this.#table, residency: this.#residency, preloaded: this.#preloaded },
      enter: () => this.#pinning.enter(),
      keep: (record) => this.#keep(record),
    });
  }

  /**
   * Opens the adapters of a storage, which goes with the registry: clears what a crash has left behind, then loads what is pinned or to be
   * preloaded. An adapter that cannot be loaded is reported to the log and keeps nobody from starting.
   */
  static async open(options: RegistryOptions): Promise<AdapterRegistry> {
    const registry = new AdapterRegistry(options);
    await options.storage.open(options.log);
    await registry.sweep();
    const { graceMs } = registry.limits;
    registry.#sweeper = setInterval(() => void registry.sweep().catch(() => {}), Math.max(graceMs, 1000)).unref();
    if (options.load !== false) await registry.#preload(options.preload ?? []);
    return registry;
  }

  /**
   * Installs an adapter under a name, or replaces the one of that name; requests under way go on with the old one. A
   * crash at any point leaves either nothing to be seen or all of it.
   *
   * @throws InputError ADAPTER_NAME_INVALID, ARCHIVE_INVALID, PAYLOAD_TOO_LARGE, ADAPTER_TOO_LARGE, and what
   *   `Adapter.load` throws for files that are no adapter of this backbone
   */
  async install(source: AdapterSource, { owner, name, maxBytes }: InstallOptions): Promise<Installed> {
    checkName(name, this.bases);
    const most = Math.min(maxBytes ?? Number.POSITIVE_INFINITY, this.limits.maxBytes);
    await using draft = await this.#storage.draft(most);
    let skipped: string[] = [];
    if ("archive" in source) skipped = await readArchive(source.archive, most, draft.receive);
    else await readDirectory(source.directory, draft.receive, source.within);
    const facts = await this.#check(draft.directory);
    const { digest, bytes } = draft;
    const { record, replaced } = await this.#publish(draft, {
      ...{ owner, name, digest, bytes, method: facts.method, rank: facts.rank },
      ...(this.#backboneDigest !== undefined && { backbone: this.#backboneDigest }),
    });
    if (record.pinned) await this.#keep(record);
    const { parameters, tensors } = facts;
    return { ...record, parameters, tensors, skipped, ...(replaced && { replaced: replaced.digest }) };
  }

  /**
   * Takes a name away and waits for the requests under it. They end in peace, however long that takes.
   * @returns the record and how many requests still ran when the time was up
   * @throws InputError MODEL_NOT_FOUND
   */
  async remove(
    owner: string | null,
    name: string,
    { timeoutMs = this.limits.removeTimeoutMs }: { timeoutMs?: number } = {},
  ): Promise<{ record: AdapterRecord; inFlight: number }> {
    const record = await this.#table.remove(owner, name);
    if (!record) throw modelNotFound(name);
    const inFlight = await this.#inFlight.ended(qualified(record), timeoutMs);
    await this.#abandon(record);
    return { record, inFlight };
  }

  /**
   * What a `model` stands for, for this tenant: `name` (its own, else the shared one), `owner/name` (granted to it), with
   * or without `base:` before it; undefined for the bare backbone. Administrators, who may remove any adapter and make keys
   * of its owner, reach every `owner/name`.
   * @throws InputError MODEL_NOT_FOUND, the same for what does not exist and what is somebody else's
   */
  async resolve({ tenant, role }: AdapterUser, model: string): Promise<AdapterRecord | undefined> {
    const parsed = parseModel(model, this.bases);
    if (parsed.kind === "base") return undefined;
    const find = (name: string, owner?: string): Promise<AdapterRecord | undefined> =>
      role === "admin" && owner !== undefined ? this.#table.get(owner, name) : this.#table.find(tenant, name, owner);
    const record = parsed.kind === "adapter" && (await find(parsed.name, parsed.owner));
    if (!record) throw modelNotFound(model);
    return record;
  }

  /**
   * The adapter of a record, loaded if need be. What the record says now is what stays: a later adapter of its name
   * changes nothing.
   *
   * @throws MiloraError ADAPTER_CORRUPT, AdaptersBusyError, InputError MODEL_NOT_FOUND when it was removed meanwhile,
   *   ADAPTER_MISMATCH … for an adapter of another backbone
   */
  async lease(record: AdapterRecord, wish: Wish = {}): Promise<AdapterLease> {
    this.#compareBackbone(record);
    const leave = this.#inFlight.enter(qualified(record));
    try {
      const { adapter, release } = await this.#residency.acquire(record.digest, wish);
      const dispose = (): void => {
        release();
        leave();
      };
      return { adapter, record, [Symbol.dispose]: dispose };
    } catch (error) {
      leave();
      if (error instanceof MiloraError && error.code === "ADAPTER_CORRUPT") {
        const now = await this.#table.get(record.owner, record.name);
        if (now?.digest !== record.digest) throw modelNotFound(record.name);
      }
      throw error;
    }
  }

  /** Brings an adapter into memory before a request asks for it. @throws as `lease` */
  async load(record: AdapterRecord): Promise<void> {
    const lease = await this.lease(record);
    lease[Symbol.dispose]();
  }

  /**
   * Takes an adapter out of memory once the requests that use it have ended; the next request loads it again.
   * @returns how many requests still ran when the time was up
   * @throws InputError ADAPTER_PINNED
   */
  async unload(record: AdapterRecord, { timeoutMs = this.limits.removeTimeoutMs } = {}): Promise<{ inFlight: number }> {
    const slot = this.#residency.report().find(({ digest }) => digest === record.digest);
    if (slot?.pinned) throw pinned(record, this.#preloaded.has(record.digest));
    this.#residency.retire(record.digest);
    return { inFlight: await this.#inFlight.ended(qualified(record), timeoutMs) };
  }

  /** Loads an adapter and keeps it in memory, also after a restart. @throws as `lease` */
  async pin(record: AdapterRecord): Promise<void> {
    using _lease = await this.lease(record);
    await this.#table.setPinned(record.owner, record.name, true);
    await this.#settlePin(record.digest);
    const now = await this.#table.get(record.owner, record.name);
    if (now && now.digest !== record.digest) await this.#keep(now); // replaced meanwhile
  }

  async unpin(record: AdapterRecord): Promise<void> {
    await this.#table.setPinned(record.owner, record.name, false);
    await this.#settlePin(record.digest);
  }

  /** All that a tenant may use. */
  async list({ tenant }: { readonly tenant: string }): Promise<(AdapterRecord & Presence)[]> {
    return this.present(await this.#table.list(tenant), true);
  }

  /** What is in memory of one that a tenant may use. */
  presenceOf(record: AdapterRecord): AdapterRecord & Presence {
    return this.present([record], true)[0]!;
  }

  /** All adapters of all tenants. */
  async all(): Promise<(AdapterRecord & Presence)[]> {
    return this.present(await this.#table.all(), false);
  }

  /** What is in memory, by digest. */
  residency(): ReturnType<Residency["report"]> {
    return this.#residency.report();
  }

  get stats(): ResidencyStats {
    return this.#residency.stats;
  }

  /** Files that are copied to this machine; undefined where they are used in place. */
  get cache(): CacheStats | undefined {
    return this.#storage.cache;
  }

  /** To be called when other servers may have changed the rows: what is pinned is loaded, what is gone leaves memory. */
  follow(): Promise<void> {
    return this.#follower.follow();
  }

  /** Removes files that no name refers to, after the grace time, and what crashes have left behind. */
  async sweep(): Promise<string[]> {
    const digests = () => this.#table.digests();
    const removed = await this.#storage.sweep({
      ...{ digests, guard: () => this.#sole.enter(), graceMs: this.limits.graceMs },
    });
    for (const digest of removed) this.#residency.retire(digest);
    return removed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#sweeper);
    await this.#residency[Symbol.asyncDispose]();
    await this.#sole.settled(); // an installation under way comes to its end
    await this.#storage[Symbol.asyncDispose]();
  }

  async #publish(
    draft: Draft,
    fields: NewAdapter,
  ): Promise<{ record: AdapterRecord; replaced: AdapterRecord | undefined }> {
    for (let attempt = 1; ; attempt++) {
      await this.#storage.upload(draft);
      await using _guard = await this.#sole.enter();
      if (!(await this.#storage.publish(draft))) {
        if (attempt < UPLOADS) continue;
        throw new Error(`what was uploaded to ${this.#storage.name} is not there`);
      }
      this.#loader.forget(fields.digest);
      const replaced = await this.#table.put(fields);
      const record = await this.#table.get(fields.owner, fields.name);
      if (!record) throw modelNotFound(fields.name); // removed at once
      if (replaced && replaced.digest !== fields.digest) await this.#abandon(replaced);
      return { record, replaced };
    }
  }

  /** The strict check of files that are new here. */
  async #check(
    directory: string,
  ): Promise<{ method: string; rank: number | null; parameters: number; tensors: number }> {
    using _place = await this.#checks.enter();
    const { maxResidentBytes } = this.limits;
    const reserve = (bytes: number): void => {
      if (bytes > maxResidentBytes) throw exceedsMemory(bytes, maxResidentBytes);
    };
    using adapter = await loadStrictly(directory, this.#backbone, { reserve, gate: this.#loads });
    const { method, specs, config } = adapter;
    const parameters = sum(specs.map(({ shape }) => shape.reduce((a, b) => a * b, 1)));
    const rank = (config as { readonly r?: unknown }).r;
    return {
      ...{ method: method.name, rank: typeof rank === "number" ? rank : null },
      ...{ parameters, tensors: specs.length },
    };
  }

  /** What no name refers to any more leaves memory with its last user, and the disk after the grace time. */
  async #abandon({ digest }: AdapterRecord): Promise<void> {
    await this.#settlePin(digest);
    if ((await this.#table.digests()).has(digest)) return;
    this.#residency.retire(digest);
    await this.#storage.abandon(digest);
  }

  /** Pins what some row says is pinned, and nothing else. One at a time: the last one has seen all rows. */
  async #settlePin(digest: string): Promise<void> {
    using _place = await this.#pinning.enter();
    const pinned = this.#preloaded.has(digest) || (await this.#table.pinned()).some((row) => row.digest === digest);
    this.#residency.pin(digest, pinned);
  }

  /** Loads what is to stay; that it cannot be loaded is no failure of what led to it. */
  async #keep(record: AdapterRecord): Promise<void> {
    try {
      using _lease = await this.lease(record);
      await this.#settlePin(record.digest);
    } catch (error) {
      this.#log?.warn({ adapter: qualified(record), reason: reasonOf(error) }, "an adapter cannot be loaded");
    }
  }

  async #preload(names: readonly string[]): Promise<void> {
    const all = await this.#table.all();
    for (const name of names) {
      if (!all.some((record) => qualified(record) === name)) {
        this.#log?.warn({ adapter: name }, "an adapter to be preloaded is not installed");
      }
    }
    for (const record of all) {
      const asked = names.includes(qualified(record));
      if (asked) this.#preloaded.add(record.digest);
      if (asked || record.pinned) await this.#keep(record);
    }
  }

  #compareBackbone({ owner, name, digest, backbone }: AdapterRecord): void {
    if (!backbone || !this.#backboneDigest || backbone === this.#backboneDigest || this.#foreign.has(digest)) return;
    this.#foreign.add(digest);
    const adapter = qualified({ owner, name });
    this.#log?.warn(
      { adapter, backbone },
      "an adapter was installed for another backbone; its answers may be nonsense",
    );
  }

  /** Rows with what is in memory of them. @param discreet says nothing of other names' use of the same files */
  present(records: readonly AdapterRecord[], discreet: boolean): (AdapterRecord & Presence)[] {
    const slots = new Map(this.#residency.report().map((slot) => [slot.digest, slot]));
    return records.map((record) => {
      const name = qualified(record);
      const lastUsed = this.#inFlight.lastUsed(name);
      const slot = discreet && lastUsed === undefined && !record.pinned ? undefined : slots.get(record.digest);
      return {
        ...record,
        resident: slot?.resident ?? false,
        residentBytes: slot?.resident ? slot.bytes : 0,
        inFlight: this.#inFlight.count(name),
        lastUsed: lastUsed ?? null,
        corrupt: this.#loader.isDamaged(record.digest),
      };
    });
  }
}

function pinned(record: AdapterRecord, preloaded: boolean): InputError {
  const why = record.pinned
    ? "is pinned; unpin it first"
    : preloaded
      ? "is kept in memory by the server's setting `preload`"
      : "has the same files as one that is pinned; unpin that one first";
  return new InputError("ADAPTER_PINNED", `the adapter '${qualified(record)}'`, why);
}
