/** @file A frozen linear weight in the graph, in whatever form it is stored. */
import { add, type Graph, gemm, hasLinear, matmulNBits, type Value } from "../graph/index.ts";
import { type FrozenWeights, quantizedNames } from "./forward.ts";

export interface StoredWeights extends Pick<FrozenWeights, "form" | "provideWideScales"> {
  /** Whether gradients will be taken, see `ForwardInputs`. */
  readonly differentiable: boolean;
}

/** rows [R, in] times the frozen weight `name` [out, in], transposed, and `bias` [out]: [R, out]. */
export function project(
  g: Graph,
  { form, differentiable, provideWideScales }: StoredWeights,
  name: string,
  rows: Value,
  outFeatures: number,
  bias?: Value,
): Value {
  const inFeatures = rows.shape[1] as number;
  if (form.kind === "float32") {
    const weight = g.parameter(name, "float32", [outFeatures, inFeatures]);
    return gemm(rows, weight, { transB: true, ...(bias && { c: bias }) });
  }
  const blocks = Math.ceil(inFeatures / form.blockSize);
  const { kind, blockSize } = form;
  const bits = kind === "int4" ? 4 : 8;
  const names = quantizedNames(name, kind);
  const narrow = !differentiable && hasLinear(rows, blockSize);
  if (!narrow) provideWideScales(name);
  const weight = {
    quantized: g.parameter(names.quantized, "uint8", [outFeatures, blocks, (blockSize * bits) / 8]),
    scales: narrow
      ? g.parameter(names.scales, "float16", [outFeatures * blocks])
      : g.parameter(names.wideScales, "float32", [outFeatures * blocks]),
    K: inFeatures,
    N: outFeatures,
    bits,
    blockSize,
  } as const;
  const plus = (y: Value): Value => (bias ? add(y, bias) : y);
  if (!differentiable) return plus(matmulNBits(rows, { ...weight, accuracyLevel: 4 }));
  const levels = () =>
    g.parameter(names.levels, kind === "int4" ? "uint4" : "uint8", [outFeatures, blocks * blockSize]);
  return plus(matmulNBits(rows, { ...weight, levels, accuracyLevel: 1 }));
}
