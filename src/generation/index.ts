/** @file Door of the room `generation`: the engine that turns prompts into tokens, text and probabilities. */
export type { KvPrecision } from "./cache.ts";
export { Engine, type EngineOptions, type TokenInspection } from "./engine.ts";
export { GenerationError, type GenerationErrorCode, type RequestErrorCode } from "./errors.ts";
export type { Exploration, ExploreOptions } from "./explore.ts";
export type { AdapterPrecision } from "./packed-adapter.ts";
export { joinsOthers } from "./pass.ts";
export type { PrefixCacheOptions, PrefixCacheStats } from "./prefix-cache.ts";
export {
  type GenerationRequest,
  type GenerationResult,
  type PromptLogprob,
  type RouteReport,
  type SamplingOptions,
  type StreamedToken,
  samplingOptionsSchema,
  type TokenLogprob,
} from "./request.ts";
export {
  type SchedulerLimits,
  type SchedulerLimitsInput,
  schedulerLimitsSchema,
} from "./scheduler/limits.ts";
export { Scheduler } from "./scheduler/scheduler.ts";
export type {
  ChoiceToken,
  ScheduledRequest,
  SchedulerObserver,
  SchedulerStats,
  TenantStats,
} from "./scheduler/types.ts";
export type { ScoreOptions } from "./score.ts";
export type { ScoreResult, ScoreRow } from "./score-rows.ts";
export type { EngineCosts, PassWork, StepWork } from "./simulation/batch.ts";
export {
  SimulatedAdapter,
  type SimulatedMachine,
  type SimulatedRequest,
  SimulatedScheduler,
} from "./simulation/scheduler.ts";
