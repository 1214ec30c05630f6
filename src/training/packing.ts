/** @file Packing: several sequences in one row of a batch, none of which sees another, so that little is padding. */
import { InputError } from "../base/index.ts";
import type { Method } from "../methods/index.ts";
import { Tensor } from "../runtime/index.ts";
import { type BatchInputs, LENGTH_STEP, POSITION_STEP, roundUp, supervisedTokens } from "./batches.ts";
import type { Example } from "./data.ts";

/** Throws `InputError` where a method does not say that it can be trained packed. */
export function requirePackable(method: Method): void {
  if (method.properties.packable) return;
  const problem = `${method.name} cannot be trained with several sequences in one row: what it does to a token depends on more than the sequence's own tokens or prompt; set packing to false`;
  throw new InputError("CONFIG_INVALID", "packing", problem);
}

/** Rows are at most this many times as long as the longest sequence; what attention costs grows with their length. */
const LONGEST_ROW = 4;

const lengthOf = (row: readonly Example[]): number => row.reduce((sum, { tokens }) => sum + tokens.length, 0);

/**
 * Puts sequences into rows of at most `maxLength` tokens. Of rows as long as the longest sequence, or twice, three times
 * or four times as long, those are taken that leave the fewest places in all; where that is the same, the shorter.
 */
export function packRows(examples: readonly Example[], maxLength: number): Example[][] {
  const sorted = examples.toSorted((a, b) => b.tokens.length - a.tokens.length);
  const longest = sorted[0]?.tokens.length ?? 0;
  let best: Example[][] = [];
  let fewest = Number.POSITIVE_INFINITY;
  for (let times = 1; times <= LONGEST_ROW; times++) {
    const rows = firstFit(sorted, Math.min(times * longest, Math.max(longest, maxLength)));
    const places = rows.length * Math.max(0, ...rows.map(lengthOf));
    if (places < fewest) [best, fewest] = [rows, places];
  }
  return best;
}

/** Each sequence, longest first, goes into the first row with room. */
function firstFit(sorted: readonly Example[], capacity: number): Example[][] {
  const rows: { examples: Example[]; room: number }[] = [];
  for (const example of sorted) {
    const { length } = example.tokens;
    const row = rows.find(({ room }) => room >= length);
    if (row) {
      row.examples.push(example);
      row.room -= length;
    } else rows.push({ examples: [example], room: capacity - length });
  }
  return rows.map((row) => row.examples);
}

/** Segment of padding, which no sequence has. */
const PADDING = -1n;

/** The inputs of one pass over M sequences in B rows of T tokens; prompts of at most P tokens, S supervised positions. */
export class PackedBatch implements BatchInputs {
  readonly inputs: ReadonlyMap<string, Tensor>;
  readonly supervised: number;

  constructor(rows: readonly (readonly Example[])[], maxLength: number) {
    const all = rows.flat();
    const [B, M] = [rows.length, all.length];
    const longest = Math.max(...rows.map(lengthOf));
    const T = Math.max(longest, Math.min(roundUp(longest, LENGTH_STEP), maxLength));
    const longestPrompt = Math.max(...all.map(({ promptLength }) => promptLength));
    const P = Math.min(roundUp(longestPrompt, LENGTH_STEP), T);
    this.supervised = supervisedTokens(all);
    const S = roundUp(this.supervised, POSITION_STEP);
    const tokens = new BigInt64Array(B * T);
    const segments = new BigInt64Array(B * T).fill(PADDING);
    const tokenPositions = new BigInt64Array(B * T);
    const sampleOf = new BigInt64Array(B * T); // that of padding is without effect
    const promptRows = new BigInt64Array(M * P);
    const promptMask = new Float32Array(M * P);
    const positions = new BigInt64Array(S);
    const labels = new BigInt64Array(S);
    const weights = new Float32Array(S);
    let m = 0;
    let s = 0;
    for (const [b, row] of rows.entries()) {
      let at = b * T;
      for (const example of row) {
        for (const [t, id] of example.tokens.entries()) {
          tokens[at] = BigInt(id);
          segments[at] = BigInt(m);
          tokenPositions[at] = BigInt(t);
          sampleOf[at] = BigInt(m);
          if (t < example.promptLength) {
            promptRows[m * P + t] = BigInt(at);
            promptMask[m * P + t] = 1;
          } else {
            positions[s] = BigInt(at - 1); // the position before a token predicts it
            labels[s] = BigInt(id);
            weights[s] = 1;
            s++;
          }
          at++;
        }
        m++;
      }
    }
    this.inputs = new Map([
      ["tokens", Tensor.from("int64", [B, T], tokens)],
      ["segments", Tensor.from("int64", [B, T], segments)],
      ["tokenPositions", Tensor.from("int64", [B, T], tokenPositions)],
      ["sampleOf", Tensor.from("int64", [B * T], sampleOf)],
      ["promptRows", Tensor.from("int64", [M, P], promptRows)],
      ["promptMask", Tensor.from("float32", [M, P], promptMask)],
      ["positions", Tensor.from("int64", [S], positions)],
      ["labels", Tensor.from("int64", [S], labels)],
      ["weights", Tensor.from("float32", [S], weights)],
    ]);
  }

  [Symbol.dispose](): void {
    for (const tensor of this.inputs.values()) tensor.dispose();
  }
}

/** Splits a batch into groups of at most `size` packed rows. */
export function packedBatches(batch: readonly Example[], size: number, maxLength: number): Example[][][] {
  const rows = packRows(batch, maxLength);
  return Array.from({ length: Math.ceil(rows.length / size) }, (_, i) => rows.slice(i * size, (i + 1) * size));
}
