/** @file The flags of `milora eval`, as its parts read them. */
import type { Protocol } from "../../evaluation/index.ts";

export interface EvalFlags {
  readonly model: string;
  readonly adapter?: string;
  readonly weights?: "float32" | "int8" | "int4";
  readonly threads?: number;
  readonly data?: string;
  readonly tasks?: string;
  readonly protocol?: Protocol;
  readonly dataDir?: string;
  readonly numFewshot?: number;
  readonly batchSize?: number;
  readonly seed: number;
  readonly train?: string[];
  readonly overlap: boolean;
  readonly metric: "accuracy" | "perplexity";
  readonly template: string;
  readonly beams: number;
  readonly maxNewTokens?: number;
  readonly limit?: number;
  readonly output?: string;
  readonly json?: boolean;
}
