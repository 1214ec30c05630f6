/** @file For tests: tiny adapters on disk, archives of them, and a registry over rows in memory. */
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Header, pack } from "tar-stream";
import { onTestFinished } from "vitest";
import { Adapter, methodOf } from "../../methods/index.ts";
import { readBackboneConfig } from "../../models/index.ts";
import { ADAPTER_FILES } from "./archive.ts";
import type { AdapterRecord, AdapterTable } from "./record.ts";
import { AdapterRegistry } from "./registry.ts";
import { DirectoryStorage } from "./storage/directory.ts";
import type { RegistryOptions } from "./types.ts";

export const BACKBONE = "test/fixtures/backbones/llama-gqa";
export const backbone = readBackboneConfig(BACKBONE);
/** A real adapter of `backbone`. */
export const fixture = "test/fixtures/lora/qv-suffixes";

export function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), "registry-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** A LoRA adapter with numbers of its own, in a directory of its own. */
export async function newAdapter(seed: number, options: Readonly<Record<string, unknown>> = { r: 2 }): Promise<string> {
  const directory = join(temporary(), `adapter-${seed}`);
  using adapter = Adapter.create(methodOf("lora"), options, backbone, seed);
  let value = seed;
  for (const key of adapter.tensors.keys()) {
    if (key.includes("lora_B")) adapter.values(key).fill(++value / 1000);
  }
  await adapter.save(directory);
  return directory;
}

/** A copy of a directory with an adapter, changed. */
export function changed(source: string, change: (directory: string) => void): string {
  const copy = join(temporary(), "copy");
  cpSync(source, copy, { recursive: true });
  change(copy);
  return copy;
}

export type Entry = Partial<Header> & { readonly name: string; readonly content?: Uint8Array | string };

/** A tar archive of anything. */
export async function tar(entries: readonly Entry[]): Promise<Buffer> {
  const archive = pack();
  for (const { content = "", ...header } of entries) {
    if (header.size === undefined) archive.entry(header, Buffer.from(content));
    else archive.entry({ ...header, size: header.size });
  }
  archive.finalize();
  const chunks: Uint8Array[] = [];
  for await (const chunk of archive as unknown as AsyncIterable<Uint8Array>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** The two files of an adapter as entries of an archive. */
export function entriesOf(directory: string, prefix = ""): Entry[] {
  return ADAPTER_FILES.map((file) => ({ name: prefix + file, content: readFileSync(join(directory, file)) }));
}

/** As bytes arrive from a socket. */
export async function* inChunks(bytes: Uint8Array, size = 1000): AsyncGenerator<Uint8Array> {
  for (let start = 0; start < bytes.length; start += size) {
    yield bytes.subarray(start, start + size);
    if (start % (16 * size) === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Damages a file in its middle, where numbers are. */
export function flipByte(path: string): void {
  const bytes = readFileSync(path);
  const at = bytes.length - 8;
  bytes[at] = bytes[at]! ^ 1;
  writeFileSync(path, bytes);
}

/** Rows in memory. */
export class Rows implements AdapterTable {
  readonly rows = new Map<string, AdapterRecord>();
  /** `owner/name → tenant` */
  readonly grants = new Set<string>();

  async put(adapter: Parameters<AdapterTable["put"]>[0]): Promise<AdapterRecord | undefined> {
    const key = keyOf(adapter.owner, adapter.name);
    const old = this.rows.get(key);
    this.rows.set(key, { ...adapter, createdAt: new Date(), pinned: old?.pinned ?? false });
    return old;
  }

  async get(owner: string | null, name: string): Promise<AdapterRecord | undefined> {
    return this.rows.get(keyOf(owner, name));
  }

  async find(tenant: string, name: string, owner?: string): Promise<AdapterRecord | undefined> {
    if (owner === undefined) return this.rows.get(keyOf(tenant, name)) ?? this.rows.get(keyOf(null, name));
    const visible = owner === tenant || this.grants.has(`${owner}/${name} → ${tenant}`);
    return visible ? this.rows.get(keyOf(owner, name)) : undefined;
  }

  async list(tenant: string): Promise<AdapterRecord[]> {
    const visible = ({ owner, name }: AdapterRecord): boolean =>
      owner === null || owner === tenant || this.grants.has(`${owner}/${name} → ${tenant}`);
    return [...this.rows.values()].filter(visible);
  }

  async all(): Promise<AdapterRecord[]> {
    return [...this.rows.values()];
  }

  async pinned(): Promise<AdapterRecord[]> {
    return [...this.rows.values()].filter((row) => row.pinned);
  }

  async remove(owner: string | null, name: string): Promise<AdapterRecord | undefined> {
    const row = this.rows.get(keyOf(owner, name));
    this.rows.delete(keyOf(owner, name));
    return row;
  }

  async setPinned(owner: string | null, name: string, pinned: boolean): Promise<void> {
    const row = this.rows.get(keyOf(owner, name));
    if (row) this.rows.set(keyOf(owner, name), { ...row, pinned });
  }

  async digests(): Promise<ReadonlySet<string>> {
    return new Set([...this.rows.values()].map(({ digest }) => digest));
  }
}

function keyOf(owner: string | null, name: string): string {
  return `${owner ?? ""}/${name}`;
}

/** A registry over rows in memory, closed after the test. */
export async function openRegistry({
  directory = temporary(),
  ...options
}: Partial<RegistryOptions> & { readonly directory?: string } = {}) {
  const rows = options.adapters instanceof Rows ? options.adapters : new Rows();
  const forgotten: Adapter[] = [];
  const engine = { forget: (adapter: Adapter) => forgotten.push(adapter) };
  const registry = await AdapterRegistry.open({
    ...{ storage: new DirectoryStorage(directory), adapters: rows, backbone, bases: ["tiny", "org/tiny"], engine },
    ...options,
  });
  onTestFinished(() => registry[Symbol.asyncDispose]());
  return { registry, directory, rows, forgotten, files: join(directory, "adapters") };
}

/** Digests that are installed. */
export const visible = (files: string): string[] => readdirSync(files).filter((name) => !name.startsWith("."));
/** Adapters on their way in or out. */
export const drafts = (files: string): string[] => readdirSync(join(files, ".drafts"));
