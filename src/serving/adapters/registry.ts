/** @file The adapter registry: names in the database, files by content, tensors in memory while they are used. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { InputError, MiloraError, reasonOf, sum } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { readArchive } from "./archive.ts";
import { adapterDirectory, Draft, readDirectory, rememberUnchanged, signatureOf, sweep, touch } from "./files.ts";
import { Follower } from "./follow.ts";
import { InFlight } from "./in-flight.ts";
import { type RegistryLimits, registryLimitsSchema } from "./limits.ts";
import { corrupt, Gate, type InstalledOptions, loadInstalled, loadStrictly, PARALLEL_LOADS } from "./load.ts";
import { checkName, modelNotFound, parseModel } from "./names.ts";
import { type AdapterRecord, type AdapterTable, type NewAdapter, qualified } from "./record.ts";
import { Residency, type ResidencyStats, tooLarge } from "./residency.ts";
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

/** Names, files and tensors of adapters. Dispose it when no request runs any more. */
export class AdapterRegistry implements AsyncDisposable {
  readonly limits: RegistryLimits;
  readonly bases: readonly string[];
  readonly #root: string;
  readonly #table: AdapterTable;
  readonly #backbone: BackboneConfig;
  readonly #backboneDigest: string | undefined;
  readonly #log: RegistryLog | undefined;
  readonly #residency: Residency;
  readonly #loads = new Gate(PARALLEL_LOADS);
  /** What is installed is checked one at a time: it is in memory meanwhile. */
  readonly #checks = new Gate(1);
  /** Files become visible, and go, one at a time. */
  readonly #publishing = new Gate(1);
  readonly #inFlight = new InFlight();
  /** Pins follow the rows one at a time. */
  readonly #pinning = new Gate(1);
  /** Digests of what was to be preloaded: pinned while this process lives. */
  readonly #preloaded = new Set<string>();
  /** Digests of which the log has been told that they are another backbone's. */
  readonly #foreign = new Set<string>();
  /** Digests found damaged, with what their files looked like. */
  readonly #corrupt = new Map<string, string>();
  readonly #follower: Follower;
  #sweeper: NodeJS.Timeout | undefined;

