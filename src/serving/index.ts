/** @file Door of the room `serving`: a server of one backbone and many tenants' adapters, and the parts it is made of. */
export * from "./adapters/index.ts";
export * from "./capacity/index.ts";
export { ServingError, type ServingErrorCode } from "./errors.ts";
export {
  environmentSettings,
  isLoopback,
  modelNameOf,
  parseServerConfig,
  type ServerConfig,
  type ServerConfigInput,
  serverConfigSchema,
} from "./http/config.ts";
export { createLog, type Logger } from "./http/logs.ts";
export { Server, type ServerOptions } from "./http/server.ts";
export * from "./store/index.ts";
export { RunStudio, type RunStudioOptions } from "./studio/standalone.ts";
export * from "./sweeps/index.ts";
