/** @file Sessions over tiny models: results, weights from outside, and every wrong use as a typed error. */
import { describe, expect, it } from "vitest";
import { Session, Tensor } from "./index.ts";
import { ADD, linear, slow, testModel } from "./testing.ts";

const f32 = (shape: number[], values: number[]): Tensor => Tensor.from("float32", shape, Float32Array.from(values));

describe("a session", () => {
  it("names its inputs and outputs", () => {
    using session = Session.create(testModel(ADD));
    expect(session.inputs).toEqual([
      { name: "a", dtype: "float32", shape: ["N"] },
      { name: "b", dtype: "float32", shape: ["N"] },
    ]);
    expect(session.outputs).toEqual([{ name: "y", dtype: "float32", shape: ["N"] }]);
  });

  it("runs by call, by binding and asynchronously, in place", async () => {
    using session = Session.create(testModel(ADD));
    using a = f32([3], [1, 2, 3]);
    using b = Tensor.allocate("float32", [3]);
    using y = Tensor.allocate("float32", [3]);
    const called = session.call({ a, b });
    expect([...called.y!.data]).toEqual([1, 2, 3]);
    called.y!.dispose();
    using binding = session.bind().input("a", a).input("b", b).output("y", y);
    session.run(binding);
    expect([...y.data]).toEqual([1, 2, 3]);
    b.data.set([10, 20, 30] as never);
    await session.runAsync(binding);
    expect([...y.data]).toEqual([11, 22, 33]);
  });

  it("takes weights from outside", () => {
    using w = f32([2, 2], [1, 2, 3, 4]);
    using session = Session.create(testModel(linear(2, 2)), { initializers: new Map([["w", w]]) });
    using x = f32([1, 2], [1, 10]);
    const { y } = session.call({ x });
    expect([...y!.data]).toEqual([31, 42]);
    y!.dispose();
  });

  it("is stopped by an abort signal", async () => {
    using session = Session.create(testModel(slow(512, 400)));
    using x = Tensor.allocate("float32", [512, 512]);
    using y = Tensor.allocate("float32", [512, 512]);
    using binding = session.bind().input("x", x).output("y", y);
    const controller = new AbortController();
    const run = session.runAsync(binding, { signal: controller.signal });
    setTimeout(() => controller.abort(), 10);
    await expect(run).rejects.toMatchObject({ code: "RUN_CANCELLED" });
  });
});
