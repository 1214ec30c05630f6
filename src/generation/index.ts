/** @file Door of the room `generation`: the engine that turns prompts into tokens, text and probabilities. */
export { Engine, type EngineOptions, type ScoreResult, type TokenInspection } from "./engine.ts";
export { GenerationError, type GenerationErrorCode, type RequestErrorCode } from "./errors.ts";
export {
  type GenerationRequest,
  type GenerationResult,
  type RouteReport,
  type SamplingOptions,
  type StreamedToken,
  samplingOptionsSchema,
} from "./request.ts";
