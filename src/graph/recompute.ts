/** @file Recomputation: the backward pass reads copies of a segment's values, made from the few that are kept (Chen et al. 2016). */
import { isFloat } from "./dtype.ts";
import type { Node, Value } from "./graph.ts";
import { waitFor, zeroAfter } from "./ops/flow.ts";
import { linearOps } from "./ops/linear.ts";
import { quantizedOps } from "./ops/quantized.ts";

/**
 * What of a segment is computed again in the backward pass, of all that has a symbol among its sizes:
 * - `nothing`;
 * - `light`: all but products with matrices, which cost much more than what they save;
 * - `all`, from the values that other segments gave.
 */
export type Recomputation = "nothing" | "light" | "all";

/** Whether computing a node again would take about as long as all the rest of its segment. */
function isHeavy({ op, outputs }: Node): boolean {
  if (op === linearOps.gemm || op === quantizedOps.matmulNBits) return true;
  // Attention's scores grow with the square of the length: recomputed. Its result does not: kept.
  return op === linearOps.matmul && outputs[0]!.shape.slice(-2).some((dim) => typeof dim === "number");
}

/** Gives the gradient rules of a segment's nodes what they read. */
export class Recomputer {
  readonly #what: Recomputation;
  /** Values made in a segment that are read outside of it. */
  readonly #kept = new Set<Value>();
  /** By segment. */
  readonly #zeros = new Map<number, Value>();
  readonly #copies = new Map<number, Map<Value, Value>>();

  /** @param nodes of the forward pass, in order */
  constructor(what: Recomputation, nodes: readonly Node[], outputs: readonly Value[]) {
    this.#what = what;
    if (what === "nothing") return;
    for (const { segment, inputs } of nodes) for (const input of inputs) this.#readIn(input, segment);
    for (const output of outputs) this.#readIn(output, undefined);
  }

  #readIn(value: Value, reader: number | undefined): void {
    const { origin } = value;
    if (origin.kind !== "node" || origin.node.segment === undefined || origin.node.segment === reader) return;
    this.#kept.add(value);
    const { op, inputs } = origin.node;
    if (op.alias !== undefined) this.#readIn(inputs[op.alias]!, reader);
  }

  /**
   * Inputs and outputs for the gradient rule of a node.
   * @param adjoint one of those that the segment is entered with in the backward pass; copies come after it
   */
  copiesOf(node: Node, adjoint: Value): Pick<Node, "inputs" | "outputs"> {
    const { segment } = node;
    if (segment === undefined || this.#what === "nothing") return node;
    if (!this.#zeros.has(segment)) this.#zeros.set(segment, zeroAfter(adjoint));
    const copy = (value: Value): Value => this.#copy(value, segment);
    return { inputs: node.inputs.map(copy), outputs: node.outputs.map(copy) };
  }

  #copy(value: Value, segment: number): Value {
    const { graph, origin } = value;
    if (origin.kind !== "node") return value;
    let known = this.#copies.get(segment);
    if (known === undefined) {
      known = new Map();
      this.#copies.set(segment, known);
    }
    const found = known.get(value);
    if (found !== undefined) return found;
    const { node, index } = origin;
    let copy: Value;
    if (node.segment !== segment || this.#kept.has(value) || (this.#what === "light" && isHeavy(node))) {
      // The copies must be other expressions than the originals, and be computed late: their inputs see to both. What is of
      // one size for all batches comes from parameters alone: it is small, and so is what is computed from nothing else.
      const ofBatch = isFloat(value.dtype) && value.shape.some((dim) => typeof dim === "string");
      copy = ofBatch ? waitFor(value, this.#zeros.get(segment)!) : value;
    } else {
      const inputs = node.inputs.map((input) => this.#copy(input, segment));
      copy = graph.withSite(`again.${node.site}`, () => graph.apply(node.op, inputs, node.attributes))[index]!;
    }
    known.set(value, copy);
    return copy;
  }
}
