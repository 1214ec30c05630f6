/** @file Files of adapters as objects of an S3-compatible store, with copies on this machine of those that are used here. */
import { setImmediate } from "node:timers/promises";
import { InputError, type MiloraError } from "../../../base/index.ts";
import { ServingError } from "../../errors.ts";
import { ADAPTER_FILES, type AdapterFile } from "../archive.ts";
import { Draft } from "../files.ts";
import { corrupt, Gate } from "../load.ts";
import type { RegistryLog } from "../types.ts";
import { type Bucket, BucketError } from "./bucket.ts";
import { FileCache } from "./cache.ts";
import type { AdapterStorage, CacheStats, HeldFiles, SweepOptions } from "./storage.ts";

/** Adapters that are fetched at the same time. */
const PARALLEL_FETCHES = 4;
/** Of one adapter, when the connection breaks within a file. */
const FETCH_ATTEMPTS = 3;
/** Damaged objects are not fetched again for each request. */
const REMEMBER_DAMAGED_MS = 5000;
const RETRY_SECONDS = 2;
/** Adapters whose objects are removed at a time, while nobody can install any. */
const MOST_REMOVED = 50;
/** `DIGEST/FILE` below the prefix. */
const KEY = /([0-9a-f]{64})\/([a-z_]+\.[a-z]+)$/;

interface Fetch {
  readonly done: Promise<void>;
  readonly abort: AbortController;
  waiting: number;
}

export class ObjectStorage implements AdapterStorage {
  readonly name: string;
  readonly #bucket: Bucket;
  readonly #cache: FileCache;
  readonly #fetches = new Map<string, Fetch>();
  readonly #gate = new Gate(PARALLEL_FETCHES);
  readonly #damaged = new Map<string, { readonly error: MiloraError; readonly until: number }>();
  /** Since when nothing was seen to refer to a digest, by this process's clock. */
  readonly #unnamed = new Map<string, number>();
  readonly #end = new AbortController();
  #sweeping: Promise<void> | undefined;
  #log: RegistryLog | undefined;
  #fetched = 0;
  #failures = 0;

  /**
   * @param name as people know the store
   * @param cache a directory that no other process uses, and how many bytes of files are kept there
   */
  constructor(name: string, bucket: Bucket, cache: { readonly directory: string; readonly maxBytes: number }) {
    this.name = name;
    this.#bucket = bucket;
    this.#cache = new FileCache(cache.directory, cache.maxBytes);
  }

