/** @file What an op's lowering to ONNX may use: names of its inputs and outputs, small constants, and emitting nodes. */
import type { DeviceName, DType, OPERATOR_DOMAIN, TensorData } from "../runtime/index.ts";
import type { Node } from "./graph.ts";

export type Domain = "" | "com.microsoft" | typeof OPERATOR_DOMAIN;

export type OnnxAttribute =
  | { readonly int: number }
  | { readonly ints: readonly number[] }
  | { readonly float: number }
  | { readonly string: string };

export type OnnxAttributes = Readonly<Record<string, OnnxAttribute | undefined>>;

export interface Lowering<A> {
  /** Where the graph is to run. What the runtime cannot do there it does on the CPU, and copies the inputs to it. */
  readonly device: DeviceName;
  readonly node: Node;
  readonly attributes: A;
  /** Name of an input; "" (ONNX: not given) when there is no such input. */
  in(index: number): string;
  /** All input names. */
  readonly ins: readonly string[];
  /** Name of an output. */
  out(index?: number): string;
  readonly outs: readonly string[];
  /** Name of an output, or "" when nothing reads it and ONNX lets it be left out. */
  optionalOut(index: number): string;
  /** A name for a value between the nodes of one lowering. */
  temporary(): string;
  constant(dtype: DType, shape: readonly number[], data: TensorData | readonly number[]): string;
  /** A 1-D int64 constant: axes, shapes, bounds. */
  int64s(values: readonly (number | bigint)[]): string;
  /** Adds a node. `outputs` defaults to all outputs; returns the first output's name. */
  emit(
    type: string,
    inputs: readonly string[],
    attributes?: OnnxAttributes,
    outputs?: readonly string[],
    domain?: Domain,
  ): string;
}

export const int = (value: number | boolean): OnnxAttribute => ({ int: Number(value) });
export const ints = (values: readonly number[]): OnnxAttribute => ({ ints: values });
export const float = (value: number): OnnxAttribute => ({ float: value });

/** Lowering of an op that is one ONNX node with the same inputs and outputs. */
export function onnx<A>(
  type: string,
  attributes: (attributes: A) => OnnxAttributes = () => ({}),
  domain: Domain = "",
): (to: Lowering<A>) => void {
  return (to) => {
    to.emit(type, to.ins, attributes(to.attributes), to.outs, domain);
  };
}
