/** @file What is exported: the nodes and leaves that outputs depend on, sums folded into products, and updates in place proven safe. */
import { GraphError } from "./errors.ts";
import type { Graph, GraphOutput, Node, Value } from "./graph.ts";
import { elementwiseOps } from "./ops/elementwise.ts";
import { linearOps, takesAsC } from "./ops/linear.ts";
import { shapesEqual } from "./shape.ts";

export interface Plan {
  /** In topological order. */
  readonly nodes: readonly Node[];
  /** Inputs and parameters, in order of creation. */
  readonly leaves: readonly Value[];
  /** How often each value is read; outputs of the graph count. */
  readonly uses: ReadonlyMap<Value, number>;
  /** Sums that become the C of one of their operands, a product used nowhere else. */
  readonly fused: ReadonlyMap<Node, { gemm: Node; c: Value }>;
  /** The value behind ops that emit no node. */
  resolve(value: Value): Value;
}

function resolve(value: Value): Value {
  let source = value;
  while (source.origin.kind === "node" && source.origin.node.op.alias !== undefined) {
    source = source.origin.node.inputs[source.origin.node.op.alias]!;
  }
  return source;
}

export function analyse(graph: Graph): Plan {
  const uses = new Map<Value, number>();
  const reached = new Set<Node>();
  const leaves = new Set<Value>();
  const open: Node[] = [];
  const read = (value: Value): void => {
    const source = resolve(value);
    uses.set(source, (uses.get(source) ?? 0) + 1);
    if (source.origin.kind === "input" || source.origin.kind === "parameter") leaves.add(source);
    if (source.origin.kind === "node" && !reached.has(source.origin.node)) {
      reached.add(source.origin.node);
      open.push(source.origin.node);
    }
  };
  for (const { value } of graph.outputs) read(value);
  for (let node = open.pop(); node !== undefined; node = open.pop()) node.inputs.forEach(read);

  const ordered = [...reached].sort((a, b) => a.id - b.id);
  const fused = new Map<Node, { gemm: Node; c: Value }>();
  const absorbed = new Set<Node>();
  for (const node of ordered) {
    const found = node.op === elementwiseOps.add ? productToFuse(node, uses) : undefined;
    if (found) {
      fused.set(node, found);
      absorbed.add(found.gemm);
    }
  }
  const replaced = new Map<Value, Node[]>();
  for (const { replaces } of graph.outputs) if (replaces) replaced.set(replaces, []);
  for (const node of ordered)
    for (const operand of new Set(node.inputs.map(resolve))) replaced.get(operand)?.push(node);
  for (const output of graph.outputs) {
    if (output.replaces) checkInPlace(output, output.replaces, replaced.get(output.replaces)!);
  }
  return {
    nodes: lastFirst(
      ordered.filter((node) => !absorbed.has(node)),
      (node) => fused.get(node)?.gemm.inputs.concat(fused.get(node)!.c) ?? node.inputs,
    ),
    leaves: [...leaves].sort((a, b) => a.id - b.id),
    uses,
    fused,
    resolve,
  };
}

/**
 * Nodes in the order to write them. The runtime takes the nodes that no other node reads from the last to the first, each
 * with all that it needs and that is not there yet. So those stand at the end, the ones that need least last: what they
 * read (a layer's activations, for the gradients of its parameters) is then free before the next of them begins.
 */
function lastFirst(nodes: readonly Node[], inputsOf: (node: Node) => readonly Value[]): Node[] {
  const read = new Set<Node>();
  const eachInput = (node: Node, visit: (from: Node) => void): void => {
    for (const input of inputsOf(node)) {
      const { origin } = resolve(input);
      if (origin.kind === "node") visit(origin.node);
    }
  };
  for (const node of nodes) eachInput(node, (from) => read.add(from));
  const needs = (node: Node): number => {
    let last = -1;
    eachInput(node, ({ id }) => {
      last = Math.max(last, id);
    });
    return last;
  };
  const final = nodes.filter((node) => !read.has(node)).map((node) => ({ node, last: needs(node) }));
  return [...nodes.filter((node) => read.has(node)), ...final.sort((a, b) => b.last - a.last).map(({ node }) => node)];
}

/** A product without C that only this sum reads: its C can be the other operand, which saves a pass over the result. */
function productToFuse(sum: Node, uses: ReadonlyMap<Value, number>): { gemm: Node; c: Value } | undefined {
  for (const [product, other] of [sum.inputs, [...sum.inputs].reverse()]) {
    const { origin, shape } = resolve(product!);
    if (
      origin.kind === "node" &&
      origin.node.op === linearOps.gemm &&
      origin.node.inputs.length === 2 &&
      uses.get(resolve(product!)) === 1 &&
      takesAsC(other!) &&
      shapesEqual(shape, sum.outputs[0]!.shape)
    ) {
      return { gemm: origin.node, c: other! };
    }
  }
  return undefined;
}

/**
 * An output bound to the buffer of an input may be written only when nothing can read the input any more: every node
 * that reads it must be the one that writes, or come before it on a path of data.
 */
function checkInPlace({ name, value }: GraphOutput, input: Value, readers: readonly Node[]): void {
  const source = resolve(value);
  if (source.dtype !== input.dtype || !shapesEqual(source.shape, input.shape)) {
    throw new GraphError("SHAPE_MISMATCH", `output "${name}" is ${source} and cannot replace ${input}`);
  }
  const writer = source.origin.kind === "node" ? source.origin.node : undefined;
  if (readers.every((node) => node === writer)) return;
  const before = new Set<Node>();
  const open = writer ? [writer] : [];
  for (let node = open.pop(); node !== undefined; node = open.pop()) {
    if (before.has(node)) continue;
    before.add(node);
    for (const operand of node.inputs) {
      const { origin } = resolve(operand);
      if (origin.kind === "node") open.push(origin.node);
    }
  }
  const late = readers.find((node) => !before.has(node));
  if (late) {
    const place = late.site === "" ? late.op.name : `${late.op.name} at "${late.site}"`;
    const advice = "make the output depend on that node, or bind separate buffers";
    throw new GraphError(
      "UNSAFE_IN_PLACE",
      `output "${name}" may be written before ${place} reads the input; ${advice}`,
    );
  }
}
