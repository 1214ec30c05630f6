/** @file What the pages of operations ask the admin API for, and ask again while somebody looks. */
import { keepPreviousData, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import type { AdapterRecord } from "../../../../src/serving/adapters/record.ts";
import type { Grant, Key, Tenant, TenantLimits, UsageColumn, UsageRow } from "../../../../src/serving/store/types.ts";
import type { ServerErrorEntry, ServerStatus } from "../../../../src/serving/studio/types.ts";
import { ask, withQuery } from "../../api/client.ts";

/** As JSON has it: times are texts. */
type Told<T> = T extends Date ? string : T extends object ? { [K in keyof T]: Told<T[K]> } : T;

export type TenantRow = Told<Tenant>;
export type KeyRow = Told<Key>;
export type GrantRow = Told<Grant>;

export interface AdapterRow extends Told<AdapterRecord> {
  readonly resident: boolean;
  readonly residentBytes: number;
  readonly inFlight: number;
  readonly lastUsed: string | null;
  readonly corrupt: boolean;
}

export interface QuotaRow {
  readonly limits: TenantLimits;
  readonly running: number;
  readonly reserved: number;
  readonly tokensToday: number;
}

/** What an upload is answered with, by whichever route. */
export interface InstalledRow {
  readonly method: string;
  readonly rank: number | null;
  readonly parameters: number;
  readonly tensors: number;
  readonly replaced?: string | null;
  readonly skipped: readonly string[];
}

/** Between two questions while a page is in sight; nothing is asked while it is not. */
const SOON = 5000;

export const adminPath = (path: string): string => `/admin/v1/${path}`;

/** A path below one of the adapter's own. */
export const adapterPath = ({ owner, name }: Pick<AdapterRow, "owner" | "name">, below = ""): string =>
  withQuery(adminPath(`adapters/${encodeURIComponent(name)}${below}`), { tenant: owner ?? undefined });

/** What requests call it. */
export const modelName = ({ owner, name }: Pick<AdapterRow, "owner" | "name">): string =>
  owner === null ? name : `${owner}/${name}`;

export function useStatus() {
  return useQuery({
    queryKey: ["admin", "status"],
    queryFn: ({ signal }) => ask<ServerStatus>(adminPath("status"), { signal }),
    refetchInterval: 1000,
  });
}

/** Adapters of a page. */
export const ADAPTERS = 100;

export interface AdapterFilter {
  readonly q?: string | undefined;
  readonly owner?: string | undefined;
  readonly shared?: "1" | undefined;
  readonly resident?: "1" | undefined;
  readonly name?: string | undefined;
  readonly cursor?: string | undefined;
}

export interface AdapterList {
  readonly adapters: readonly AdapterRow[];
  /** Of all pages. */
  readonly total: number;
  /** Where the next page begins. */
  readonly next: string | null;
}

export function useAdapters(filter: AdapterFilter = {}) {
  const path = withQuery(adminPath("adapters"), { ...filter, limit: ADAPTERS });
  return useQuery({
    queryKey: ["admin", "adapters", path],
    queryFn: ({ signal }) => ask<AdapterList>(path, { signal }),
    placeholderData: keepPreviousData,
    refetchInterval: SOON,
  });
}

/** Whether there is one of this owner and name. */
export function useAdapterExists(owner: string | null, name: string): boolean {
  const whose = owner === null ? ({ shared: "1" } as const) : { owner };
  const path = withQuery(adminPath("adapters"), { ...whose, name, limit: 1 });
  const { data } = useQuery({
    queryKey: ["admin", "adapters", "exists", path],
    queryFn: ({ signal }) => ask<AdapterList>(path, { signal }),
    enabled: name !== "",
  });
  return (data?.total ?? 0) > 0;
}

export function useTenants() {
  return useQuery({
    queryKey: ["admin", "tenants"],
    queryFn: async ({ signal }) => (await ask<{ tenants: TenantRow[] }>(adminPath("tenants"), { signal })).tenants,
  });
}

export function useQuotas(tenant: string) {
  return useQuery({
    queryKey: ["admin", "quotas", tenant],
    queryFn: ({ signal }) => ask<QuotaRow>(adminPath(`tenants/${encodeURIComponent(tenant)}/quotas`), { signal }),
    refetchInterval: SOON,
  });
}

export function useKeys() {
  return useQuery({
    queryKey: ["admin", "keys"],
    queryFn: async ({ signal }) => (await ask<{ keys: KeyRow[] }>(adminPath("keys"), { signal })).keys,
  });
}

export function useGrants(owner: string) {
  return useQuery({
    queryKey: ["admin", "grants", owner],
    queryFn: async ({ signal }) =>
      (await ask<{ grants: GrantRow[] }>(withQuery(adminPath("grants"), { owner }), { signal })).grants,
  });
}

export function useErrors() {
  return useQuery({
    queryKey: ["admin", "errors"],
    queryFn: async ({ signal }) => (await ask<{ errors: ServerErrorEntry[] }>(adminPath("errors"), { signal })).errors,
    refetchInterval: SOON,
  });
}

/**
 * @param from ISO 8601; the same while the page is the same, so that it is one question
 * @param again whether it is asked again; sums of many days are large
 */
export function useUsage(by: readonly UsageColumn[], from: string, tenant?: string, again = true) {
  const path = withQuery(adminPath("usage"), { by: by.join(","), from, tenant });
  return useQuery({
    queryKey: ["admin", "usage", path],
    queryFn: async ({ signal }) => (await ask<{ usage: UsageRow[] }>(path, { signal })).usage,
    refetchInterval: again && 6 * SOON,
    placeholderData: keepPreviousData,
  });
}

/** Asks for everything again. */
export function useRefresh(): () => Promise<void> {
  const queries = useQueryClient();
  return () => queries.invalidateQueries({ queryKey: ["admin"] });
}

/** Something that is changed; then everything is asked for again. */
export function useChange<A>(change: (argument: A) => Promise<unknown>) {
  return useMutation({ mutationFn: change, onSettled: useRefresh() });
}

const HOUR = 3_600_000;

/** The start of an hour, so many hours before this one. */
export function hoursAgo(hours: number): string {
  return new Date((Math.floor(Date.now() / HOUR) - hours) * HOUR).toISOString();
}