  private constructor(options: RegistryOptions) {
    this.limits = registryLimitsSchema.parse(options.limits ?? {});
    this.bases = options.bases ?? [];
    this.#root = join(options.directory, "adapters");
    this.#table = options.adapters;
    this.#backbone = options.backbone;
    this.#backboneDigest = options.backboneDigest;
    this.#log = options.log;
    this.#residency = new Residency({
      maxBytes: this.limits.maxResidentBytes,
      maxAdapters: this.limits.maxResident,
      waitMs: this.limits.leaseTimeoutMs,
      load: async (digest, reserve, signal) => {
        const prepare = async (adapter: Adapter): Promise<void> => {
          options.engine?.identify?.(adapter, digest);
          try {
            await options.engine?.prepare?.(adapter);
          } catch (error) {
            options.engine?.forget(adapter);
            throw error;
          }
        };
        return this.#load(digest, { reserve, signal, prepare });
      },
      forget: (adapter) => options.engine?.forget(adapter),
    });
    this.#follower = new Follower({
      ...{ table: this.#table, residency: this.#residency, preloaded: this.#preloaded },
      enter: () => this.#pinning.enter(),
      keep: (record) => this.#keep(record),
    });
  }

  /**
   * Opens the adapters of a data directory: clears what a crash has left behind, then loads what is pinned or to be
   * preloaded. An adapter that cannot be loaded is reported to the log and keeps nobody from starting.
   */
  static async open(options: RegistryOptions): Promise<AdapterRegistry> {
    const registry = new AdapterRegistry(options);
    await mkdir(registry.#root, { recursive: true });
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
    await using draft = await Draft.create(this.#root, most);
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
  async lease(record: AdapterRecord, { signal }: { signal?: AbortSignal } = {}): Promise<AdapterLease> {
    this.#compareBackbone(record);
    const leave = this.#inFlight.enter(qualified(record));
    try {
      const { adapter, release } = await this.#residency.acquire(record.digest, signal);
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
    return this.#present(await this.#table.list(tenant), true);
  }

  /** What is in memory of one that a tenant may use. */
  presenceOf(record: AdapterRecord): AdapterRecord & Presence {
    return this.#present([record], true)[0]!;
  }

  /** All adapters of all tenants. */
  async all(): Promise<(AdapterRecord & Presence)[]> {
    return this.#present(await this.#table.all(), false);
  }

  /** What is in memory, by digest. */
  residency(): ReturnType<Residency["report"]> {
    return this.#residency.report();
  }

  get stats(): ResidencyStats {
    return this.#residency.stats;
  }

  /** To be called when other servers may have changed the rows: what is pinned is loaded, what is gone leaves memory. */
  follow(): Promise<void> {
    return this.#follower.follow();
  }

  /** Removes files that no name refers to, after the grace time, and what crashes have left behind. */
  async sweep(): Promise<string[]> {
    using _place = await this.#publishing.enter();
    await using _guard = await this.#table.guard?.();
    const removed = await sweep(this.#root, await this.#table.digests(), this.limits.graceMs, Date.now());
    for (const digest of removed) this.#residency.retire(digest);
    return removed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#sweeper);
    await this.#residency[Symbol.asyncDispose]();
    using _place = await this.#publishing.enter(); // an installation under way comes to its end
  }

  async #publish(
    draft: Draft,
    fields: NewAdapter,
  ): Promise<{ record: AdapterRecord; replaced: AdapterRecord | undefined }> {
    using _place = await this.#publishing.enter();
    await using _guard = await this.#table.guard?.();
    await draft.publish(this.#root);
    await rememberUnchanged(adapterDirectory(this.#root, fields.digest));
    this.#corrupt.delete(fields.digest);
    const replaced = await this.#table.put(fields);
    const record = await this.#table.get(fields.owner, fields.name);
    if (!record) throw modelNotFound(fields.name); // removed at once
    if (replaced && replaced.digest !== fields.digest) await this.#abandon(replaced);
    return { record, replaced };
  }

  /** The strict check of files that are new here. */
  async #check(
    directory: string,
  ): Promise<{ method: string; rank: number | null; parameters: number; tensors: number }> {
    using _place = await this.#checks.enter();
    const { maxResidentBytes } = this.limits;
    const reserve = (bytes: number): void => {
      if (bytes > maxResidentBytes) throw tooLarge(bytes, maxResidentBytes);
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

  async #load(digest: string, options: Pick<InstalledOptions, "reserve" | "signal" | "prepare">): Promise<Adapter> {
    const directory = adapterDirectory(this.#root, digest);
    const known = this.#corrupt.get(digest);
    if (known !== undefined) {
      if (known === signatureOf(directory)) throw corrupt(digest, "found at an earlier request");
      this.#corrupt.delete(digest);
    }
    try {
      return await loadInstalled(directory, this.#backbone, { ...options, gate: this.#loads, digest });
    } catch (error) {
      if (error instanceof MiloraError && error.code === "ADAPTER_CORRUPT") {
        this.#corrupt.set(digest, signatureOf(directory));
        this.#log?.warn({ digest }, error.message);
      }
      throw error;
    }
  }

  /** What no name refers to any more leaves memory with its last user, and the disk after the grace time. */
  async #abandon({ digest }: AdapterRecord): Promise<void> {
    await this.#settlePin(digest);
    if ((await this.#table.digests()).has(digest)) return;
    this.#residency.retire(digest);
    await touch(adapterDirectory(this.#root, digest));
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

  /** @param discreet says nothing of other names' use of the same files */
  #present(records: readonly AdapterRecord[], discreet: boolean): (AdapterRecord & Presence)[] {
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
        corrupt: this.#corrupt.has(record.digest),
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