  get cache(): CacheStats {
    return { ...this.#cache.stats, fetches: this.#fetched, failures: this.#failures };
  }

  /** A store that does not answer keeps nobody from starting: what is in the cache can be served. */
  async open(log?: RegistryLog): Promise<void> {
    this.#log = log;
    await this.#cache.open();
    try {
      for await (const _ of this.#bucket.list("", { most: 1 }));
    } catch (error) {
      if (!(error instanceof BucketError)) throw error;
      if (error.kind !== "away") {
        const problem = `refuses (${error.message}); check its name, AWS_ENDPOINT_URL, AWS_REGION and the key in AWS_ACCESS_KEY_ID`;
        throw new InputError("ADAPTER_STORE_REFUSED", this.name, problem, { cause: error });
      }
      this.#log?.warn({ store: this.name, reason: error.message }, "the adapter store does not answer");
    }
  }

  draft(maxBytes: number): Promise<Draft> {
    return Draft.create(this.#cache.root, Math.min(maxBytes, this.#cache.maxBytes));
  }

  async upload({ digest, files }: Draft): Promise<void> {
    await this.#reach("nothing was installed", async () => {
      for (const { file, path, bytes, sha256 } of files) {
        await this.#bucket.put(`${digest}/${file}`, path, bytes, sha256);
      }
    });
  }

  async publish(draft: Draft): Promise<boolean> {
    const { digest, files } = draft;
    const found = await this.#reach("nothing was installed", () =>
      Promise.all(files.map(({ file }) => this.#bucket.look(`${digest}/${file}`))),
    );
    if (files.some(({ bytes }, i) => found[i]?.bytes !== bytes)) return false;
    this.#unnamed.delete(digest);
    this.#damaged.delete(digest);
    using _held = await this.#cache.add(draft);
    return true;
  }

  async hold(digest: string, signal?: AbortSignal): Promise<HeldFiles> {
    for (;;) {
      const held = this.#cache.take(digest);
      if (held) return held;
      signal?.throwIfAborted();
      await this.#join(digest, signal);
    }
  }

  signature(): undefined {
    return undefined;
  }

  async renew(digest: string): Promise<boolean> {
    this.#cache.remove(digest);
    return true;
  }

  /** Its objects are noticed by `sweep`. */
  async abandon(): Promise<void> {}

  async sweep({ digests, guard, graceMs }: SweepOptions): Promise<string[]> {
    const removed = await this.#cache.sweep(await digests(), graceMs);
    // Whoever asks while one is under way, which may take long, waits for that.
    this.#sweeping ??= this.#sweepObjects({ digests, guard, graceMs }).finally(() => {
      this.#sweeping = undefined;
    });
    try {
      await this.#sweeping;
    } catch (error) {
      if (this.#end.signal.aborted) return removed;
      if (!(error instanceof BucketError)) throw error;
      this.#log?.warn({ store: this.name, reason: error.message }, "unused objects could not be looked for");
    }
    return removed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#end.abort(new Error("the server is being closed"));
    await this.#sweeping?.catch(() => {});
    for (const { abort } of this.#fetches.values()) abort.abort(new Error("the server is being closed"));
    await Promise.allSettled([...this.#fetches.values()].map(({ done }) => done));
    await this.#cache.close();
  }

  /** Waits for the files to be in the cache. All who ask for them share one fetch, which ends with the last of them. */
  async #join(digest: string, signal: AbortSignal | undefined): Promise<void> {
    let fetch = this.#fetches.get(digest);
    if (!fetch) {
      const abort = new AbortController();
      const done = this.#fetch(digest, abort.signal).finally(() => {
        if (this.#fetches.get(digest)?.abort === abort) this.#fetches.delete(digest);
      });
      done.catch(() => {}); // who waits hears of it
      fetch = { done, abort, waiting: 0 };
      this.#fetches.set(digest, fetch);
    }
    const { done, abort } = fetch;
    fetch.waiting++;
    let leave = (): void => {};
    const left = new Promise<never>((_, reject) => {
      leave = () => reject(signal?.reason);
    });
    signal?.addEventListener("abort", leave, { once: true });
    try {
      await (signal ? Promise.race([done, left]) : done);
    } finally {
      signal?.removeEventListener("abort", leave);
      if (--fetch.waiting === 0 && this.#fetches.get(digest) === fetch) {
        this.#fetches.delete(digest);
        abort.abort(new Error("nobody waits for these files any more"));
      }
    }
  }

  async #fetch(digest: string, signal: AbortSignal): Promise<void> {
    using _place = await this.#gate.enter();
    signal.throwIfAborted();
    const known = this.#damaged.get(digest);
    if (known && known.until > performance.now()) throw known.error;
    this.#damaged.delete(digest);
    this.#fetched++;
    try {
      const held = await this.#reach("try again", () => this.#fetchPatiently(digest, signal));
      void setImmediate().then(() => held[Symbol.dispose]()); // who waits has taken it by then
    } catch (error) {
      if (!signal.aborted) this.#failures++;
      throw error;
    }
  }

  async #fetchPatiently(digest: string, signal: AbortSignal): Promise<HeldFiles> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#fetchOnce(digest, signal);
      } catch (error) {
        signal.throwIfAborted();
        if (error instanceof BucketError && error.kind === "missing") throw this.#damage(digest, "a file is missing");
        const broken = error instanceof BucketError && error.kind === "broken";
        if (!broken || attempt === FETCH_ATTEMPTS) throw error;
      }
    }
  }

  async #fetchOnce(digest: string, signal: AbortSignal): Promise<HeldFiles> {
    const { maxBytes } = this.#cache;
    await using draft = await Draft.create(this.#cache.root, maxBytes);
    for (const file of ADAPTER_FILES) {
      const { bytes, content } = await this.#bucket.get(`${digest}/${file}`, signal);
      // What says that it is larger than all of the cache would empty it for nothing.
      if (draft.bytes + bytes <= maxBytes) this.#cache.makeRoom(draft.bytes + bytes);
      try {
        await draft.receive(file, content);
      } catch (error) {
        if (error instanceof InputError && error.code === "PAYLOAD_TOO_LARGE")
          throw this.#damage(digest, error.message);
        throw error;
      }
    }
    if (draft.digest !== digest) throw this.#damage(digest, "what the adapter store has is not what was installed");
    return await this.#cache.add(draft); // the draft is disposed after it
  }

  #damage(digest: string, reason: string): MiloraError {
    const error = corrupt(digest, reason);
    this.#damaged.set(digest, { error, until: performance.now() + REMEMBER_DAMAGED_MS });
    return error;
  }

  /** @param otherwise what it means for who asked @throws ServingError ADAPTER_STORE_UNREACHABLE */
  async #reach<T>(otherwise: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof BucketError)) throw error;
      this.#log?.warn({ store: this.name, reason: error.message }, "the adapter store cannot be used");
      const message = `the store of adapters cannot be used at the moment; ${otherwise}, adapters that are on this server are still served`;
      throw new ServingError("ADAPTER_STORE_UNREACHABLE", 503, message, {
        cause: error,
        retryAfterSeconds: RETRY_SECONDS,
      });
    }
  }

  /**
   * Removes objects that nothing has referred to for the grace time, as this process has seen it, and that are not just
   * being uploaded. They are looked at again while nobody can name them.
   */
  async #sweepObjects({ digests, guard, graceMs }: SweepOptions): Promise<void> {
    const files = new Map<string, AdapterFile[]>();
    const fresh = new Set<string>();
    for await (const { now, found } of this.#bucket.list("", { signal: this.#end.signal })) {
      for (const { key, modified } of found) {
        const [, digest, file] = KEY.exec(key) ?? [];
        if (digest === undefined || !ADAPTER_FILES.includes(file as AdapterFile)) continue; // not ours
        files.set(digest, [...(files.get(digest) ?? []), file as AdapterFile]);
        if (now - modified < graceMs) fresh.add(digest);
      }
    }
    const used = await digests();
    for (const digest of this.#unnamed.keys()) if (used.has(digest) || !files.has(digest)) this.#unnamed.delete(digest);
    const due: string[] = [];
    for (const digest of files.keys()) {
      if (used.has(digest)) continue;
      const since = this.#unnamed.get(digest) ?? Date.now();
      this.#unnamed.set(digest, since);
      if (Date.now() - since >= graceMs && !fresh.has(digest)) due.push(digest);
    }
    if (due.length === 0) return;
    due.splice(MOST_REMOVED); // others wait meanwhile
    await using _guard = await guard();
    const now = await digests();
    for (const digest of due) {
      if (now.has(digest)) continue;
      for (const file of files.get(digest)!) await this.#bucket.delete(`${digest}/${file}`, this.#end.signal);
      this.#unnamed.delete(digest);
      this.#log?.info({ digest }, "an adapter that nothing refers to was removed from the store");
    }
  }
}
