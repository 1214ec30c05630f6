/** @file Sessions over tiny models: results, weights from outside, profiling, and models that cannot be used. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { configureRuntime, PrepackedWeights, runtimeVersion, Session, Tensor } from "./index.ts";
import { externalInitializers } from "./initializers.ts";
import { ADD, linear, type TestModel, testModel } from "./testing.ts";

const f32 = (shape: number[], values: number[]): Tensor => Tensor.from("float32", shape, Float32Array.from(values));

function failsWith(code: string, act: () => unknown, message = /./): void {
  expect(act).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }) as Error);
}

describe("a session", () => {
  it("names its inputs and outputs, fixed and symbolic dimensions", () => {
    using session = Session.create(
      testModel({
        inputs: { x: ["int64", ["B", 3, "B*T"]], s: ["int64", []] },
        outputs: { y: ["int64", ["B", 3, "B*T"]] },
        nodes: [{ op: "Add", inputs: ["x", "s"], outputs: ["y"] }],
      }),
    );
    expect(session.inputs).toEqual([
      { name: "x", dtype: "int64", shape: ["B", 3, "B*T"] },
      { name: "s", dtype: "int64", shape: [] },
    ]);
    expect(session.outputs).toEqual([{ name: "y", dtype: "int64", shape: ["B", 3, "B*T"] }]);
    expect(session.device).toBe("cpu");
  });

  it("runs by call, fetching what is asked for", () => {
    using session = Session.create(testModel(ADD));
    using a = f32([3], [1, 2, 3]);
    const { y } = session.call({ a, b: a });
    expect([...y!.data]).toEqual([2, 4, 6]);
    y!.dispose();
    failsWith("UNKNOWN_NAME", () => session.call({ a, b: a }, ["z"]));
    failsWith("MISSING_BINDING", () => session.call({ a }));
  });

  it("refuses bytes that are no model", () => {
    const good = testModel(ADD);
    const bad = [
      new Uint8Array(0),
      Uint8Array.of(1, 2, 3),
      new TextEncoder().encode("garbage ".repeat(1000)),
      good.slice(0, good.length / 2),
      testModel({ ...ADD, nodes: [{ op: "NoSuchOperator", inputs: ["a"], outputs: ["y"] }] }),
      testModel({ ...ADD, nodes: [{ op: "Add", inputs: ["a", "nowhere"], outputs: ["y"] }] }),
    ];
    for (const bytes of bad) failsWith("RUNTIME_FAILED", () => Session.create(bytes), /could not load the model/);
    for (let at = 0; at < good.length; at++) {
      const broken = good.slice();
      broken[at] = broken[at]! ^ 0xff;
      try {
        Session.create(broken).dispose(); // a changed name is still a model
      } catch (error) {
        expect(error).toMatchObject({ name: "RuntimeError" });
      }
    }
  });

  it("passes on settings, and says which is wrong", () => {
    using session = Session.create(testModel(ADD), {
      optimization: "none",
      config: { "session.set_denormal_as_zero": "1" },
    });
    expect(session.inputs.length).toBe(2);
    failsWith("RUNTIME_FAILED", () => Session.create(testModel(ADD), { config: { "": "1" } }), /could not set/);
  });

  it("writes a profile", () => {
    const directory = mkdtempSync(join(tmpdir(), "milora-profile-"));
    try {
      using session = Session.create(testModel(ADD), { profile: join(directory, "über") });
      using a = f32([1], [1]);
      session.call({ a, b: a }).y!.dispose();
      const file = session.endProfiling();
      expect(dirname(file)).toBe(directory);
      expect(readFileSync(file, "utf8")).toContain("Add_0");
    } finally {
      rmSync(directory, { recursive: true });
    }
    using plain = Session.create(testModel(ADD));
    failsWith("RUNTIME_FAILED", () => plain.endProfiling(), /profile/);
  });

  it("belongs to an environment that is settled by then", () => {
    failsWith("RUNTIME_FAILED", () => configureRuntime({ threads: 1 }), /before/);
    expect(runtimeVersion()).toMatch(/^1\.\d+\.\d+/);
  });
});

describe("weights from outside", () => {
  const model = testModel(linear(2, 2));

  it("are shared: what is written into the tensor later, every session sees", () => {
    using w = Tensor.allocate("float32", [2, 2]);
    w.data.set([1, 2, 3, 4] as never);
    const initializers = new Map([["w", w]]);
    using first = Session.create(model, { initializers, prepacking: false });
    using second = Session.create(model, { initializers, prepacking: false });
    using x = f32([1, 2], [1, 10]);
    w.data[0] = 5;
    for (const session of [first, second]) {
      expect(session.sharesInitializers).toBe(true);
      const { y } = session.call({ x });
      expect([...y!.data]).toEqual([35, 42]);
      y!.dispose();
    }
  });

  it("outlive their tensors and the container of packed weights while a session uses them", () => {
    const flat = Tensor.from("float32", [6], Float32Array.of(9, 1, 2, 3, 4, 9));
    const w = flat.view(1, [2, 2]);
    const prepacked = new PrepackedWeights();
    const options = { initializers: new Map([["w", w]]), prepacked };
    const first = Session.create(model, options);
    using second = Session.create(model, options);
    w.dispose();
    flat.dispose();
    prepacked.dispose();
    first.dispose();
    using x = f32([1, 2], [1, 10]);
    const { y } = second.call({ x });
    expect([...y!.data]).toEqual([31, 42]);
    y!.dispose();
    failsWith("TENSOR_FREED", () => Session.create(model, options));
  });

  it("are copied when the runtime computes from them while loading", () => {
    const transposed: TestModel = {
      ...linear(2, 2),
      nodes: [
        { op: "Transpose", inputs: ["w"], outputs: ["t"], attributes: { perm: [1, 0] } },
        { op: "MatMul", inputs: ["x", "t"], outputs: ["y"] },
      ],
    };
    using w = f32([2, 2], [1, 2, 3, 4]);
    using x = f32([1, 2], [1, 10]);
    for (const location of [".", "elsewhere"]) {
      using session = Session.create(testModel({ ...transposed, location }), { initializers: new Map([["w", w]]) });
      expect(session.sharesInitializers).toBe(false);
      const { y } = session.call({ x });
      expect([...y!.data]).toEqual([21, 43]);
      y!.dispose();
    }
  });

  it("must be there, of the right type and shape", () => {
    using w = Tensor.allocate("float32", [2, 2]);
    using wide = Tensor.allocate("float32", [2, 3]);
    using double = Tensor.allocate("float64", [2, 2]);
    const create = (initializers: Record<string, Tensor>) => (): unknown =>
      Session.create(model, { initializers: new Map(Object.entries(initializers)) });
    failsWith("MISSING_BINDING", () => Session.create(model), /not given: w/);
    failsWith("SHAPE_MISMATCH", create({ w: wide }), /\[2, 2\].*\[2, 3\]/);
    failsWith("DTYPE_MISMATCH", create({ w: double }), /float32.*float64/);
    w.dispose();
    failsWith("TENSOR_FREED", create({ w }));
  });

  it("are found in any model without decoding it", () => {
    expect(externalInitializers(model)).toEqual(new Map([["w", { onnxType: 1, shape: [2, 2] }]]));
    expect(externalInitializers(testModel(ADD))).toEqual(new Map());
    for (let end = 1; end < model.length; end++) {
      const found = externalInitializers(model.subarray(0, end));
      expect(found === undefined || found.size <= 1).toBe(true);
    }
  });
});
