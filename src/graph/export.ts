/** @file Writes a graph as an ONNX model (opset 21 and com.microsoft 1). Weights stay outside as external initializers. */
import { create, toBinary } from "@bufbuild/protobuf";
import {
  type AttributeProto,
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  StringStringEntryProtoSchema,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProtoSchema,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  type TypeProto,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from "onnx-buf";
import { type DType, EXTERNAL_LOCATION, OPERATOR_DOMAIN, type TensorData } from "../runtime/index.ts";
import { mergeChains, type SizesOf } from "./chain.ts";
import { dtypeInfo, toBytes } from "./dtype.ts";
import type { Graph, Node, Value } from "./graph.ts";
import type { Lowering, OnnxAttribute, OnnxAttributes } from "./lowering.ts";
import { analyse, type Plan } from "./plan.ts";
import { formatShape, mulDims, type Shape } from "./shape.ts";

const OPSET = 21n;
const IR_VERSION = 10n;

/**
 * The model of all outputs of a graph. Only what they need is in it: nodes, inputs and parameters that no output
 * depends on are left out. Parameters are external initializers without data: give them to the session by name.
 *
 * @throws GraphError UNSAFE_IN_PLACE if an output that replaces an input could be written before the input is read
 */
export function exportOnnx(graph: Graph, { chains = true }: ExportOptions = {}): Uint8Array {
  return new Exporter(graph, analyse(graph)).model(chains);
}

export interface ExportOptions {
  /** Whether neighbours of milora's own operators become one node; without, a profile tells of each. Default: true. */
  readonly chains?: boolean;
}

class Exporter {
  readonly #graph: Graph;
  readonly #plan: Plan;
  readonly #nodes: NodeProto[] = [];
  readonly #initializers: TensorProto[] = [];
  readonly #constants = new Map<string, string>();
  readonly #names = new Map<Value, string>();
  readonly #types = new Map<string, TypeProto>();
  #temporaries = 0;

  constructor(graph: Graph, plan: Plan) {
    this.#graph = graph;
    this.#plan = plan;
  }

  model(chains: boolean): Uint8Array {
    const { nodes, leaves, fused } = this.#plan;
    const inputs: ValueInfoProto[] = [];
    for (const leaf of leaves) {
      if (leaf.origin.kind === "input") inputs.push(this.#valueInfo(leaf.origin.name, leaf));
      if (leaf.origin.kind === "parameter") this.#initializers.push(this.#external(leaf.origin.name, leaf));
    }
    const outputs = this.#graph.outputs.map(({ name, value }) => this.#valueInfo(name, value));
    const named = this.#nameOutputs();
    for (const node of nodes) {
      const product = fused.get(node);
      if (product) this.#fusedGemm(node, product.gemm, product.c);
      else this.#lower(node);
    }
    for (const [name, source] of named) this.#copy(name, source);
    const kept = new Set(outputs.map(({ name }) => name!));
    const merged = chains ? mergeChains(this.#nodes, kept, this.#sizes()) : this.#nodes;

    const model = create(ModelProtoSchema, {
      irVersion: IR_VERSION,
      producerName: "milora",
      opsetImport: [
        create(OperatorSetIdProtoSchema, { domain: "", version: OPSET }),
        create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }),
        ...(this.#nodes.some(({ domain }) => domain === OPERATOR_DOMAIN)
          ? [create(OperatorSetIdProtoSchema, { domain: OPERATOR_DOMAIN, version: 1n })]
          : []),
      ],
      graph: create(GraphProtoSchema, {
        name: this.#graph.name,
        node: merged,
        initializer: this.#initializers,
        input: inputs,
        output: outputs,
        valueInfo: this.#intermediates(merged),
      }),
    });
    return toBinary(ModelProtoSchema, model);
  }

  /** Gives computed values their output names; what is left (leaves, a value named twice) is copied. */
  #nameOutputs(): [string, Value][] {
    const copies: [string, Value][] = [];
    for (const { name, value, replaces } of this.#graph.outputs) {
      const source = this.#plan.resolve(value);
      // No program of WebGPU may read a buffer that it writes.
      const apart = replaces !== undefined && this.#graph.device === "webgpu";
      if (source.origin.kind === "node" && !this.#names.has(source) && !apart) this.#names.set(source, name);
      else copies.push([name, source]);
    }
    return copies;
  }

  /** An Identity; or where the runtime would let the node before it write the output, a Reshape to the shape that is there. */
  #copy(name: string, source: Value): void {
    const inPlace = this.#graph.outputs.some((output) => output.name === name && output.replaces);
    if (!inPlace) {
      this.#emit("identity", "", "Identity", [this.#name(source)], {}, [name], "");
      return;
    }
    const rank = source.shape.length;
    const same = this.#constant("int64", [rank], toBytes("int64", new Array<number>(rank).fill(0)));
    this.#emit("copy", "", "Reshape", [this.#name(source), same], {}, [name], "");
  }

  /**
   * Shapes of what is between inputs and outputs. The runtime's memory planner compares each value with all free
   * buffers, and takes a buffer for a new value only if it knows both shapes: without them its work grows with the
   * square of the graph (7,900 nodes: 5.7 s, with them 0.5 s).
   */
  #intermediates(merged: readonly NodeProto[]): ValueInfoProto[] {
    const { nodes, uses } = this.#plan;
    const made = new Set(merged.flatMap(({ output }) => output));
    const values = nodes.flatMap(({ outputs }) => outputs).filter((value) => uses.has(value));
    return values.flatMap((value) => {
      const name = this.#names.get(value);
      return name?.startsWith("%") && made.has(name) ? [this.#valueInfo(name, value)] : [];
    });
  }

  /** Of values that have names, as matrices. */
  #sizes(): SizesOf {
    const values = new Map([...this.#names].map(([value, name]) => [name, value]));
    return (name) => {
      const shape = values.get(name)?.shape;
      const columns = shape?.at(-1);
      return shape && typeof columns === "number" ? { rows: mulDims(...shape.slice(0, -1)), columns } : undefined;
    };
  }

  #name(value: Value): string {
    const source = this.#plan.resolve(value);
    let name = this.#names.get(source);
    if (name === undefined) {
      const { origin } = source;
      if (origin.kind === "input" || origin.kind === "parameter") name = origin.name;
      else if (origin.kind === "constant") name = this.#constant(source.dtype, source.shape as number[], origin.bytes);
      else name = `%${source.id}`;
      this.#names.set(source, name);
    }
    return name;
  }

  #lower(node: Node): void {
    const ins = node.inputs.map((input) => this.#name(input));
    const outs = node.outputs.map((output) => this.#name(output));
    const lowering: Lowering<unknown> = {
      device: this.#graph.device,
      node,
      attributes: node.attributes,
      ins,
      outs,
      in: (index) => ins[index] ?? "",
      out: (index = 0) => outs[index]!,
      optionalOut: (index) => (this.#plan.uses.has(node.outputs[index]!) ? outs[index]! : ""),
      temporary: () => `%t${this.#temporaries++}`,
      constant: (dtype, shape, data) => this.#constant(dtype, shape, toBytes(dtype, data as TensorData)),
      int64s: (values) => this.#constant("int64", [values.length], toBytes("int64", values)),
      emit: (type, inputs, attributes = {}, outputs = outs, domain = "") =>
        this.#emit(node.op.name, node.site, type, inputs, attributes, outputs, domain),
    };
    node.op.lower(lowering);
  }

  /** add(x, gemm(a, b)) as one product that starts from x. */
  #fusedGemm(sum: Node, gemm: Node, c: Value): void {
    const [a, b] = gemm.inputs.map((input) => this.#name(input));
    const ins = [a!, b!, this.#name(c)];
    const out = this.#name(sum.outputs[0]!);
    gemm.op.lower({
      device: this.#graph.device,
      node: gemm,
      attributes: gemm.attributes,
      ins,
      outs: [out],
      emit: (type: string, inputs: readonly string[], attributes: OnnxAttributes = {}) =>
        this.#emit(gemm.op.name, gemm.site, type, inputs, attributes, [out], ""),
    } as unknown as Lowering<unknown>);
  }

  #emit(
    op: string,
    site: string,
    type: string,
    inputs: readonly string[],
    attributes: OnnxAttributes,
    outputs: readonly string[],
    domain: string,
  ): string {
    const attribute = Object.entries(attributes).flatMap(([name, value]) =>
      value === undefined ? [] : [attributeProto(name, value)],
    );
    const name = `${site === "" ? "" : `${site}/`}${op}#${this.#nodes.length}`;
    this.#nodes.push(
      create(NodeProtoSchema, { name, opType: type, domain, input: [...inputs], output: [...outputs], attribute }),
    );
    return outputs[0]!;
  }

  #constant(dtype: DType, shape: readonly number[], bytes: Uint8Array): string {
    const content = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
    const key = `${dtype}${formatShape(shape)}${content}`;
    let name = this.#constants.get(key);
    if (name === undefined) {
      name = `%c${this.#constants.size}`;
      this.#constants.set(key, name);
      this.#initializers.push(
        create(TensorProtoSchema, {
          name,
          dims: shape.map(BigInt),
          dataType: dtypeInfo[dtype].code,
          rawData: bytes as Uint8Array<ArrayBuffer>,
        }),
      );
    }
    return name;
  }

  /** A weight without its data. The place is never read: the session is given the tensor by name. */
  #external(name: string, value: Value): TensorProto {
    const size = (value.shape as readonly number[]).reduce((a, b) => a * b, 1);
    const entries = {
      location: EXTERNAL_LOCATION,
      offset: "0",
      length: `${Math.ceil(size * dtypeInfo[value.dtype].bytes)}`,
    };
    return create(TensorProtoSchema, {
      name,
      dims: value.shape.map((dim) => BigInt(dim)),
      dataType: dtypeInfo[value.dtype].code,
      dataLocation: TensorProto_DataLocation.EXTERNAL,
      externalData: Object.entries(entries).map(([key, text]) =>
        create(StringStringEntryProtoSchema, { key, value: text }),
      ),
    });
  }

  #valueInfo(name: string, { dtype, shape }: { dtype: DType; shape: Shape }): ValueInfoProto {
    const key = dtype + formatShape(shape);
    let type = this.#types.get(key);
    if (type === undefined) {
      const dim = shape.map((size) =>
        create(TensorShapeProto_DimensionSchema, {
          value:
            typeof size === "number" ? { case: "dimValue", value: BigInt(size) } : { case: "dimParam", value: size },
        }),
      );
      const value = create(TypeProto_TensorSchema, {
        elemType: dtypeInfo[dtype].code,
        shape: create(TensorShapeProtoSchema, { dim }),
      });
      type = create(TypeProtoSchema, { value: { case: "tensorType", value } });
      this.#types.set(key, type);
    }
    return create(ValueInfoProtoSchema, { name, type });
  }
}

function attributeProto(name: string, value: OnnxAttribute): AttributeProto {
  const kind = AttributeProto_AttributeType;
  if ("int" in value) return create(AttributeProtoSchema, { name, type: kind.INT, i: BigInt(value.int) });
  if ("ints" in value) return create(AttributeProtoSchema, { name, type: kind.INTS, ints: value.ints.map(BigInt) });
  if ("float" in value) return create(AttributeProtoSchema, { name, type: kind.FLOAT, f: value.float });
  const s = new TextEncoder().encode(value.string) as Uint8Array<ArrayBuffer>;
  return create(AttributeProtoSchema, { name, type: kind.STRING, s });
}
