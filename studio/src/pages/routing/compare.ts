/** @file What changes between the routes of two prompts. */
import type { AdapterRoute } from "../../../../src/serving/studio/types.ts";

export interface Place {
  readonly layer: number;
  readonly expert: number;
}

export interface Difference {
  /** Chosen now and not before, … */
  readonly gained: readonly Place[];
  /** … and the other way round. */
  readonly lost: readonly Place[];
  /** Layers with the same experts as before. */
  readonly same: number;
  /** The largest change of a probability, with its sign; undefined where there is none at all. */
  readonly largest: (Place & { readonly by: number }) | undefined;
}

/** Undefined where the two are not routes of the same routers. */
export function differenceOf(before: AdapterRoute | undefined, now: AdapterRoute): Difference | undefined {
  if (!before || before.digest !== now.digest || before.layers.length !== now.layers.length) return undefined;
  const gained: Place[] = [];
  const lost: Place[] = [];
  let same = 0;
  let largest: (Place & { by: number }) | undefined;
  for (const [layer, { chosen, probabilities }] of now.layers.entries()) {
    const old = before.layers[layer]!;
    const [more, less] = [without(chosen, old.chosen), without(old.chosen, chosen)];
    gained.push(...more.map((expert) => ({ layer, expert })));
    lost.push(...less.map((expert) => ({ layer, expert })));
    if (more.length + less.length === 0) same++;
    for (const [expert, probability] of probabilities.entries()) {
      const by = probability - old.probabilities[expert]!;
      if (Math.abs(by) > Math.abs(largest?.by ?? 0)) largest = { layer, expert, by };
    }
  }
  return { gained, lost, same, largest };
}

function without(some: readonly number[], others: readonly number[]): number[] {
  return some.filter((one) => !others.includes(one));
}
