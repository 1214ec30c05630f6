/** @file Door of serving/adapters: the registry of installed adapters. */
export { type RegistryLimits, registryLimitsSchema } from "./limits.ts";
export { AdaptersBusyError } from "./memory-errors.ts";
export { ADAPTER_NAME } from "./names.ts";
export { packAdapter } from "./pack.ts";
export { type AdapterRecord, type AdapterTable, type NewAdapter, qualified } from "./record.ts";
export { AdapterRegistry } from "./registry.ts";
export type { ResidencyStats, SlotReport } from "./residency.ts";
export { DirectoryStorage } from "./storage/directory.ts";
export { isBucketName } from "./storage/location.ts";
export { type AdapterPlace, adapterStorage } from "./storage/place.ts";
export type { AdapterStorage, CacheStats } from "./storage/storage.ts";
export type {
  AdapterLease,
  AdapterSource,
  Installed,
  InstallOptions,
  Presence,
  RegistryLog,
  RegistryOptions,
} from "./types.ts";
