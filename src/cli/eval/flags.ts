/** @file The flags of `milora eval`, as its parts read them. */
import type { Protocol } from "../../evaluation/index.ts";
import type { DeviceName } from "../../runtime/index.ts";
import type { JudgeFlags } from "../judge/flags.ts";

export interface EvalFlags extends JudgeFlags {
  readonly model: string;
  readonly adapter?: string;
  readonly weights?: "float32" | "int8" | "int4";
  readonly threads?: number;
  readonly device?: DeviceName;
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
  /** Undefined: the default of what is measured. */
  readonly template?: string;
  readonly beams: number;
  readonly maxNewTokens?: number;
  readonly limit?: number;
  readonly output?: string;
  readonly json?: boolean;
  /** Of conversations. */
  readonly greedy?: boolean;
  readonly answers?: string;
  readonly judgeBaseline?: string;
  readonly judgeReferences?: string;
}

/** What only conversations have, as far as it has no default. */
export const CONVERSATION_FLAGS = [
  "greedy",
  "answers",
  "judgeBaseline",
  "judgeReferences",
  "judgeUrl",
  "judgeModel",
  "judgeKeyEnv",
  "judgePrices",
  "yes",
] as const;

/** Those of some flags that were given, as they are written. */
export function flagNames(flags: EvalFlags, names: readonly (keyof EvalFlags)[]): string[] {
  const given = names.filter((name) => flags[name] !== undefined);
  return given.map((name) => `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`);
}
