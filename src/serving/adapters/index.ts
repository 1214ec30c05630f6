/** @file Door of serving/adapters: the registry of installed adapters. */
export { type RegistryLimits, registryLimitsSchema } from "./limits.ts";
export { ADAPTER_NAME } from "./names.ts";
export { packAdapter } from "./pack.ts";
export { type AdapterRecord, type AdapterTable, type NewAdapter, qualified } from "./record.ts";
export {
  type AdapterLease,
  AdapterRegistry,
  type AdapterSource,
  type Installed,
  type InstallOptions,
  type Presence,
  type RegistryLog,
  type RegistryOptions,
} from "./registry.ts";
export { AdaptersBusyError, type ResidencyStats, type SlotReport } from "./residency.ts";
