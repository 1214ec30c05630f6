/** @file The graph under construction: values, nodes, the op description they follow, and the one function that adds a node.
 *
 * A graph only grows. Every op is pure, so a node equal to an earlier one is that node (common-subexpression
 * elimination at build time), and creation order is a topological order.
 */
import { createHash } from "node:crypto";
import { type DeviceName, type DType, operators, type TensorData } from "../runtime/index.ts";
import { dtypeInfo, toBytes } from "./dtype.ts";
import { GraphError, type GraphErrorCode } from "./errors.ts";
import type { Lowering } from "./lowering.ts";
import { canonicalDim, type Dim, formatShape, type Shape } from "./shape.ts";

/** Where a value comes from. */
export type Origin =
  | { readonly kind: "input" | "parameter"; readonly name: string }
  /** Little-endian storage; `scalar` is the number itself when the shape is []. */
  | { readonly kind: "constant"; readonly bytes: Uint8Array; readonly scalar?: number }
  | { readonly kind: "node"; readonly node: Node; readonly index: number };

/** One tensor of a graph: an element type and a symbolic shape. Made by `Graph` and by the op functions only. */
export class Value {
  readonly graph: Graph;
  readonly id: number;
  readonly dtype: DType;
  readonly shape: Shape;
  /** @internal */
  readonly origin: Origin;

  /** @internal */
  constructor(graph: Graph, id: number, dtype: DType, shape: Shape, origin: Origin) {
    this.graph = graph;
    this.id = id;
    this.dtype = dtype;
    this.shape = shape;
    this.origin = origin;
  }

  toString(): string {
    return `${this.dtype} ${formatShape(this.shape)}`;
  }
}

export interface Typed {
  readonly dtype: DType;
  readonly shape: Shape;
}

/** What shape inference sees. `fail` throws a GraphError that begins with the op and the site. */
export interface Inference<A> {
  readonly inputs: readonly Value[];
  readonly attributes: A;
  fail(code: GraphErrorCode, message: string): never;
}

/** What a gradient rule sees. */
export interface Backward<A> {
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  /** Adjoint of each output; undefined where the loss does not depend on it. */
  readonly adjoints: readonly (Value | undefined)[];
  /** Adjoint of output 0. */
  readonly g: Value;
  readonly attributes: A;
}

/**
 * Contribution to the adjoint of one input, built only if that input needs it. It may be larger than the input by
 * broadcasting: the caller sums it to the input's shape. `null` states that the derivative is zero;
 * `undefined` that there is no rule.
 */
export type Contribution = (() => Value) | null | undefined;

/** Everything the project knows about one op. `A` are its attributes. */
export interface Op<A = unknown> {
  readonly name: string;
  infer(at: Inference<A>): Typed | readonly Typed[];
  /** Emits the ONNX nodes. */
  lower(to: Lowering<A>): void;
  gradient?(at: Backward<A>): readonly Contribution[];
  /** The derivative is zero everywhere (comparisons, shapes, stopGradient): adjoints end here. */
  readonly zeroGradient?: boolean;
  /** Output 0 is this input itself; no ONNX node is emitted. */
  readonly alias?: number;
}

export interface Node {
  readonly id: number;
  readonly op: Op;
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  readonly attributes: unknown;
  readonly site: string;
  /** The segment that it was built in, if any. */
  readonly segment: number | undefined;
}

export interface GraphOutput {
  readonly name: string;
  readonly value: Value;
  readonly replaces: Value | undefined;
}

export class Graph {
  readonly name: string;
  /** Where it is to run: what is there decides which ONNX nodes an op becomes. */
  readonly device: DeviceName;
  /** @internal in creation order, which is topological */
  readonly nodes: Node[] = [];
  /** @internal */
  readonly outputs: GraphOutput[] = [];
  /** @internal sizes readable at run time: canonical expression to a graph input's axis */
  readonly sizes = new Map<string, { value: Value; axis: number }>();
  readonly #named = new Map<string, Value>();
  readonly #outputNames = new Set<string>();
  readonly #known = new Map<string, Node>();
  readonly #constants = new Map<string, Value>();
  #values = 0;
  #site = "";
  #segments = 0;
  #segment: number | undefined;

  constructor(name = "graph", device: DeviceName = "cpu") {
    this.name = name;
    this.device = device;
  }

  /** Whether milora's own operators can be in it: they run on the CPU, where there are any. */
  get hasOperators(): boolean {
    return operators(this.device) !== undefined;
  }

  /** Site that new nodes belong to: nested scopes joined by dots. */
  get site(): string {
    return this.#site;
  }

  /** A tensor fed or bound at run time. Its symbolic dimensions become readable sizes for reshapes. */
  input(name: string, dtype: DType, shape: readonly Dim[]): Value {
    this.#claim(name);
    const value = this.#value(dtype, shape.map(canonicalDim), { kind: "input", name });
    this.#named.set(name, value);
    value.shape.forEach((dim, axis) => {
      if (typeof dim === "string" && !this.sizes.has(dim)) this.sizes.set(dim, { value, axis });
    });
    return value;
  }

  /**
   * A weight given at session creation (an external initializer in the model). Asking again for the same name, element
   * type and shape returns the same value, so that tied weights exist once.
   */
  parameter(name: string, dtype: DType, shape: readonly number[]): Value {
    const known = this.#named.get(name);
    if (
      known?.origin.kind === "parameter" &&
      known.dtype === dtype &&
      formatShape(known.shape) === formatShape(shape)
    ) {
      return known;
    }
    this.#claim(name);
    const value = this.#value(dtype, shape.map(canonicalDim), { kind: "parameter", name });
    this.#named.set(name, value);
    return value;
  }

