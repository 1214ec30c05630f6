/** @file What the registry takes and gives. */
import type { Engine } from "../../generation/index.ts";
import type { Adapter } from "../../methods/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import type { RegistryLimits } from "./limits.ts";
import type { AdapterRecord, AdapterTable } from "./record.ts";
import type { AdapterStorage } from "./storage/storage.ts";

export interface RegistryOptions {
  /** Where their files are; the registry opens it and disposes it. */
  readonly storage: AdapterStorage;
  readonly adapters: AdapterTable;
  readonly backbone: BackboneConfig;
  /** Of its weights, too; adapters that were installed for another one of the same shapes are told to the log. */
  readonly backboneDigest?: string;
  /** Names under which the bare backbone is served; adapters may not have them, `base:adapter` may begin with them. */
  readonly bases?: readonly string[];
  /** What uses the adapters: told of those that were loaded, and of those whose tensors are about to go. */
  readonly engine?: Partial<Pick<Engine, "identify" | "prepare">> & Pick<Engine, "forget">;
  readonly limits?: Partial<RegistryLimits>;
  /** Adapters to load and pin at the start, besides those that are pinned in the database: `name` or `owner/name`. */
  readonly preload?: readonly string[];
  /** Whether what is pinned is loaded at the start; default true. */
  readonly load?: boolean;
  readonly log?: RegistryLog;
}

export interface RegistryLog {
  info(fields: object, text: string): void;
  warn(fields: object, text: string): void;
}

/** Who asks for an adapter. */
export interface AdapterUser {
  readonly tenant: string;
  readonly role?: "admin" | "tenant";
}

export type AdapterSource =
  | { readonly archive: AsyncIterable<Uint8Array> }
  | {
      readonly directory: string;
      /** A directory that it must lie in, links resolved. */
      readonly within?: string;
    };

export interface InstallOptions {
  /** The tenant; null: shared. */
  readonly owner: string | null;
  readonly name: string;
  /** Of the files, unpacked, where less than the registry's limit. */
  readonly maxBytes?: number;
}

export interface Installed extends AdapterRecord {
  /** Trained numbers. */
  readonly parameters: number;
  readonly tensors: number;
  /** Digest of the adapter that had this name before. */
  readonly replaced?: string;
  /** Files of the archive that were not taken. */
  readonly skipped: readonly string[];
}

/** An adapter in use. Dispose it when the request has ended. */
export interface AdapterLease extends Disposable {
  readonly adapter: Adapter;
  readonly record: AdapterRecord;
}

/** What is in memory of an adapter. */
export interface Presence {
  readonly resident: boolean;
  /** Of its tensors in memory; 0 when it is not there. */
  readonly residentBytes: number;
  /** Requests under this name. */
  readonly inFlight: number;
  readonly lastUsed: Date | null;
  /** Its files were found damaged. */
  readonly corrupt: boolean;
}
