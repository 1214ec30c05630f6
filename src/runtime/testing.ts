/** @file Tiny ONNX models for the tests of this room, written with the plain ONNX schema. */
import { create, toBinary } from "@bufbuild/protobuf";
import {
  type AttributeProto,
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  StringStringEntryProtoSchema,
  TensorProto_DataLocation,
  TensorProtoSchema,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from "onnx-buf";
import { DTYPES, type DType } from "./dtypes.ts";
import { OPERATOR_DOMAIN } from "./operators.ts";

type Dim = number | string;
type Ports = Record<string, [DType, Dim[]]>;

export interface TestNode {
  op: string;
  inputs: string[];
  outputs: string[];
  /** Integers, lists of integers, or floats. */
  attributes?: Record<string, number | number[] | { readonly float: number }>;
  domain?: string;
}

export interface TestModel {
  inputs: Ports;
  outputs: Ports;
  nodes: TestNode[];
  /** Initializers whose data comes from outside; default location: the one the runtime expects. */
  external?: Record<string, [DType, number[]]>;
  location?: string;
}

function valueInfo(name: string, [dtype, shape]: [DType, Dim[]]): ValueInfoProto {
  const dim = shape.map((size) =>
    create(TensorShapeProto_DimensionSchema, {
      value: typeof size === "string" ? { case: "dimParam", value: size } : { case: "dimValue", value: BigInt(size) },
    }),
  );
  const tensor = create(TypeProto_TensorSchema, {
    elemType: DTYPES[dtype].onnx,
    shape: create(TensorShapeProtoSchema, { dim }),
  });
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, { value: { case: "tensorType", value: tensor } }),
  });
}

function attribute(name: string, value: number | number[] | { readonly float: number }): AttributeProto {
  const { INT, INTS, FLOAT } = AttributeProto_AttributeType;
  if (Array.isArray(value)) return create(AttributeProtoSchema, { name, type: INTS, ints: value.map(BigInt) });
  if (typeof value === "number") return create(AttributeProtoSchema, { name, type: INT, i: BigInt(value) });
  return create(AttributeProtoSchema, { name, type: FLOAT, f: value.float });
}

/** The bytes of a ModelProto, opset 21 plus com.microsoft and milora's own operators. */
export function testModel(model: TestModel): Uint8Array {
  const ports = (of: Ports): ValueInfoProto[] => Object.entries(of).map(([name, port]) => valueInfo(name, port));
  const graph = create(GraphProtoSchema, {
    name: "test",
    input: ports(model.inputs),
    output: ports(model.outputs),
    node: model.nodes.map(({ op, inputs, outputs, attributes, domain }, index) =>
      create(NodeProtoSchema, {
        opType: op,
        name: `${op}_${index}`,
        domain: domain ?? "",
        input: inputs,
        output: outputs,
        attribute: Object.entries(attributes ?? {}).map(([name, value]) => attribute(name, value)),
      }),
    ),
    initializer: Object.entries(model.external ?? {}).map(([name, [dtype, shape]]) =>
      create(TensorProtoSchema, {
        name,
        dataType: DTYPES[dtype].onnx,
        dims: shape.map(BigInt),
        dataLocation: TensorProto_DataLocation.EXTERNAL,
        externalData: [create(StringStringEntryProtoSchema, { key: "location", value: model.location ?? "." })],
      }),
    ),
  });
  return toBinary(
    ModelProtoSchema,
    create(ModelProtoSchema, {
      irVersion: 10n,
      opsetImport: [
        create(OperatorSetIdProtoSchema, { domain: "", version: 21n }),
        create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }),
        create(OperatorSetIdProtoSchema, { domain: OPERATOR_DOMAIN, version: 1n }),
      ],
      graph,
    }),
  );
}

/** y = a + b over [N] float32: the least a session can do. */
export const ADD: TestModel = {
  inputs: { a: ["float32", ["N"]], b: ["float32", ["N"]] },
  outputs: { y: ["float32", ["N"]] },
  nodes: [{ op: "Add", inputs: ["a", "b"], outputs: ["y"] }],
};

/** y = x · w with w [K, M] float32 from outside. */
export function linear(rows: number, columns: number): TestModel {
  return {
    inputs: { x: ["float32", ["N", rows]] },
    outputs: { y: ["float32", ["N", columns]] },
    nodes: [{ op: "MatMul", inputs: ["x", "w"], outputs: ["y"] }],
    external: { w: ["float32", [rows, columns]] },
  };
}

/** y = s·s·…·s over [N, N] float32, many times: slow enough to be interrupted. */
export function slow(size: number, steps: number): TestModel {
  const name = (step: number): string => (step === 0 ? "x" : step === steps ? "y" : `h${step}`);
  return {
    inputs: { x: ["float32", [size, size]] },
    outputs: { y: ["float32", [size, size]] },
    nodes: Array.from({ length: steps }, (_, step) => ({
      op: "MatMul",
      inputs: [name(step), "x"],
      outputs: [name(step + 1)],
    })),
  };
}
