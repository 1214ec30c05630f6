/** @file Fused ops of language models: RMS norm, rotary positions, grouped attention with a cache. */
import { hasFusedAttention, OPERATOR_DOMAIN } from "../../runtime/index.ts";
import { type Graph, type None, none, producedBy, type Value } from "../graph.ts";
import { float, int, type Lowering, type OnnxAttributes } from "../lowering.ts";
import { addDims, type Dim, formatShape, mulDims, shapesEqual } from "../shape.ts";
import { lowerAttention } from "./attention.ts";
import { apply1, needDtype, needFloat, op, sameDtype } from "./common.ts";
import { mul, neg, silu, sub } from "./elementwise.ts";
import { layoutOps, reshape } from "./layout.ts";
import { mean } from "./reduce.ts";

export interface Attention {
  numHeads: number;
  kvNumHeads: number;
  scale?: number;
  softcap?: number;
  localWindowSize?: number;
  doRotary: boolean;
  rotaryInterleaved: boolean;
  packed: boolean;
  past: boolean;
  /** The cache is float16, two numbers in each of its float32. */
  halves: boolean;
  rotary: boolean;
  bias: boolean;
}

export const transformerOps = {
  /**
   * y = x r w with r = 1 / sqrt(mean(x²) + eps) over the last axis (Zhang & Sennrich 2019, eq. 4). Outputs: y, and r
   * for the gradient: dx = r (g w - x r mean(g y)), dw = Σ g x r.
   */
  rmsNorm: op<{ eps: number }>("rmsNorm", {
    infer(at) {
      const [x, weight] = at.inputs;
      needFloat(at);
      sameDtype(at);
      if (x!.shape.length === 0 || !shapesEqual(weight!.shape, x!.shape.slice(-1))) {
        at.fail(
          "SHAPE_MISMATCH",
          `weight ${formatShape(weight!.shape)} does not scale the last axis of ${formatShape(x!.shape)}`,
        );
      }
      return [x!, { dtype: x!.dtype, shape: [...x!.shape.slice(0, -1), 1] }];
    },
    lower(to) {
      if (to.node.inputs[0]!.dtype === "float64") return lowerRmsNorm64(to);
      const attributes = { axis: int(-1), epsilon: float(to.attributes.eps), stash_type: int(1) };
      const once = to.optionalOut(1) === "";
      // On WebGPU its second output is something else.
      const apart = !once && to.device === "webgpu";
      if (apart) lowerInverseRms(to);
      to.emit("SimplifiedLayerNormalization", to.ins, attributes, once || apart ? [to.out()] : to.outs);
    },
    gradient: ({ inputs: [x, weight], outputs: [y, r], g }) => [
      () => {
        const along = mean(mul(g, y!), { axes: [-1], keepDims: true });
        return mul(sub(mul(g, weight!), mul(x!, mul(r!, along))), r!);
      },
      () => mul(g, mul(x!, r!)),
    ],
  }),
  /** Outputs: rmsNorm(x + skip), and the sum x + skip. */
  skipRmsNorm: op<{ eps: number }>("skipRmsNorm", {
    infer(at) {
      const [x, skip, weight] = at.inputs;
      needDtype(at, x!, "float32", "float16");
      sameDtype(at);
      if (!shapesEqual(x!.shape, skip!.shape)) {
        at.fail("SHAPE_MISMATCH", `skip ${formatShape(skip!.shape)} should be ${formatShape(x!.shape)}`);
      }
      if (!shapesEqual(weight!.shape, x!.shape.slice(-1))) {
        at.fail(
          "SHAPE_MISMATCH",
          `weight ${formatShape(weight!.shape)} does not scale the last axis of ${formatShape(x!.shape)}`,
        );
      }
      return [x!, x!];
    },
    lower(to) {
      const attributes = { epsilon: float(to.attributes.eps) };
      const { shape, dtype } = to.node.inputs[0]!;
      if (shape.length === 2 && dtype === "float32" && to.node.inputs[0]!.graph.hasOperators) {
        to.emit("AddNorm", to.ins, { ...attributes, N: int(shape[1] as number) }, to.outs, OPERATOR_DOMAIN);
        return;
      }
      const outputs = to.optionalOut(1) === "" ? [to.out()] : [to.out(), "", "", to.out(1)];
      to.emit("SkipSimplifiedLayerNormalization", to.ins, attributes, outputs, "com.microsoft");
    },
  }),
  /** silu(a) b of the halves a, b of rows [N, 2 width]. Operators only. */
  gated: op<None>("gated", {
    infer: ({ inputs: [x] }) => ({ dtype: x!.dtype, shape: [x!.shape[0]!, (x!.shape[1] as number) / 2] }),
    lower(to) {
      to.emit("Gated", to.ins, { N: int((to.node.inputs[0]!.shape[1] as number) / 2) }, to.outs, OPERATOR_DOMAIN);
    },
  }),
  /** float16 in pairs, [N, D/2] of float32, as float32 [N, D]. */
  widen: op<None>("widen", {
    infer: ({ inputs: [x] }) => ({ dtype: x!.dtype, shape: [x!.shape[0]!, 2 * (x!.shape[1] as number)] }),
    lower(to) {
      to.emit("Widen", to.ins, { N: int(2 * (to.node.inputs[0]!.shape[1] as number)) }, to.outs, OPERATOR_DOMAIN);
    },
  }),
  /** The other way. */
  narrow: op<None>("narrow", {
    infer: ({ inputs: [x] }) => ({ dtype: x!.dtype, shape: [x!.shape[0]!, (x!.shape[1] as number) / 2] }),
    lower(to) {
      to.emit("Narrow", to.ins, { N: int(to.node.inputs[0]!.shape[1] as number) }, to.outs, OPERATOR_DOMAIN);
    },
  }),
  /** A rotation in planes of two features; its adjoint is the rotation back: the sine negated. */
  rotary: op<{ interleaved: boolean }>("rotary", {
    infer(at) {
      const [x, positions, cos, sin] = at.inputs;
      needDtype(at, x!, "float32", "float16");
      needDtype(at, positions!, "int64");
      sameDtype(at, [x!, cos!, sin!]);
      const headDim = x!.shape[3];
      const fits = typeof headDim === "number" && cos!.shape.length === 2 && cos!.shape[1] === headDim / 2;
      if (x!.shape.length !== 4 || !fits || !shapesEqual(cos!.shape, sin!.shape)) {
        const tables = `${formatShape(cos!.shape)} and ${formatShape(sin!.shape)}`;
        at.fail(
          "SHAPE_MISMATCH",
          `x ${formatShape(x!.shape)} should be [B, heads, T, D] and the tables ${tables} [positions, D/2]`,
        );
      }
      const expected = [x!.shape[0]!, x!.shape[2]!];
      if (!shapesEqual(positions!.shape, expected) && !shapesEqual(positions!.shape, [1])) {
        const shapes = `${formatShape(positions!.shape)} should be ${formatShape(expected)} or [1]`;
        at.fail("SHAPE_MISMATCH", `positions ${shapes} for x ${formatShape(x!.shape)}`);
      }
      return x!;
    },
    lower: (to) =>
      void to.emit(
        "RotaryEmbedding",
        to.ins,
        { interleaved: int(to.attributes.interleaved) },
        to.outs,
        "com.microsoft",
      ),
    gradient: ({ inputs: [, positions, cos, sin], attributes, g }) => [
      () => rotary(g, positions!, cos!, neg(sin!), attributes),
      null,
    ],
  }),
  /** Inputs: query, (key, value), (past key, past value), seqlens, total, (cos, sin), (bias). Outputs: y, present key and value. */
  groupQueryAttention: op<Attention>("groupQueryAttention", {
    infer(at) {
      const { numHeads, kvNumHeads, packed, past } = at.attributes;
      const query = at.inputs[0]!;
      needDtype(at, query, "float32", "float16");
      const [batch, length, width] = query.shape;
      const heads = packed ? numHeads + 2 * kvNumHeads : numHeads;
      if (query.shape.length !== 3 || typeof width !== "number" || width % heads !== 0 || numHeads % kvNumHeads !== 0) {
        at.fail(
          "SHAPE_MISMATCH",
          `query ${formatShape(query.shape)} should be [B, T, D * ${heads}] for ${numHeads} heads over ${kvNumHeads}`,
        );
      }
      const headDim = (width as number) / heads;
      // ONNX Runtime refuses others at run time only.
      if (at.attributes.rotary && headDim % 16 !== 0) {
        at.fail("SHAPE_MISMATCH", `heads of ${headDim} features cannot be rotated inside: needs a multiple of 16`);
      }
      const kv = [batch!, length!, kvNumHeads * headDim];
      const [key, value] = packed ? [] : at.inputs.slice(1, 3);
      for (const part of [key, value]) {
        if (part && !shapesEqual(part.shape, kv)) {
          at.fail(
            "SHAPE_MISMATCH",
            `key or value ${formatShape(part.shape)} should be ${formatShape(kv)} for query ${formatShape(query.shape)}`,
          );
        }
      }
      const cache = past ? at.inputs[packed ? 1 : 3] : undefined;
      const held = at.attributes.halves ? headDim / 2 : headDim;
      if (cache && (cache.shape.length !== 4 || cache.shape[1] !== kvNumHeads || cache.shape[3] !== held)) {
        at.fail("SHAPE_MISMATCH", `past ${formatShape(cache.shape)} should be [B, ${kvNumHeads}, capacity, ${held}]`);
      }
      const present = [batch!, kvNumHeads, cache ? cache.shape[2]! : addDims(length!), held];
      return [
        { dtype: query.dtype, shape: [batch!, length!, numHeads * headDim] },
        { dtype: query.dtype, shape: present },
        { dtype: query.dtype, shape: present },
      ];
    },
    lower(to) {
      const { numHeads, kvNumHeads, scale, softcap, localWindowSize, packed, past, rotary, bias } = to.attributes;
      let next = 1;
      const take = (there: boolean): string => (there ? to.in(next++) : "");
      const inputs = [to.in(0), take(!packed), take(!packed), take(past), take(past), take(true), take(true)];
      inputs.push(take(rotary), take(rotary), "", take(bias));
      if (hasAttention(to)) {
        const headDim = headDimOf(to);
        const [query, key, value, keys, values, last, , cos, sin] = inputs as [string, ...string[]];
        const attributes = {
          ...{ num_heads: int(numHeads), kv_num_heads: int(kvNumHeads), head_dim: int(headDim) },
          rotary_pairs: int(to.node.inputs.at(-1)!.shape[1] as number),
          scale: float(scale ?? 1 / Math.sqrt(headDim)),
          local_window_size: int(localWindowSize ?? 0),
          halves: int(to.attributes.halves),
        };
        const taken = [query, key!, value!, keys!, values!, last!, cos!, sin!];
        to.emit("Attention", taken, attributes, to.outs, OPERATOR_DOMAIN);
        return;
      }
      if (to.attributes.halves) throw new Error("only milora's own attention reads a cache of float16");
      if (!hasFusedAttention(to.device, to.node.inputs[0]!.shape[1]!, softcap)) {
        const [query, key, value, pastKey, pastValue, last, total, cos, sin, , given] = inputs as Eleven<string>;
        lowerAttention(to, { query, key, value, pastKey, pastValue, last, total, cos, sin, bias: given });
        return;
      }
      while (inputs.at(-1) === "") inputs.pop();
      const attributes: OnnxAttributes = {
        num_heads: int(numHeads),
        kv_num_heads: int(kvNumHeads),
        do_rotary: int(to.attributes.doRotary),
        rotary_interleaved: int(to.attributes.rotaryInterleaved),
        scale: scale === undefined ? undefined : float(scale),
        softcap: softcap === undefined ? undefined : float(softcap),
        local_window_size: localWindowSize === undefined ? undefined : int(localWindowSize),
      };
      to.emit("GroupQueryAttention", inputs, attributes, to.outs, "com.microsoft");
    },
  }),
};

