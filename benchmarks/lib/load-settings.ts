/** @file What the workers of `load` are told and say. */
export interface LoadSettings {
  readonly model: string;
  readonly weights: "float32" | "int8" | "int4";
  readonly threads: number;
  /** Prompt tokens. */
  readonly past: number;
}

export interface LoadRound {
  /** From just before `Backbone.load` until it is there, ms; milora's own modules are loaded by then, the runtime's library is not. */
  readonly loadMs: number;
  /** From the same moment to the first token, ms. */
  readonly firstTokenMs: number;
  /** Processor time of all threads in that time, waiting threads that spin included, ms. */
  readonly firstTokenCpuMs: number;
  /** Of one further token, once the decoding session is there, ms. */
  readonly laterTokenMs: number;
  /** From the start of the process to the first token, Node and modules included, ms. */
  readonly processMs: number;
  /** Peak resident memory, bytes: before, when the first token was there, after eight. */
  readonly startRss: number;
  readonly firstTokenRss: number;
  readonly peakRss: number;
}
