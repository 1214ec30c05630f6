/** @file What the variants of `train` are told and answer. */

export interface TrainSettings {
  readonly shape: string;
  readonly threads: number;
  readonly method: string;
  readonly options: Readonly<Record<string, unknown>>;
  /** How the backbone is held; the peer knows float32 only. */
  readonly weights: "float32" | "int8" | "int4";
  /** What of a layer is computed again in the backward pass; the peer knows no such thing. Default: milora's own. */
  readonly recompute?: "nothing" | "light" | "all";
  /** Sequences a step, all in memory at once. */
  readonly batch: number;
  /** Tokens a sequence, all but the first supervised. */
  readonly length: number;
  /** Optimizer steps a round. */
  readonly steps: number;
}

export interface TrainRound {
  /** Of every optimizer step, ms: forward, backward, clipping, AdamW. */
  readonly stepMs: readonly number[];
  /** Training loss after the round: to see that something is learned. */
  readonly loss: number;
}
