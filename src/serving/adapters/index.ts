/** @file Door of serving/adapters: the registry of installed adapters. */
export { type RegistryLimits, registryLimitsSchema } from "./limits.ts";
export { ADAPTER_NAME } from "./names.ts";
export { packAdapter } from "./pack.ts";
export { type AdapterRecord, type AdapterTable, type NewAdapter, qualified } from "./record.ts";
export { AdapterRegistry } from "./registry.ts";
export { AdaptersBusyError, type ResidencyStats, type SlotReport } from "./residency.ts";
export type {
  AdapterLease,
  AdapterSource,
  Installed,
  InstallOptions,
  Presence,
  RegistryLog,
  RegistryOptions,
} from "./types.ts";