type Eleven<T> = [T, T, T, T, T, T, T, T, T, T, T];

function headDimOf({ node, attributes }: Lowering<Attention>): number {
  return (node.outputs[0]!.shape[2] as number) / attributes.numHeads;
}

/** Whether milora's own operator can compute it: rotated inside. */
function hasAttention(to: Lowering<Attention>): boolean {
  const { node, attributes } = to;
  const { past, rotary: rotated, rotaryInterleaved, bias, softcap } = attributes;
  const [query] = node.inputs;
  if (!past || rotaryInterleaved || bias || query!.dtype !== "float32") return false;
  if (!hasOwnAttention(query!.graph, { rotated, headDim: headDimOf(to), softcap })) return false;
  return typeof node.inputs.at(-1)!.shape[1] === "number"; // the sines come last
}

/** The fused kernel keeps r in float32 only. */
function lowerRmsNorm64(to: Lowering<{ eps: number }>): void {
  const scaled = to.emit("Mul", [to.in(0), lowerInverseRms(to)], {}, [to.temporary()]);
  to.emit("Mul", [scaled, to.in(1)], {}, [to.out()]);
}

/** r alone. */
function lowerInverseRms(to: Lowering<{ eps: number }>): string {
  const step = (type: string, inputs: readonly string[]): string => to.emit(type, inputs, {}, [to.temporary()]);
  const eps = to.constant(to.node.inputs[0]!.dtype, [], [to.attributes.eps]);
  const square = step("ReduceMean", [step("Mul", [to.in(0), to.in(0)]), to.int64s([-1])]);
  return to.emit("Reciprocal", [step("Sqrt", [step("Add", [square, eps])])], {}, [to.out(1)]);
}

