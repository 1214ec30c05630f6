/** @file What the commands about installed adapters do: in a data directory, or by a running server. */
import { createReadStream, existsSync, mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { z } from "zod";
import { InputError, readJson, writeFileAtomic } from "../../base/index.ts";
import { readBackboneConfig } from "../../models/index.ts";
import {
  type AdapterRecord,
  AdapterRegistry,
  type AdapterSource,
  type AdapterStorage,
  adapterStorage,
  type Installed,
  modelNameOf,
  openStore,
  type Presence,
  packAdapter,
  type Store,
} from "../../serving/index.ts";
import { AdminClient, type AdminFlags, locationOf, openThere } from "../admin.ts";
import { type QualifiedName, shown } from "./name.ts";

/** The commands' way to adapters, wherever they are. */
export interface InstalledAdapters extends AsyncDisposable {
  install(source: string, as: QualifiedName, model: string | undefined): Promise<Installed>;
  list(tenant: string | undefined): Promise<(AdapterRecord & Partial<Presence>)[]>;
  remove(adapter: QualifiedName): Promise<{ inFlight: number }>;
  pin(adapter: QualifiedName, pinned: boolean): Promise<void>;
  grant(adapter: QualifiedName, to: string, granted: boolean): Promise<void>;
}

/** @param make a store, and what notes whose adapters a directory has, where there is none */
export async function openInstalled(flags: AdminFlags & StoreFlags, make = true): Promise<InstalledAdapters> {
  const { adapterStore } = flags;
  if (flags.server !== undefined) {
    if (adapterStore === undefined) return new Remote(new AdminClient(flags.server));
    throw new InputError("FLAG_INVALID", "--adapter-store", "goes with --data and --database; a server knows its own");
  }
  const location = locationOf(flags);
  return new Local(
    location.directory,
    make ? await openStore(location) : await openThere(flags),
    adapterStore ?? process.env.MILORA_SERVE_ADAPTER_STORE,
  );
}

export interface StoreFlags {
  readonly adapterStore?: string;
}

/** A data directory that no server has open, or that servers share with their database. */
class Local implements InstalledAdapters {
  readonly #directory: string;
  readonly #store: Store;
  readonly #adapterStore: string | undefined;

  /** @param adapterStore of the files; undefined: where the database's servers have them */
  constructor(directory: string, store: Store, adapterStore: string | undefined) {
    this.#directory = directory;
    this.#store = store;
    this.#adapterStore = adapterStore;
  }

  async install(source: string, as: QualifiedName, given: string | undefined): Promise<Installed> {
    const from = sourceOf(source);
    const model = this.#model(given);
    await using place = await this.#storage();
    await using registry = await AdapterRegistry.open({
      ...{ storage: place.storage, adapters: this.#store.adapters, backbone: readBackboneConfig(model) },
      ...{ bases: [modelNameOf(model)], load: false },
    });
    const installed = await registry.install(from, as);
    if (given !== undefined) remember(this.#directory, given);
    return installed;
  }

  /** A server here may have the cache of a store of objects: what is installed goes through one of its own. */
  async #storage(): Promise<{ readonly storage: AdapterStorage } & AsyncDisposable> {
    const store = this.#adapterStore ?? ((await this.#store.adapterStore()) || undefined);
    const data = store === undefined ? this.#directory : mkdtempSync(join(tmpdir(), "milora-install-"));
    const remove = (): void => {
      if (store !== undefined) rmSync(data, { recursive: true, force: true });
    };
    try {
      const { storage } = adapterStorage({ store, data, cacheBytes: Number.MAX_SAFE_INTEGER });
      return { storage, [Symbol.asyncDispose]: async () => remove() };
    } catch (error) {
      remove();
      throw error;
    }
  }

  list(tenant: string | undefined): Promise<AdapterRecord[]> {
    return tenant === undefined ? this.#store.adapters.all() : this.#store.adapters.list(tenant);
  }

  async remove({ owner, name }: QualifiedName): Promise<{ inFlight: number }> {
    // The files go when the server starts, or with the next installation.
    if (!(await this.#store.adapters.remove(owner, name))) throw notFound({ owner, name });
    return { inFlight: 0 };
  }

  async pin({ owner, name }: QualifiedName, pinned: boolean): Promise<void> {
    if (!(await this.#store.adapters.get(owner, name))) throw notFound({ owner, name });
    await this.#store.adapters.setPinned(owner, name, pinned);
  }

  async grant({ owner, name }: QualifiedName, to: string, granted: boolean): Promise<void> {
    if (owner === null) throw new InputError("FLAG_INVALID", name, "is everybody's; grants are of TENANT/NAME");
    if (granted) await this.#store.grants.grant(owner, name, to);
    else await this.#store.grants.revoke(owner, name, to);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]();
  }

  /** The backbone that the adapters of this directory are for. */
  #model(given: string | undefined): string {
    if (given !== undefined) return given;
    const path = memory(this.#directory);
    if (existsSync(path)) return readJson(path, z.strictObject({ model: z.string().min(1) })).model;
    throw new InputError("FLAG_INVALID", "install", "needs --model, the backbone that the adapter was trained on");
  }
}

/** Where the backbone is noted, so that it needs to be named once. */
function memory(directory: string): string {
  return join(directory, "adapters", "backbone.json");
}

function remember(directory: string, model: string): void {
  const lasting = existsSync(model) ? resolve(model) : model;
  mkdirSync(join(directory, "adapters"), { recursive: true, mode: 0o700 });
  writeFileAtomic(memory(directory), `${JSON.stringify({ model: lasting })}\n`);
}

/** A running server. */
class Remote implements InstalledAdapters {
  readonly #client: AdminClient;

  constructor(client: AdminClient) {
    this.#client = client;
  }

  async install(source: string, { owner, name }: QualifiedName, model: string | undefined): Promise<Installed> {
    if (model !== undefined) {
      throw new InputError("FLAG_INVALID", "--model", "goes with --data only; a server knows its backbone");
    }
    const from = sourceOf(source);
    const bytes =
      "directory" in from
        ? { type: "application/x-tar", content: await packAdapter(from.directory) }
        : { type: (await isGzip(source)) ? "application/gzip" : "application/x-tar", content: from.archive };
    return (await this.#call("PUT", [name], owner, bytes)) as Installed;
  }

  async list(tenant: string | undefined): Promise<(AdapterRecord & Presence)[]> {
    const answer = await this.#client.call("GET", ["adapters"], { query: { tenant } });
    return (answer as { adapters: (AdapterRecord & Presence)[] }).adapters;
  }

  async remove({ owner, name }: QualifiedName): Promise<{ inFlight: number }> {
    return (await this.#call("DELETE", [name], owner)) as { inFlight: number };
  }

  async pin({ owner, name }: QualifiedName, pinned: boolean): Promise<void> {
    await this.#call(pinned ? "PUT" : "DELETE", [name, "pin"], owner);
  }

  async grant({ owner, name }: QualifiedName, to: string, granted: boolean): Promise<void> {
    await this.#call(granted ? "PUT" : "DELETE", [name, "grants", to], owner);
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  #call(
    method: "PUT" | "DELETE",
    path: readonly string[],
    owner: string | null,
    bytes?: { readonly type: string; readonly content: AsyncIterable<Uint8Array> },
  ): Promise<unknown> {
    const query = owner === null ? {} : { tenant: owner };
    return this.#client.call(method, ["adapters", ...path], { query, ...(bytes && { bytes }) });
  }
}

/** A directory, or an archive that is read as it is sent. */
function sourceOf(source: string): AdapterSource {
  const found = statSync(source, { throwIfNoEntry: false });
  if (found?.isDirectory()) return { directory: source };
  if (found?.isFile()) return { archive: read(source) };
  throw new InputError("FILE_UNREADABLE", source, found ? "is neither a directory nor a file" : "no such file");
}

/** The bytes of a file, which is closed however the reading ends. */
async function* read(path: string): AsyncGenerator<Uint8Array> {
  for await (const chunk of createReadStream(path)) yield chunk as Uint8Array;
}

async function isGzip(path: string): Promise<boolean> {
  await using file = await open(path);
  const { buffer } = await file.read(Buffer.alloc(2), 0, 2, 0);
  return buffer[0] === 0x1f && buffer[1] === 0x8b;
}

function notFound(adapter: QualifiedName): InputError {
  return new InputError(
    "ADAPTER_NOT_FOUND",
    shown(adapter),
    "there is no such adapter; `milora adapters list` shows all",
  );
}
