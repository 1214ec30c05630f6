/** @file The database of the server: tenants, keys, names of adapters, grants, usage, quotas. */
export { type CreatedKey, keyLabelSchema, type NewKey } from "./keys.ts";
export { type MovePlace, type MoveReport, moveDatabase } from "./move.ts";
export type { Admission, QuotaState, Refusal } from "./quotas.ts";
export { openStore, Store, type StoreLocation, type StoreOptions } from "./store.ts";
export {
  type NewTenant,
  newTenantSchema,
  OPEN_TENANT,
  type TenantChanges,
  tenantChangesSchema,
} from "./tenants.ts";
export { openStoreThere, type StoreThere } from "./there.ts";
export * from "./types.ts";
export { DatabaseUnreachable, isDatabaseUrl } from "./url.ts";
export type { Charge } from "./usage.ts";
