/** @file Reverse-mode differentiation: walks the rules of the op table backwards from a loss and appends the nodes of the gradient. */
import { isFloat } from "./dtype.ts";
import { GraphError } from "./errors.ts";
import type { Node, Value } from "./graph.ts";
import { add } from "./ops/elementwise.ts";
import { zeros } from "./ops/indexing.ts";
import { sumTo } from "./ops/reduce.ts";
import { type Recomputation, Recomputer } from "./recompute.ts";
import { formatShape, shapesEqual } from "./shape.ts";

/** Where an error of the backward pass happened, in the words of the forward pass. */
const place = (node: Node): string => (node.site === "" ? node.op.name : `${node.op.name} at "${node.site}"`);

/** Values through which the loss may depend on `wrt`: nothing else gets an adjoint. */
function dependents(nodes: readonly Node[], wrt: readonly Value[]): Set<Value> {
  const needed = new Set(wrt);
  for (const node of nodes) {
    if (node.op.zeroGradient || !node.inputs.some((input) => needed.has(input))) continue;
    for (const output of node.outputs) if (isFloat(output.dtype)) needed.add(output);
  }
  return needed;
}

/**
 * Gradient of a scalar with respect to values of its graph.
 *
 * @param loss floating point of shape []
 * @param wrt inputs, parameters or intermediate values
 * @param recompute what the backward pass computes again in segments (`Graph.segment`), to keep less; default nothing.
 *   Outputs that need a segment's values should be declared before.
 * @returns one value per entry of `wrt`, of its shape; zeros where the loss does not depend on it
 * @throws GraphError NO_GRADIENT if the way from the loss to `wrt` leads through an op without a rule
 */
export function grad(loss: Value, wrt: readonly Value[], recompute: Recomputation = "nothing"): Value[] {
  const { graph } = loss;
  if (loss.shape.length !== 0 || !isFloat(loss.dtype)) {
    throw new GraphError("SHAPE_MISMATCH", `grad: the loss must be one floating-point number, not ${loss}`);
  }
  const nodes = loss.origin.kind === "node" ? graph.nodes.slice(0, loss.origin.node.id + 1) : [];
  const needed = dependents(nodes, wrt);
  const recomputer = new Recomputer(
    recompute,
    nodes,
    graph.outputs.map(({ value }) => value),
  );
  const contributions = new Map<Value, Value[]>([[loss, [graph.scalar(1, loss.dtype)]]]);

  const adjoint = (value: Value): Value | undefined => {
    const parts = contributions.get(value);
    if (parts === undefined) return undefined;
    const total = parts.reduce((a, b) => add(a, b));
    contributions.set(value, [total]);
    return total;
  };

  for (const node of nodes.reverse()) {
    if (!node.outputs.some((output) => contributions.has(output) && needed.has(output))) continue;
    if (!node.inputs.some((input) => needed.has(input))) continue; // made one of `wrt`
    graph.withSite(node.site === "" ? "grad" : `grad.${node.site}`, () => {
      const adjoints = node.outputs.map(adjoint);
      const first = adjoints.find((part) => part !== undefined)!;
      const rule = backward(node, recomputer.copiesOf(node, first), adjoints);
      node.inputs.forEach((input, i) => {
        if (!needed.has(input)) return;
        const contribution = rule[i];
        if (contribution === null) return;
        if (contribution === undefined) throw noGradient(node, `for its operand ${i}, ${input}`);
        const part = sumTo(contribution(), input.shape);
        if (!shapesEqual(part.shape, input.shape) || part.dtype !== input.dtype) {
          throw new GraphError(
            "SHAPE_MISMATCH",
            `the gradient rule of ${place(node)} gives ${part} for operand ${i}, ${input}`,
          );
        }
        const parts = contributions.get(input);
        if (parts) parts.push(part);
        else contributions.set(input, [part]);
      });
    });
  }
  return wrt.map((value) => adjoint(value) ?? zeros(graph, value.shape, value.dtype, value));
}

function backward(
  node: Node,
  { inputs, outputs }: Pick<Node, "inputs" | "outputs">,
  adjoints: readonly (Value | undefined)[],
): ReturnType<NonNullable<Node["op"]["gradient"]>> {
  if (node.op.gradient === undefined)
    throw noGradient(node, `(${node.inputs.map((v) => formatShape(v.shape)).join(", ")})`);
  return node.op.gradient({
    inputs,
    outputs,
    adjoints,
    attributes: node.attributes,
    get g() {
      const [output] = outputs;
      return adjoints[0] ?? zeros(output!.graph, output!.shape, output!.dtype, output);
    },
  });
}

function noGradient(node: Node, detail: string): GraphError {
  const advice = "use an op that has one, or stopGradient on its operand";
  return new GraphError("NO_GRADIENT", `${place(node)} ${detail} has no gradient rule; ${advice}`);
}
