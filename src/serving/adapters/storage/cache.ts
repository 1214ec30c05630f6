/** @file Copies of adapters' files on this machine: those used last, up to a size; never one less of what is in use. */
import { renameSync } from "node:fs";
import { mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { sum } from "../../../base/index.ts";
import { ADAPTER_FILES } from "../archive.ts";
import {
  adapterDirectory,
  type Draft,
  digestsIn,
  endDraft,
  newDraft,
  rememberUnchanged,
  sweepDrafts,
  touch,
} from "../files.ts";
import type { HeldFiles } from "./storage.ts";

interface Entry {
  readonly bytes: number;
  users: number;
  /** Milliseconds since 1970. */
  lastUsed: number;
}

/** A directory that one process has at a time. */
export class FileCache {
  readonly root: string;
  readonly maxBytes: number;
  /** The one used last at the end. */
  readonly #entries = new Map<string, Entry>();
  #bytes = 0;
  #evictions = 0;
  readonly #removing = new Set<Promise<void>>();

  constructor(root: string, maxBytes: number) {
    this.root = root;
    this.maxBytes = maxBytes;
  }

  /** Takes what an earlier process has left: whole adapters, whose digests are checked when they are loaded. */
  async open(): Promise<void> {
    await mkdir(this.root, { recursive: true });
    await sweepDrafts(this.root, Date.now());
    const found: [string, Entry][] = [];
    for (const digest of await digestsIn(this.root)) {
      const directory = adapterDirectory(this.root, digest);
      const sizes = ADAPTER_FILES.map((file) => stat(join(directory, file)).then(({ size }) => size));
      const [lastUsed, bytes] = await Promise.all([stat(directory), Promise.all(sizes)]).then(
        ([{ mtimeMs }, parts]) => [mtimeMs, sum(parts)] as const,
        () => [0, 0] as const, // a file is missing: it is the first to go
      );
      found.push([digest, { bytes, users: 0, lastUsed }]);
    }
    for (const [digest, entry] of found.sort(([, a], [, b]) => a.lastUsed - b.lastUsed)) {
      this.#entries.set(digest, entry);
      this.#bytes += entry.bytes;
      if (entry.bytes === 0) this.remove(digest);
    }
    this.makeRoom(0);
  }

  get stats(): { readonly bytes: number; readonly adapters: number; readonly evictions: number } {
    return { bytes: this.#bytes, adapters: this.#entries.size, evictions: this.#evictions };
  }

  /** Its files if they are here; they stay until that is disposed. */
  take(digest: string): HeldFiles | undefined {
    const entry = this.#entries.get(digest);
    if (!entry) return undefined;
    const directory = adapterDirectory(this.root, digest);
    void touch(directory); // in which order they go after a restart
    const release = this.#hold(digest, entry);
    return { directory, [Symbol.dispose]: release };
  }

  /** Gives a draft its place. @returns a hold on it */
  async add(draft: Draft): Promise<HeldFiles> {
    const { digest, bytes } = draft;
    const before = this.#entries.get(digest);
    const release = before && this.#hold(digest, before);
    if (!before) this.makeRoom(bytes);
    try {
      await draft.publish(this.root);
    } finally {
      release?.();
    }
    await rememberUnchanged(adapterDirectory(this.root, digest));
    if (!this.#entries.has(digest)) {
      this.#entries.set(digest, { bytes, users: 0, lastUsed: Date.now() });
      this.#bytes += bytes;
    }
    return this.take(digest)!;
  }

  /** Removes those that were used longest ago until there is room, or nothing more that may go. */
  makeRoom(bytes: number): void {
    for (const [digest, { users }] of this.#entries) {
      if (this.#bytes + bytes <= this.maxBytes) return;
      if (users > 0) continue;
      this.#evictions++;
      this.remove(digest);
    }
  }

  /** Takes one out, also one in use: who has it open may read on. */
  remove(digest: string): void {
    const entry = this.#entries.get(digest);
    if (!entry) return;
    this.#entries.delete(digest);
    this.#bytes -= entry.bytes;
    const doomed = newDraft(this.root);
    // In the same turn as it leaves the list: another one of this digest may be given its place in the next.
    try {
      renameSync(adapterDirectory(this.root, digest), doomed);
    } catch {
      // Somebody has removed it by hand; where it cannot be renamed, the next one is written over it.
    }
    const removing = endDraft(doomed);
    this.#removing.add(removing);
    void removing.then(() => this.#removing.delete(removing));
  }

  /** Removes what nothing refers to and nobody has used for `graceMs`. @returns digests */
  async sweep(used: ReadonlySet<string>, graceMs: number): Promise<string[]> {
    const removed: string[] = [];
    for (const [digest, { users, lastUsed }] of this.#entries) {
      if (used.has(digest) || users > 0 || Date.now() - lastUsed < graceMs) continue;
      this.remove(digest);
      removed.push(digest);
    }
    await sweepDrafts(this.root, Date.now());
    return removed;
  }

  /** Waits for what is being removed. */
  async close(): Promise<void> {
    await Promise.all(this.#removing);
  }

  #hold(digest: string, entry: Entry): () => void {
    const use = (): void => {
      entry.lastUsed = Date.now();
      if (this.#entries.get(digest) !== entry) return; // taken out meanwhile
      this.#entries.delete(digest);
      this.#entries.set(digest, entry);
    };
    entry.users++;
    use();
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      entry.users--;
      use();
      this.makeRoom(0);
    };
  }
}
