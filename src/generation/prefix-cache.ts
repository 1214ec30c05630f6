/** @file What was read of prompts, kept for others that begin alike: keys and values by content, never by a name. */
import { createHash } from "node:crypto";
import type { Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import type { Tensor } from "../runtime/index.ts";
import type { KvCache } from "./cache.ts";

/** Tokens of a block, the unit that is kept and found. */
export const BLOCK = 32;

export interface PrefixCacheOptions {
  /** Most bytes of keys and values that are kept; the least recently used go. */
  readonly bytes: number;
}

/** What a prefix cache has done and holds. */
export interface PrefixCacheStats {
  /** Prompts of which something was there, and those of which nothing was. */
  readonly hits: number;
  readonly misses: number;
  /** Tokens that were not read again. */
  readonly tokens: number;
  readonly entries: number;
  readonly bytes: number;
  readonly evictions: number;
}

/** A prompt by what its keys and values depend on. */
export interface PromptIdentity {
  readonly adapter?: Adapter | undefined;
  /** Who may share what was read: only those who give the same, or none. */
  readonly scope?: string | undefined;
  readonly tokens: readonly number[];
}

/** A prompt in a row of a KV cache. */
export interface CachedPrompt extends PromptIdentity {
  /** Places of the method's attention prefix, which stand before the tokens. */
  readonly prefix: number;
}

/** What a pass over a whole prompt returned besides keys and values. */
export interface ReadPrompt {
  readonly hidden: Float32Array; // [d], of the last token
  /** The method's state and reports, by the names of the graph's outputs: float32 [1, layers, …] each. */
  readonly outputs: ReadonlyMap<string, { readonly shape: readonly number[]; readonly data: Float32Array }>;
}

interface Entry {
  /** Outside of JavaScript, so that it goes at once, and searches for garbage are not for it. */
  readonly values: Tensor;
  readonly read: ReadPrompt | undefined;
  readonly bytes: number;
}

/**
 * Keys and values of prompts in memory, up to a number of bytes. Of a method that is `causal` blocks of tokens are kept,
 * each under a hash of itself and all before it; of others whole prompts, since every part of them depends on all.
 * Copying is done within a call, so that nothing goes while it is in use.
 */
export class PrefixCache implements Disposable {
  readonly #limit: number;
  readonly #backbone: string;
  /** Least recently used first. */
  readonly #entries = new Map<string, Entry>();
  #digests = new WeakMap<Adapter, string>();
  #bytes = 0;
  #hits = 0;
  #misses = 0;
  #tokens = 0;
  #evictions = 0;

  constructor({ digest, weights }: Pick<Backbone, "digest" | "weights">, { bytes }: PrefixCacheOptions) {
    this.#backbone = JSON.stringify([digest, weights]);
    this.#limit = bytes;
  }

  get stats(): PrefixCacheStats {
    return {
      hits: this.#hits,
      misses: this.#misses,
      tokens: this.#tokens,
      entries: this.#entries.size,
      bytes: this.#bytes,
      evictions: this.#evictions,
    };
  }

  /** Keys of all entries, the least recently used first; for tests. */
  get keys(): string[] {
    return [...this.#entries.keys()];
  }

  /** How many of a prompt's first tokens are there: as many as `restore` would spare. */
  known(query: PromptIdentity): number {
    if (isCausal(query)) return this.#chain(query).length * BLOCK;
    return this.#entries.has(this.#whole(query)) ? query.tokens.length : 0;
  }

  /**
   * Whether a prompt is better read by itself than with others: because much of it is known, or because much of `next`
   * will be then.
   */
  standsApart(prompt: PromptIdentity, next: PromptIdentity | undefined): boolean {
    if (pays(this.known(prompt), prompt)) return true;
    if (next === undefined || next.adapter !== prompt.adapter || next.scope !== prompt.scope) return false;
    return pays(sharedTokens(prompt, next), next);
  }

  /**
   * Copies the longest known beginning of a prompt of a causal method into a row: at most `most` tokens.
   * @returns how many tokens need not be read
   */
  restore(query: CachedPrompt, most: number, cache: KvCache, row: number): number {
    const found = this.#chain(query).slice(0, Math.floor(most / BLOCK));
    // The first is used last: what begins a chain outlives what goes on from it.
    for (const [index, key] of [...found.entries()].reverse()) {
      const [start, end] = placesOf(query, index);
      this.#write(this.#use(key)!, cache, row, start, end);
    }
    return this.#count(found.length * BLOCK);
  }

  /** Keeps the whole blocks of a prompt of a causal method, which a row holds now. */
  keep(query: CachedPrompt, cache: KvCache, row: number): void {
    const keys = this.#keysOf(query);
    for (let index = keys.length - 1; index >= 0; index--) {
      const key = keys[index]!;
      if (this.#use(key)) continue;
      const [start, end] = placesOf(query, index);
      this.#add(key, cache.read(row, start, end), undefined);
    }
  }

  /** The same for a whole prompt of any method; undefined when it is not there. */
  restoreWhole(query: CachedPrompt, cache: KvCache, row: number): ReadPrompt | undefined {
    const entry = this.#use(this.#whole(query));
    this.#count(entry ? query.tokens.length : 0);
    if (entry) this.#write(entry, cache, row, 0, query.prefix + query.tokens.length);
    return entry?.read;
  }

  keepWhole(query: CachedPrompt, cache: KvCache, row: number, read: ReadPrompt): void {
    const key = this.#whole(query);
    if (this.#use(key)) return;
    this.#add(key, cache.read(row, 0, query.prefix + query.tokens.length), read);
  }

  /** Counts a prompt that was read without looking for what is known of it. */
  missed(): void {
    this.#count(0);
  }

  /** Takes it that an adapter's content is what others of this digest have. */
  identify(adapter: Adapter, digest: string): void {
    this.#digests.set(adapter, `given ${digest}`);
  }

  /** Takes it that an adapter's numbers have changed. */
  forget(adapter: Adapter): void {
    this.#digests.delete(adapter);
  }

  [Symbol.dispose](): void {
    for (const { values } of this.#entries.values()) values.dispose();
    this.#entries.clear();
    this.#bytes = 0;
  }

  /** What everything depends on: the model, the adapter's content, and who may share. */
  #root({ adapter, scope }: PromptIdentity): string {
    let digest = "bare";
    if (adapter) {
      digest = this.#digests.get(adapter) ?? adapter.digest;
      this.#digests.set(adapter, digest);
    }
    return JSON.stringify([this.#backbone, digest, scope ?? null]);
  }

  /** Keys of a prompt's whole blocks. */
  #keysOf(query: PromptIdentity): string[] {
    const { tokens } = query;
    let key = this.#root(query);
    return Array.from({ length: Math.floor(tokens.length / BLOCK) }, (_, index) => {
      key = hashOf(key, tokens.slice(index * BLOCK, (index + 1) * BLOCK));
      return key;
    });
  }

  #whole(query: PromptIdentity): string {
    return hashOf(`whole ${this.#root(query)}`, query.tokens);
  }

  /** Keys of a prompt's blocks from the first on that are there. */
  #chain(query: PromptIdentity): string[] {
    const keys = this.#keysOf(query);
    const missing = keys.findIndex((key) => !this.#entries.has(key));
    return missing < 0 ? keys : keys.slice(0, missing);
  }

  #use(key: string): Entry | undefined {
    const entry = this.#entries.get(key);
    if (entry) {
      this.#entries.delete(key);
      this.#entries.set(key, entry);
    }
    return entry;
  }

  #write({ values }: Entry, cache: KvCache, row: number, start: number, end: number): void {
    cache.write(row, start, end, values);
    values.closeData();
  }

  #add(key: string, values: Tensor, read: ReadPrompt | undefined): void {
    const extra = read ? [read.hidden, ...[...read.outputs.values()].map(({ data }) => data)] : [];
    const bytes = [values, ...extra].reduce((sum, { byteLength }) => sum + byteLength, 0);
    if (bytes > this.#limit) {
      values.dispose();
      return;
    }
    values.closeData(); // nothing looks at it until it is written
    this.#entries.set(key, { values, read, bytes });
    this.#bytes += bytes;
    for (const [oldest, entry] of this.#entries) {
      if (this.#bytes <= this.#limit) break;
      this.#entries.delete(oldest);
      entry.values.dispose();
      this.#bytes -= entry.bytes;
      this.#evictions++;
    }
  }

  #count(tokens: number): number {
    if (tokens > 0) this.#hits++;
    else this.#misses++;
    this.#tokens += tokens;
    return tokens;
  }
}

/** Whether parts of a prompt can be kept: the bare backbone is causal. */
export function isCausal({ adapter }: { readonly adapter?: Adapter | undefined }): boolean {
  return adapter ? (adapter.method.properties.causal ?? false) : true;
}

/** A few tokens by themselves cost up to half as much again as among many: a third of a prompt has to be spared. */
function pays(spared: number, { tokens }: PromptIdentity): boolean {
  return spared > 0 && 3 * spared >= tokens.length;
}

/** How many tokens of a prompt need not be read after another of the same adapter. */
function sharedTokens(first: PromptIdentity, { tokens }: PromptIdentity): number {
  const differs = tokens.findIndex((token, i) => token !== first.tokens[i]);
  if (isCausal(first)) return Math.floor((differs < 0 ? tokens.length : differs) / BLOCK) * BLOCK;
  return differs < 0 && first.tokens.length === tokens.length ? tokens.length : 0;
}

function hashOf(before: string, tokens: readonly number[]): string {
  return createHash("sha256").update(before).update(Uint32Array.from(tokens)).digest("base64");
}

/** Places of a block in its row of the cache. The first has those of the attention prefix, too. */
function placesOf({ prefix }: CachedPrompt, index: number): [start: number, end: number] {
  return [index === 0 ? 0 : prefix + index * BLOCK, prefix + (index + 1) * BLOCK];
}
