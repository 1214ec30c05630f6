/** @file Attention over a cache as simple nodes, where the runtime has no fused one that can be relied upon. */
import { dtypeInfo } from "../dtype.ts";
import { int, ints, type Lowering, type OnnxAttributes } from "../lowering.ts";
import type { Attention } from "./transformer.ts";

/** Names of the inputs of a `groupQueryAttention`; "" is one that is not given. */
export interface AttentionInputs {
  /** With key and value in it, where these are not given. */
  readonly query: string;
  readonly key: string;
  readonly value: string;
  readonly pastKey: string;
  readonly pastValue: string;
  readonly last: string;
  readonly total: string;
  readonly cos: string;
  readonly sin: string;
  readonly bias: string;
}

/** Adds to hidden scores, far below any of those that are seen. */
const HIDDEN = -1e30;

/** A new token of a sequence sees as many positions of the cache as come before it, and itself. */
export function lowerAttention(to: Lowering<Attention>, inputs: AttentionInputs): void {
  const { numHeads, kvNumHeads, rotaryInterleaved, softcap, localWindowSize } = to.attributes;
  const headDim = to.node.outputs[1]!.shape[3] as number;
  const scale = to.attributes.scale ?? 1 / Math.sqrt(headDim);
  const { last, total, cos, sin, bias } = inputs;
  const step = (type: string, from: readonly string[], attributes: OnnxAttributes = {}, domain = ""): string =>
    to.emit(type, from, attributes, [to.temporary()], domain as "");
  const number = (value: number): string => to.constant("float32", [], [value]);
  const shaped = (x: string, ...dims: number[]): string => step("Reshape", [x, to.int64s(dims)]);
  const axes = (x: string, ...at: number[]): string => step("Unsqueeze", [x, to.int64s(at)]);
  const int64 = (x: string): string => step("Cast", [x], { to: int(dtypeInfo.int64.code) });
  const size = (x: string, axis: number): string => step("Shape", [x], { start: int(axis), end: int(axis + 1) }); // [1]
  const upTo = (count: string): string =>
    step("Range", [to.constant("int64", [], [0]), shaped(count), to.constant("int64", [], [1])]);

  const [query, key, value] = inputs.key === "" ? parts() : [inputs.query, inputs.key, inputs.value];
  const tokens = size(query, 1);
  const first = step("Sub", [int64(last), step("Sub", [tokens, to.int64s([1])])]); // [B]
  const positions = step("Add", [axes(first, 1), axes(upTo(tokens), 0)]); // [B, T]
  const heads = (x: string, count: number, rotated: boolean): string => {
    const own = step("Transpose", [shaped(x, 0, 0, count, headDim)], { perm: ints([0, 2, 1, 3]) }); // [B, heads, T, D]
    if (!rotated) return own;
    const attributes = { interleaved: int(rotaryInterleaved) };
    return step("RotaryEmbedding", [own, positions, cos, sin], attributes, "com.microsoft");
  };
  const queries = heads(query, numHeads, cos !== "");
  const places = inputs.pastKey === "" ? "" : placesInCache();
  const present = (past: string, x: string, out: string): string => {
    if (past === "") return to.emit("Identity", [x], {}, [out]);
    return to.emit("ScatterND", [past, places, x], {}, [out]);
  };
  const length = shaped(int64(total), 1);
  const seen = (x: string): string => step("Slice", [x, to.int64s([0]), length, to.int64s([2])]); // [B, kvHeads, L, D]
  const keys = seen(present(inputs.pastKey, heads(key, kvNumHeads, cos !== ""), to.out(1)));
  const values = seen(present(inputs.pastValue, heads(value, kvNumHeads, false), to.out(2)));

  // Heads that share keys and values are stacked along the tokens.
  const stacked = (x: string, width: string): string =>
    step("Reshape", [x, step("Concat", [to.int64s([0, kvNumHeads, -1]), width], { axis: int(0) })]);
  const perHead = (x: string, width: string): string =>
    step("Reshape", [x, step("Concat", [to.int64s([0, numHeads, -1]), width], { axis: int(0) })]);
  const dim = to.int64s([headDim]);
  const turned = step("Transpose", [keys], { perm: ints([0, 1, 3, 2]) });
  const product = perHead(step("MatMul", [stacked(queries, dim), turned]), length); // [B, heads, T, L]
  let scores = step("Mul", [product, number(scale)]);
  if (softcap) scores = step("Mul", [step("Tanh", [step("Mul", [scores, number(1 / softcap)])]), number(softcap)]);
  if (bias !== "") scores = step("Add", [scores, bias]);
  const columns = upTo(length);
  const rows = axes(positions, 1, 3); // [B, 1, T, 1]
  let visible = step("LessOrEqual", [columns, rows]);
  if (localWindowSize !== undefined) {
    const from = step("Sub", [rows, to.constant("int64", [], [localWindowSize])]);
    visible = step("And", [visible, step("Greater", [columns, from])]);
  }
  const weights = step("Softmax", [step("Where", [visible, scores, number(HIDDEN)])], { axis: int(-1) });
  const mixed = perHead(step("MatMul", [stacked(weights, length), values]), dim); // [B, heads, T, D]
  const back = step("Transpose", [mixed], { perm: ints([0, 2, 1, 3]) });
  to.emit("Reshape", [back, to.int64s([0, 0, numHeads * headDim])], {}, [to.out()]);

  function parts(): [string, string, string] {
    const sizes = [numHeads, kvNumHeads, kvNumHeads].map((count) => count * headDim);
    const names = sizes.map(() => to.temporary()) as [string, string, string];
    to.emit("Split", [inputs.query, to.int64s(sizes)], { axis: int(2) }, names);
    return names;
  }

  /** Row, head and position of each key of the new tokens, int64 [B, kvHeads, T, 3]. */
  function placesInCache(): string {
    const batch = size(last, 0);
    const shape = step("Concat", [batch, to.int64s([kvNumHeads]), tokens, to.int64s([1])], { axis: int(0) });
    const head = to.constant(
      "int64",
      [kvNumHeads, 1, 1],
      Array.from({ length: kvNumHeads }, (_, i) => i),
    );
    const each = [axes(upTo(batch), 1, 2, 3), head, axes(positions, 1, 3)].map((x) => step("Expand", [x, shape]));
    return step("Concat", each, { axis: int(3) });
  }
}
