/** @file What the variants of `together` are told and answer. */

export interface TogetherSettings {
  readonly shape: string;
  readonly weights: "float32" | "int8" | "int4";
  readonly threads: number;
  readonly method: string;
  readonly rank: number;
  /** How many adapters the process trains. */
  readonly adapters: number;
  /** Whether their rows pass the backbone together, or one adapter after the other. */
  readonly joined: boolean;
  /** Sequences of each adapter in a step, all in one pass. */
  readonly batch: number;
  /** Tokens a sequence. */
  readonly length: number;
  /** The last of them, which are learned. */
  readonly supervised: number;
}

export interface TogetherRound {
  /** One step of all adapters of the process, ms. */
  readonly stepMs: number;
  /** What the cores worked on it, ms. */
  readonly cpuMs: number;
}
