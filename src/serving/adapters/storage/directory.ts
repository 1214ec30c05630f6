/** @file Files of adapters in a directory: one server's own, or one that all servers see. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { adapterDirectory, Draft, rememberUnchanged, signatureOf, sweep, touch } from "../files.ts";
import type { AdapterStorage, HeldFiles, SweepOptions } from "./storage.ts";

export class DirectoryStorage implements AdapterStorage {
  readonly name: string;
  readonly cache = undefined;
  readonly #root: string;

  /** @param data the data directory; adapters lie in `adapters/` below it */
  constructor(data: string) {
    this.#root = join(data, "adapters");
    this.name = this.#root;
  }

  async open(): Promise<void> {
    await mkdir(this.#root, { recursive: true });
  }

  draft(maxBytes: number): Promise<Draft> {
    return Draft.create(this.#root, maxBytes);
  }

  /** It becomes visible by one renaming, in `publish`. */
  async upload(): Promise<void> {}

  async publish(draft: Draft): Promise<boolean> {
    await draft.publish(this.#root);
    await rememberUnchanged(adapterDirectory(this.#root, draft.digest));
    return true;
  }

  /** What is used is not removed but after the grace time: nothing has to be noted. */
  async hold(digest: string): Promise<HeldFiles> {
    return { directory: adapterDirectory(this.#root, digest), [Symbol.dispose]: () => {} };
  }

  signature(digest: string): string {
    return signatureOf(adapterDirectory(this.#root, digest));
  }

  async renew(): Promise<boolean> {
    return false;
  }

  async abandon(digest: string): Promise<void> {
    await touch(adapterDirectory(this.#root, digest));
  }

  async sweep({ digests, guard, graceMs }: SweepOptions): Promise<string[]> {
    await using _guard = await guard();
    return sweep(this.#root, await digests(), graceMs, Date.now());
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
