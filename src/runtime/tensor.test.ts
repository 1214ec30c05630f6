/** @file Tensors: shared memory really is shared, also when V8 would have moved it; wrong use is a typed error. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DTYPES } from "./dtypes.ts";
import { type DType, Session, Tensor, type TensorData } from "./index.ts";
import { ADD, testModel } from "./testing.ts";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

function failsWith(code: string, act: () => unknown): void {
  expect(act).toThrow(expect.objectContaining({ code }) as Error);
}

describe("a tensor over JavaScript memory", () => {
  it("is written in place by runs, however small, also after garbage collections", () => {
    using session = Session.create(testModel(ADD));
    // Up to 64 bytes V8 keeps arrays in its own heap, where a compacting collection moves them.
    for (let length = 1; length <= 20; length++) {
      const array = new Float32Array(length);
      using y = Tensor.from("float32", [length], array);
      using ones = Tensor.from("float32", [length], new Float32Array(length).fill(1));
      using binding = session.bind().input("a", y).input("b", ones).output("y", y);
      for (let step = 1; step <= 3; step++) {
        const garbage = Array.from({ length: 20_000 }, () => new Float32Array(4));
        expect(garbage.length).toBe(20_000);
        collect();
        session.run(binding);
        expect([...array]).toEqual(Array(length).fill(step));
      }
    }
  });

  it("keeps the array alive while only the tensor is held", () => {
    using session = Session.create(testModel(ADD));
    using x = Tensor.from("float32", [50_000], new Float32Array(50_000).fill(2));
    for (let round = 0; round < 5; round++) {
      collect();
      for (let fill = 0; fill < 20; fill++) new Float32Array(50_000).fill(9);
    }
    const { y } = session.call({ a: x, b: x });
    expect(y!.data.every((value) => value === 4)).toBe(true);
    y!.dispose();
  });

  it("takes part of an array", () => {
    using session = Session.create(testModel(ADD));
    const array = Float32Array.from([0, 1, 2, 3, 4, 5]);
    using part = Tensor.from("float32", [2], array.subarray(2, 4));
    const { y } = session.call({ a: part, b: part });
    expect([...y!.data]).toEqual([4, 6]);
    y!.dispose();
  });

  it("refuses another element type or count, and is not used once its array was transferred", () => {
    failsWith("DTYPE_MISMATCH", () => Tensor.from("float32", [1], new Float64Array(1)));
    failsWith("DTYPE_MISMATCH", () => Tensor.from("complex64" as DType, [1], new Float64Array(1)));
    failsWith("SHAPE_MISMATCH", () => Tensor.from("float32", [2, 2], new Float32Array(5)));
    failsWith("SHAPE_MISMATCH", () => Tensor.from("float32", [-1], new Float32Array(1)));
    failsWith("SHAPE_MISMATCH", () => Tensor.from("float32", [1.5], new Float32Array(1)));
    using session = Session.create(testModel(ADD));
    const array = new Float32Array(3);
    using x = Tensor.from("float32", [3], array);
    using binding = session.bind().input("a", x).input("b", x).outputOn("y", "cpu");
    session.run(binding);
    structuredClone(array, { transfer: [array.buffer] });
    failsWith("TENSOR_FREED", () => session.run(binding));
    failsWith("TENSOR_FREED", () => x.data);
  });
});

describe("the bytes of a tensor as another element type", () => {
  it("are shared, two uint4 to a byte", () => {
    using bytes = Tensor.from("uint8", [2, 2], Uint8Array.of(0x21, 0x43, 0x65, 0x87));
    using levels = bytes.view(2, [2]).as("uint4", [1, 4]);
    expect([levels.size, levels.byteLength, [...levels.data]]).toEqual([4, 2, [0x65, 0x87]]);
    bytes.data[2] = 0;
    expect(levels.data[0]).toBe(0);
    using tail = levels.view(2, [2]);
    expect([...tail.data]).toEqual([0x87]);
  });

  it("must be as many, and views start at a whole byte", () => {
    using bytes = Tensor.from("uint8", [4], new Uint8Array(4));
    expect(() => bytes.as("uint4", [7, 1, 2])).toThrow(/uint4 \[7, 1, 2\] is 7 bytes, the tensor has 4/);
    using levels = bytes.as("uint4", [8]);
    expect(() => levels.view(1, [2])).toThrow(/half a byte/);
  });
});

describe("a tensor of the runtime", () => {
  it("starts with zeros, in every element type and shape", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...(Object.keys(DTYPES) as DType[])),
        fc.array(fc.nat(5), { maxLength: 4 }),
        (dtype, shape) => {
          using dirty = Tensor.allocate(dtype, shape);
          new Uint8Array(dirty.data.buffer).fill(255);
          dirty.dispose();
          using tensor = Tensor.allocate(dtype, shape);
          const size = shape.reduce((product, dim) => product * dim, 1);
          expect(tensor.size).toBe(size);
          expect(tensor.byteLength).toBe(Math.ceil(size * DTYPES[dtype].bytes));
          expect(tensor.data).toBeInstanceOf(DTYPES[dtype].array);
          const stored = dtype === "uint4" ? Math.ceil(size / 2) : size;
          expect([...(tensor.data as Iterable<number | bigint>)].map(Number)).toEqual(Array(stored).fill(0));
        },
      ),
    );
  });

  it("says so when there is not enough memory", () => {
    failsWith("RUNTIME_FAILED", () => Tensor.allocate("float32", [2 ** 46]));
    failsWith("SHAPE_MISMATCH", () => Tensor.allocate("float32", [2 ** 30, 2 ** 30]));
  });

  it("cannot be used after dispose, and an array got before is empty", () => {
    const tensor = Tensor.allocate("float32", [4096]);
    const kept = tensor.data as Float32Array;
    tensor.dispose();
    tensor.dispose();
    expect(tensor.disposed).toBe(true);
    failsWith("TENSOR_FREED", () => tensor.data);
    failsWith("TENSOR_FREED", () => tensor.view(0, [1]));
    kept[0] = 1;
    expect(kept.length).toBe(0);
    expect(kept[0]).toBe(undefined);
    collect();
  });
});

describe("arrays that are taken back", () => {
  it("are empty, those of views too; the next ones have the same numbers", () => {
    using tensor = Tensor.allocate("float32", [4]);
    using tail = tensor.view(2, [2]);
    const before = tensor.data as Float32Array;
    before.set([1, 2, 3, 4]);
    const ofTail = tail.data;
    tail.closeData();
    expect([before.length, ofTail.length]).toEqual([0, 0]);
    expect([...(tail.data as Float32Array)]).toEqual([3, 4]);
    expect([...(tensor.data as Float32Array)]).toEqual([1, 2, 3, 4]);
    expect(tensor.data).toBe(tensor.data);
  });

  it("stay where the memory is JavaScript's", () => {
    const data = Float32Array.of(1, 2);
    using tensor = Tensor.from("float32", [2], data);
    tensor.closeData();
    expect([...data]).toEqual([1, 2]);
    expect((tensor.data as Float32Array).buffer).toBe(data.buffer);
  });

  it("are not given back after dispose", () => {
    const tensor = Tensor.allocate("float32", [2]);
    tensor.dispose();
    expect(() => tensor.closeData()).toThrow(expect.objectContaining({ code: "TENSOR_FREED" }));
  });
});

describe("a view", () => {
  it("shares memory with its parent and keeps it alive", () => {
    const parent = Tensor.allocate("float32", [2, 3]);
    using row = parent.view(3, [3]);
    using last = row.view(2, []);
    parent.data.set([1, 2, 3, 4, 5, 6] as never);
    expect([...row.data]).toEqual([4, 5, 6]);
    parent.dispose();
    row.data[2] = 60;
    expect([...last.data]).toEqual([60]);
    using session = Session.create(testModel(ADD));
    const { y } = session.call({ a: row, b: row });
    expect([...y!.data]).toEqual([8, 10, 120]);
    y!.dispose();
  });

  it("may be empty, and must lie inside", () => {
    using parent = Tensor.from("int64", [3], BigInt64Array.from([1n, 2n, 3n]));
    using empty = parent.view(3, [0, 5]);
    expect(empty.data.length).toBe(0);
    failsWith("SHAPE_MISMATCH", () => parent.view(2, [2]));
    failsWith("SHAPE_MISMATCH", () => parent.view(-1, [1]));
    failsWith("SHAPE_MISMATCH", () => parent.view(0.5, [1]));
  });
});

describe("a scalar", () => {
  it("holds one number of any type", () => {
    const expected: [DType, number | bigint, TensorData][] = [
      ["float32", 1.5, Float32Array.of(1.5)],
      ["int64", 7, BigInt64Array.of(7n)],
      ["int64", 8n, BigInt64Array.of(8n)],
      ["int32", 9n, Int32Array.of(9)],
      ["bool", 1, Uint8Array.of(1)],
    ];
    for (const [dtype, value, data] of expected) {
      using scalar = Tensor.scalar(dtype, value);
      expect(scalar.shape).toEqual([]);
      expect(scalar.data).toEqual(data);
    }
  });
});