  /** A small tensor stored in the model. Equal constants are one value. float16 and bfloat16 take numbers or raw bits. */
  constant(dtype: DType, shape: readonly number[], data: TensorData | readonly (number | bigint | boolean)[]): Value {
    const bytes = toBytes(dtype, data);
    const size = shape.reduce((a, b) => a * b, 1);
    if (bytes.length !== Math.ceil(size * dtypeInfo[dtype].bytes)) {
      throw new GraphError(
        "SHAPE_MISMATCH",
        `constant${this.#at()}: ${data.length} elements of ${dtype} do not fill the shape ${formatShape(shape)}`,
      );
    }
    const content =
      bytes.length <= 64 ? Buffer.from(bytes).toString("latin1") : createHash("sha256").update(bytes).digest("hex");
    const key = `${dtype}${formatShape(shape)}${content}`;
    let value = this.#constants.get(key);
    if (value === undefined) {
      const first = shape.length === 0 && !dtype.endsWith("float16") ? Number(data[0]) : undefined;
      value = this.#value(dtype, shape.map(canonicalDim), {
        kind: "constant",
        bytes,
        ...(first === undefined ? {} : { scalar: first }),
      });
      this.#constants.set(key, value);
    }
    return value;
  }

  /** A constant of shape []. */
  scalar(value: number | bigint, dtype: DType = "float32"): Value {
    return this.constant(dtype, [], [value]);
  }

  /**
   * Names a result.
   * @param options.replaces an input whose buffer will be bound to this output too (updates in place). Exporting
   *   then fails if any node could read the input after the output is written.
   */
  output(name: string, value: Value, options: { replaces?: Value } = {}): Value {
    if (value.graph !== this) throw new GraphError("DIFFERENT_GRAPHS", `output "${name}" is a value of another graph`);
    if (this.#outputNames.has(name) || this.#named.has(name)) {
      throw new GraphError("DUPLICATE_NAME", `"${name}" already names an input, parameter or output of this graph`);
    }
    this.#outputNames.add(name);
    this.outputs.push({ name, value, replaces: options.replaces });
    return value;
  }

  /** Builds inside a named site ("layers.3", then "mlp.up_proj"): nodes and errors carry it. */
  scope<T>(site: string, build: () => T): T {
    return this.withSite(this.#site === "" ? site : `${this.#site}.${site}`, build);
  }

  /** @internal like scope, but the site replaces the current one */
  withSite<T>(site: string, build: () => T): T {
    const outer = this.#site;
    this.#site = site;
    try {
      return build();
    } finally {
      this.#site = outer;
    }
  }

  /**
   * Builds a part whose values `grad` may compute a second time in the backward pass instead of keeping them: all but
   * those that are read outside of the part. A layer, say.
   */
  segment<T>(build: () => T): T {
    const outer = this.#segment;
    this.#segment = this.#segments++;
    try {
      return build();
    } finally {
      this.#segment = outer;
    }
  }

  /** @internal The node of an op on these inputs: an earlier equal one, or a new one. Its outputs. */
  apply<A>(op: Op<A>, inputs: readonly Value[], attributes: A): readonly Value[] {
    let key = op.name;
    for (const input of inputs) key += `,${input.id}`;
    const text = JSON.stringify(attributes);
    if (text !== "{}") key += text;
    const known = this.#known.get(key);
    if (known !== undefined) return known.outputs;

    for (const input of inputs) {
      if (input.graph !== this) this.fail(op.name, "DIFFERENT_GRAPHS", "an operand belongs to another graph");
    }
    const fail = (code: GraphErrorCode, message: string): never => this.fail(op.name, code, message);
    const inferred = op.infer({ inputs, attributes, fail });
    const types: readonly Typed[] = Array.isArray(inferred) ? inferred : [inferred];
    const outputs: Value[] = [];
    const [site, segment] = [this.#site, this.#segment];
    const node: Node = { id: this.nodes.length, op: op as Op, inputs, outputs, attributes, site, segment };
    types.forEach(({ dtype, shape }, index) => {
      outputs.push(this.#value(dtype, shape, { kind: "node", node, index }));
    });
    this.nodes.push(node);
    this.#known.set(key, node);
    return outputs;
  }

  /** @internal */
  fail(op: string, code: GraphErrorCode, message: string): never {
    throw new GraphError(code, `${op}${this.#at()}: ${message}`);
  }

  #at(): string {
    return this.#site === "" ? "" : ` at "${this.#site}"`;
  }

  #value(dtype: DType, shape: Shape, origin: Origin): Value {
    return new Value(this, this.#values++, dtype, shape, origin);
  }

  #claim(name: string): void {
    if (name === "" || name.startsWith("%")) {
      throw new GraphError("DUPLICATE_NAME", `"${name}" cannot be a name: empty or reserved for intermediate values`);
    }
    if (this.#named.has(name) || this.#outputNames.has(name)) {
      throw new GraphError("DUPLICATE_NAME", `"${name}" already names an input, parameter or output of this graph`);
    }
  }
}

/** The node of a given op that produced a value, or undefined. */
export function producedBy<A>(value: Value, op: Op<A>): (Node & { readonly attributes: A }) | undefined {
  const { origin } = value;
  return origin.kind === "node" && origin.node.op === (op as Op)
    ? (origin.node as Node & { attributes: A })
    : undefined;
}

/** The number of a constant of shape []. */
export function constantScalar(value: Value): number | undefined {
  return value.origin.kind === "constant" ? value.origin.scalar : undefined;
}

/** Attributes of an op that has none. */
export type None = Record<never, never>;
export const none: None = {};
