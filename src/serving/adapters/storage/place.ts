/** @file Chooses where the files of adapters are kept by what the settings name. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { Bucket } from "./bucket.ts";
import { DirectoryStorage } from "./directory.ts";
import { bucketLocation } from "./location.ts";
import { ObjectStorage } from "./objects.ts";
import type { AdapterStorage } from "./storage.ts";

/** What a store of objects is used from: `adapters/` is not a cache, and one process has a cache at a time. */
const CACHE = "adapter-cache";

export interface AdapterPlace {
  /** `s3://BUCKET/PREFIX`; without it `adapters/` in the data directory. */
  readonly store: string | undefined;
  /** The data directory. */
  readonly data: string;
  /** Of the copies of a store's files on this machine. */
  readonly cacheBytes: number;
}

/**
 * @param environment has the AWS_* variables
 * @returns the storage, and the directory that no other process may use while it is open
 * @throws InputError FLAG_INVALID
 */
export function adapterStorage(
  { store, data, cacheBytes }: AdapterPlace,
  environment: Readonly<Record<string, string | undefined>> = process.env,
): { readonly storage: AdapterStorage; readonly exclusive: string | undefined } {
  if (store === undefined) return { storage: new DirectoryStorage(data), exclusive: undefined };
  const directory = join(data, CACHE);
  const bucket = new Bucket(bucketLocation(store, environment));
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  return { storage: new ObjectStorage(store, bucket, { directory, maxBytes: cacheBytes }), exclusive: directory };
}