/** x / sqrt(mean(x²) + eps) · weight over the last axis. x [..., d], weight [d]. */
export function rmsNorm(x: Value, weight: Value, eps: number): Value {
  return apply1(transformerOps.rmsNorm, [x, weight], { eps });
}

/** sum = x + skip and y = rmsNorm(sum) in one node. Inference only: no gradient. x of rank 2 or 3. */
export function skipRmsNorm(x: Value, skip: Value, weight: Value, eps: number): { y: Value; sum: Value } {
  const [y, sum] = x.graph.apply(transformerOps.skipRmsNorm, [x, skip, weight], { eps });
  return { y: y!, sum: sum! };
}

/** silu(gate) · up; no gradient. One node where both are halves of one product and there are `operators`. */
export function gatedSilu(gate: Value, up: Value): Value {
  const whole = producedBy(gate, layoutOps.split)?.inputs[0];
  const halves = whole && whole === producedBy(up, layoutOps.split)?.inputs[0] && whole.shape.length === 2;
  const inOrder = halves && gate.origin.kind === "node" && gate.origin.node.outputs[0] === gate;
  const two = inOrder && shapesEqual(gate.shape, up.shape) && whole.shape[1] === 2 * (gate.shape[1] as number);
  if (!two || gate === up || gate.dtype !== "float32" || !gate.graph.hasOperators) return mul(silu(gate), up);
  return apply1(transformerOps.gated, [whole], none);
}

