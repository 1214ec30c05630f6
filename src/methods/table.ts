/** @file Parameter counts of all methods at the paper's settings, and what the paper reports for LLaMA-2 7B (its table 1). */
import { sum } from "../base/index.ts";
import type { BackboneConfig } from "../models/index.ts";
import type { Method } from "./method.ts";
import { methods } from "./registry.ts";

/** Millions of parameters in the paper's table 1. */
interface Reported {
  readonly tunable: number;
  readonly activated: number;
  /** Parts of the method that its figure leaves out. */
  readonly without?: readonly string[];
  readonly remark?: string;
}

/** The backbone of the paper's table 1. */
export const PAPER_SHAPE = "llama-2-7b";

const same = (tunable: number, without: readonly string[] = []): Reported => ({ tunable, activated: tunable, without });

const REPORTED: Readonly<Record<string, Reported>> = {
  "parallel-adapter": same(83.9),
  "learned-adapter": same(81.8),
  "p-tuning-v2": same(84.5),
  iapt: same(83.9, ["poolers"]),
  bitfit: same(87.0),
  ia3: same(78.6),
  ssp: same(80.6),
  lora: same(80.0),
  adalora: same(80.0),
  moelora: {
    tunable: 87.3,
    activated: 30.1,
    remark: "4 of 8 experts for a token, its settings, are 40.0 M, and the routers 7.3 M",
  },
  dora: same(80.0, ["magnitudes"]),
  milora: {
    tunable: 80.9,
    activated: 25.2,
    without: ["poolers"],
    remark: "what it calls activated is the three smallest experts of each layer, 25.17 M",
  },
  midora: {
    tunable: 80.9,
    activated: 25.8,
    without: ["magnitudes", "poolers"],
    remark: "what it calls activated is near the three smallest experts of each layer, 25.56 M",
  },
};

/** A method's numbers of parameters: by part, and together. */
export interface Counted {
  readonly parts: Readonly<Record<string, number>>;
  readonly total: number;
}

export interface MethodRow {
  readonly method: Method;
  readonly tunable: Counted;
  /** The most that one token can use. */
  readonly activated: Counted;
  /** Only for the paper's backbone. */
  readonly paper: (Reported & { /** Our tunable parameters as the paper counts them. */ readonly ours: number }) | null;
}

/**
 * All methods as the paper sets them, in the order of the registry.
 * @param isPapers whether `backbone` is the paper's, so that its figures stand beside
 */
export function parameterTable(backbone: BackboneConfig, isPapers: boolean): MethodRow[] {
  return [...methods.values()].map((method) => {
    const { tunable, activated } = method.countParameters(method.newConfig({}, backbone), backbone);
    const reported = isPapers ? REPORTED[method.name] : undefined;
    const left = reported?.without?.map((part) => tunable[part] ?? 0) ?? [];
    const ours = left.reduce((rest, part) => rest - part, sum(Object.values(tunable)));
    return {
      method,
      tunable: { parts: tunable, total: sum(Object.values(tunable)) },
      activated: { parts: activated, total: sum(Object.values(activated)) },
      paper: reported ? { ...reported, ours } : null,
    };
  });
}
