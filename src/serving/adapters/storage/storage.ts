/** @file Where the files of adapters are kept, whatever that is: a directory that all servers see, or a bucket of objects. */
import type { Draft } from "../files.ts";
import type { RegistryLog } from "../types.ts";

/** The files of an adapter in a directory of this machine, where they stay until this is disposed. */
export interface HeldFiles extends Disposable {
  readonly directory: string;
}

export interface SweepOptions {
  /** Digests that some name refers to now. */
  digests(): Promise<ReadonlySet<string>>;
  /** The right to remove files, among all servers. */
  guard(): Promise<AsyncDisposable>;
  /** How long files that nothing refers to are kept, in milliseconds. */
  readonly graceMs: number;
}

/** Of what is kept on this machine besides, where that is a cache. */
export interface CacheStats {
  readonly bytes: number;
  readonly adapters: number;
  readonly fetches: number;
  readonly failures: number;
  readonly evictions: number;
}

/** Files of adapters by their digest. Which of them have names, and whose they are, is the registry's. */
export interface AdapterStorage extends AsyncDisposable {
  /** As people name it. */
  readonly name: string;
  readonly cache: CacheStats | undefined;
  /** Makes it ready, and clears what a crash has left behind here. @throws InputError ADAPTER_STORE_REFUSED */
  open(log?: RegistryLog): Promise<void>;
  /** A place for an adapter on its way in. @param maxBytes of its files together */
  draft(maxBytes: number): Promise<Draft>;
  /** Brings a draft's files to where all servers find them, however long that takes. Nothing names them yet. */
  upload(draft: Draft): Promise<void>;
  /**
   * The last step before a name refers to them, while nobody may remove files.
   * @returns false where they are not there any more and have to be uploaded again
   */
  publish(draft: Draft): Promise<boolean>;
  /**
   * The files, fetched where they are not here yet.
   * @throws MiloraError ADAPTER_CORRUPT, ServingError ADAPTER_STORE_UNREACHABLE, the signal's reason
   */
  hold(digest: string, signal?: AbortSignal): Promise<HeldFiles>;
  /** What tells whether files that were found damaged are still the same; undefined: who asks may be lucky. */
  signature(digest: string): string | undefined;
  /** Held files were found damaged. @returns whether holding them again may bring whole ones */
  renew(digest: string): Promise<boolean>;
  /** Nothing refers to them any more: from now on they are kept for the grace time. */
  abandon(digest: string): Promise<void>;
  /** Removes what nothing refers to, after the grace time, and what crashes have left behind. @returns digests */
  sweep(options: SweepOptions): Promise<string[]>;
}
