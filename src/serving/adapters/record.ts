/** @file What is known of an adapter besides its files, and what the registry asks of the database that keeps it. */

/** One name of an adapter. */
export interface AdapterRecord {
  /** The tenant it belongs to; null: shared, everybody may use it. */
  readonly owner: string | null;
  readonly name: string;
  /** Of its files; `digestOf`. */
  readonly digest: string;
  readonly method: string;
  readonly rank: number | null;
  /** Of both files on disk. */
  readonly bytes: number;
  /** Digest of the backbone that it was checked against, where it is known. */
  readonly backbone?: string | null;
  readonly createdAt: Date;
  /** Loaded at the start and never evicted. */
  readonly pinned: boolean;
}

export type NewAdapter = Pick<AdapterRecord, "owner" | "name" | "digest" | "method" | "rank" | "bytes"> & {
  readonly backbone?: string;
};

/** The rows of adapters, as `Store.adapters` keeps them. */
export interface AdapterTable {
  /** Inserts, or replaces in one transaction (grants and pin stay). @returns the row that was replaced */
  put(adapter: NewAdapter): Promise<AdapterRecord | undefined>;
  get(owner: string | null, name: string): Promise<AdapterRecord | undefined>;
  /** What `tenant` may use: without `owner` its own, else the shared one; with `owner` its own or one granted to it. */
  find(tenant: string, name: string, owner?: string): Promise<AdapterRecord | undefined>;
  /** All that `tenant` may use. */
  list(tenant: string): Promise<readonly AdapterRecord[]>;
  all(): Promise<readonly AdapterRecord[]>;
  pinned(): Promise<readonly AdapterRecord[]>;
  remove(owner: string | null, name: string): Promise<AdapterRecord | undefined>;
  setPinned(owner: string | null, name: string, pinned: boolean): Promise<void>;
  /** Digests that some row refers to. */
  digests(): Promise<ReadonlySet<string>>;
  /** The right to make files visible or to remove them, where several servers do so. */
  guard?(): Promise<AsyncDisposable | undefined>;
}

/** A name for messages: `name`, or `owner/name`. */
export function qualified({ owner, name }: Pick<AdapterRecord, "owner" | "name">): string {
  return owner === null ? name : `${owner}/${name}`;
}