/**
 * Rotary position embedding (Su et al. 2021). x [B, heads, T, D]; positions int64 [B, T], or [1]: the first position;
 * cos, sin [positions, D/2]. Not interleaved: feature i is paired with i + D/2, as in transformers.
 */
export function rotary(x: Value, positions: Value, cos: Value, sin: Value, { interleaved = false } = {}): Value {
  return apply1(transformerOps.rotary, [x, positions, cos, sin], { interleaved });
}

export interface GroupQueryAttentionInputs {
  /** [B, T, heads * D]; without key and value it holds all three, [B, T, (heads + 2 * kvHeads) * D]. */
  query: Value;
  /** [B, T, kvHeads * D] */
  key?: Value;
  value?: Value;
  /**
   * [B, kvHeads, capacity, D]; bind the same buffers to `presentKey` and `presentValue` to append in place. With `halves`
   * [B, kvHeads, capacity, D/2], each number two of float16.
   */
  pastKey?: Value;
  pastValue?: Value;
  /** int32 [B]: position of the last token, total length - 1 */
  seqlensK: Value;
  /** int32 scalar: the largest total length of the batch */
  totalSequenceLength: Value;
  /** [positions, D/2]; with them query and key are rotated inside */
  cos?: Value;
  sin?: Value;
  /** Added to the scores, [B or 1, heads or 1, T, total length]. */
  attentionBias?: Value;
  numHeads: number;
  kvNumHeads: number;
  /** Default 1 / sqrt(D). */
  scale?: number;
  softcap?: number;
  localWindowSize?: number;
  rotaryInterleaved?: boolean;
  /** Only where milora's own operator computes it, see `hasOwnAttention`. */
  halves?: boolean;
}

