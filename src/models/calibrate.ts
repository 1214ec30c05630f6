/** @file What a model's linear modules see in a text: second moments of their inputs, which say what rounding costs. */
import { setImmediate } from "node:timers/promises";
import { InputError } from "../base/index.ts";
import { exportOnnx, Graph, matmul, transpose, type Value } from "../graph/index.ts";
import { Session, Tensor } from "../runtime/index.ts";
import type { Backbone } from "./backbone.ts";
import { HEAD } from "./layout.ts";

/** Sequences of the text, and their length in tokens. */
const SEQUENCES = 64;
const LENGTH = 256;
const BATCH = 8;
/** Bytes of moments that are collected in one pass over the text. */
const PASS_BYTES = 2 ** 30;

/** Σ xᵀx of the inputs of a weight, float64 [in, in]; several weights may read the same. */
export type Moments = ReadonlyMap<string, Float64Array>;

/** Weights that read the same rows, and how wide those are. */
interface Group {
  readonly weights: readonly string[];
  readonly width: number;
}

function groupsOf({ sites, config }: Backbone): Group[] {
  const groups = new Map<string, { weights: string[]; width: number }>();
  for (const { path, layer, readsBlockInput, inFeatures } of sites) {
    const key = readsBlockInput ? `${layer} ${path.split(".").at(-2)}` : path;
    const group = groups.get(key) ?? { weights: [], width: inFeatures };
    group.weights.push(`${path}.weight`);
    groups.set(key, group);
  }
  return [...groups.values(), { weights: [HEAD], width: config.hiddenSize }];
}

/** The text as rows of tokens. @throws InputError DATA_INVALID when it is too short for one */
export function calibrationRows(backbone: Backbone, text: string, where: string): number[][] {
  const { tokenizer, config } = backbone;
  const length = Math.min(LENGTH, config.maxPositions);
  const begin = tokenizer.bosTokenId === undefined ? [] : [tokenizer.bosTokenId];
  const ids = tokenizer.encode(text, { addSpecialTokens: false });
  const own = length - begin.length;
  const rows: number[][] = [];
  for (let at = 0; at + own <= ids.length && rows.length < SEQUENCES; at += own) {
    rows.push([...begin, ...ids.slice(at, at + own)]);
  }
  if (rows.length > 0) return rows;
  throw new InputError("DATA_INVALID", where, `has ${ids.length} tokens; calibration wants at least ${own}`);
}

/**
 * Runs the text through the model and collects the moments of groups of weights, as many at a time as fit into memory.
 * The caller is given each pass's moments and should be done with them before the next.
 */
export async function* moments(backbone: Backbone, rows: readonly number[][]): AsyncGenerator<Moments> {
  let left = groupsOf(backbone);
  while (left.length > 0) {
    let bytes = 0;
    const pass: Group[] = [];
    for (const group of left) {
      bytes += 12 * group.width ** 2;
      if (pass.length > 0 && bytes > PASS_BYTES) break;
      pass.push(group);
    }
    left = left.slice(pass.length);
    yield await collect(backbone, rows, pass);
  }
}

async function collect(backbone: Backbone, rows: readonly number[][], groups: readonly Group[]): Promise<Moments> {
  const firsts = new Map(groups.map((group) => [group.weights[0]!, group]));
  const graph = new Graph();
  const tokens = graph.input("tokens", "int64", ["B", "T"]);
  const observe = (weight: string, x: Value): void => {
    if (firsts.has(weight)) graph.output(`moments.${weight}`, matmul(transpose(x), x));
  };
  const { hidden } = backbone.forward(graph, {
    tokens,
    attention: { kind: "full" },
    hooks: {
      linear(site, x, y) {
        observe(`${site.path}.weight`, x);
        return y;
      },
    },
  });
  observe(HEAD, hidden);
  using session = Session.create(exportOnnx(graph), { initializers: backbone.initializers(), prepacking: false });
  const sums = new Map<string, Float64Array>();
  for (let at = 0; at < rows.length; at += BATCH) {
    const batch = rows.slice(at, at + BATCH);
    using input = Tensor.from("int64", [batch.length, batch[0]!.length], BigInt64Array.from(batch.flat(), BigInt));
    const results = session.call({ tokens: input });
    for (const [weight, { width }] of firsts) {
      using result = results[`moments.${weight}`]!;
      const values = result.data as Float32Array;
      const sum = sums.get(weight) ?? new Float64Array(width * width);
      for (let i = 0; i < values.length; i++) sum[i]! += values[i]!;
      sums.set(weight, sum);
    }
    await setImmediate();
  }
  return new Map([...firsts].flatMap(([first, { weights }]) => weights.map((weight) => [weight, sums.get(first)!])));
}