/** Whether milora's own operator computes attention over a cache, which alone reads float16: `rotated` inside. */
export function hasOwnAttention(
  g: Graph,
  { rotated, headDim, softcap }: { rotated: boolean; headDim: number; softcap?: number | undefined },
): boolean {
  return g.hasOperators && rotated && headDim % 16 === 0 && !softcap;
}

/** float16 in pairs, [..., D/2] of float32, as float32 [..., D]; a copy. */
export function widen(x: Value): Value {
  return lastAxis(x, transformerOps.widen, 2);
}

/** The other way: rounded to nearest. */
export function narrow(x: Value): Value {
  return lastAxis(x, transformerOps.narrow, 0.5);
}

function lastAxis(x: Value, op: typeof transformerOps.widen, factor: number): Value {
  const last = x.shape.at(-1) as number;
  const rows = reshape(x, [mulDims(...x.shape.slice(0, -1)), last]);
  return reshape(apply1(op, [rows], none), [...x.shape.slice(0, -1), factor * last]);
}

/** Causal grouped-query attention with a key-value cache. Inference only: no gradient. */
export function groupQueryAttention(inputs: GroupQueryAttentionInputs): {
  y: Value;
  presentKey: Value;
  presentValue: Value;
} {
  const joint = jointProduct(inputs);
  const { query, key, value, pastKey, pastValue, seqlensK, totalSequenceLength, cos, sin, attentionBias } = joint
    ? { ...inputs, query: joint, key: undefined, value: undefined }
    : inputs;
  const values = [query, key, value, pastKey, pastValue, seqlensK, totalSequenceLength, cos, sin, attentionBias];
  const { numHeads, kvNumHeads, scale, softcap, localWindowSize, rotaryInterleaved = false, halves = false } = inputs;
  const [y, presentKey, presentValue] = query.graph.apply(
    transformerOps.groupQueryAttention,
    values.filter((part) => part !== undefined),
    {
      numHeads,
      kvNumHeads,
      ...(scale === undefined ? {} : { scale }),
      ...(softcap === undefined ? {} : { softcap }),
      ...(localWindowSize === undefined ? {} : { localWindowSize }),
      doRotary: cos !== undefined,
      rotaryInterleaved,
      packed: key === undefined,
      past: pastKey !== undefined,
      halves,
      rotary: cos !== undefined,
      bias: attentionBias !== undefined,
    },
  );
  return { y: y!, presentKey: presentKey!, presentValue: presentValue! };
}

/** What query, key and value are the parts of, [B, T, (heads + 2 * kvHeads) * D], where there are `operators`. */
function jointProduct({ query, key, value }: GroupQueryAttentionInputs): Value | undefined {
  const parts = [query, key, value].map((part) => part && producedBy(part, layoutOps.reshape)?.inputs[0]);
  const node = parts[0] && producedBy(parts[0], layoutOps.split);
  const together = node?.outputs.length === 3 && node.attributes.axis === 1;
  if (!together || !query.graph.hasOperators || node.outputs.some((output, i) => output !== parts[i])) return undefined;
  const [B, T] = query.shape as readonly [Dim, Dim];
  return reshape(node.inputs[0]!, [B, T, node.inputs[0]!.shape[1]!]);
}
