/** @file Bindings: results stay the caller's, and every wrong use is told before native code sees it. */
import { describe, expect, it } from "vitest";
import { Session, Tensor } from "./index.ts";
import { ADD, slow, type TestModel, testModel } from "./testing.ts";

const f32 = (values: number[]): Tensor => Tensor.from("float32", [values.length], Float32Array.from(values));

function failsWith(code: string, act: () => unknown, message = /./): void {
  expect(act).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }) as Error);
}

const TWO: TestModel = {
  inputs: { a: ["float32", ["B", 2]], b: ["float32", ["B", 2]], flat: ["float32", ["B*T"]], t: ["float32", ["T"]] },
  outputs: { sum: ["float32", ["B", 2]], product: ["float32", ["B", 2]], rest: ["float32", ["B*T"]] },
  nodes: [
    { op: "Add", inputs: ["a", "b"], outputs: ["sum"] },
    { op: "Mul", inputs: ["a", "b"], outputs: ["product"] },
    { op: "Neg", inputs: ["flat"], outputs: ["rest"] },
    { op: "Neg", inputs: ["t"], outputs: ["unused"] },
  ],
};

describe("a binding", () => {
  it("gives tensors made by the runtime that later runs do not touch, in any size", () => {
    using session = Session.create(testModel(ADD));
    using a = f32([1, 2, 3]);
    using b = f32([1, 1, 1]);
    using binding = session.bind().input("a", a).input("b", b).outputOn("y", "cpu");
    session.run(binding);
    using first = binding.results().get("y")!;
    a.data[0] = 100;
    session.run(binding);
    using second = binding.results().get("y")!;
    using longer = f32([1, 2, 3, 4]);
    binding.input("a", longer).input("b", longer);
    session.run(binding);
    using third = binding.results().get("y")!;
    expect([...first.data]).toEqual([2, 3, 4]);
    expect([...second.data]).toEqual([101, 3, 4]);
    expect([...third.data]).toEqual([2, 4, 6, 8]);
  });

  it("mixes bound outputs with made ones, whatever the order", () => {
    using session = Session.create(testModel(TWO));
    using a = Tensor.from("float32", [1, 2], Float32Array.of(2, 3));
    using b = Tensor.from("float32", [1, 2], Float32Array.of(5, 7));
    using flat = f32([1, 2]);
    using t = f32([0, 0]);
    using sum = Tensor.allocate("float32", [1, 2]);
    using binding = session.bind().input("a", a).input("b", b).input("flat", flat).input("t", t);
    binding.outputOn("rest", "cpu").output("sum", sum).outputOn("product", "cpu");
    session.run(binding);
    const results = binding.results();
    expect(results.get("sum")).toBe(sum);
    expect([...sum.data]).toEqual([7, 10]);
    expect([...results.get("product")!.data]).toEqual([10, 21]);
    expect([...results.get("rest")!.data]).toEqual([-1, -2]);
    results.get("product")!.dispose();
    results.get("rest")!.dispose();
  });

  it("accumulates in place when an input and an output share a tensor", () => {
    using session = Session.create(testModel(ADD));
    using total = Tensor.allocate("float32", [2]);
    using step = f32([1, 2]);
    using binding = session.bind().input("a", total).input("b", step).output("y", total);
    for (let run = 0; run < 10; run++) session.run(binding);
    expect([...total.data]).toEqual([10, 20]);
  });

  it("runs on empty tensors", () => {
    using session = Session.create(testModel(ADD));
    using a = f32([]);
    using y = Tensor.allocate("float32", [0]);
    using binding = session.bind().input("a", a).input("b", a).output("y", y);
    session.run(binding);
    expect(y.data.length).toBe(0);
  });

  it("refuses unknown names, wrong types and wrong shapes, naming both", () => {
    using session = Session.create(testModel(TWO));
    using binding = session.bind();
    using wrongType = Tensor.allocate("float64", [1, 2]);
    using wrongRank = Tensor.allocate("float32", [2]);
    using wrongDim = Tensor.allocate("float32", [1, 3]);
    failsWith("UNKNOWN_NAME", () => binding.input("c", wrongRank), /no input c.*a, b, flat, t/);
    failsWith("UNKNOWN_NAME", () => binding.output("a", wrongRank), /no output a.*sum, product, rest/);
    failsWith("UNKNOWN_NAME", () => binding.outputOn("a", "cpu"));
    failsWith("DTYPE_MISMATCH", () => binding.input("a", wrongType), /float32.*float64/);
    failsWith("SHAPE_MISMATCH", () => binding.input("a", wrongRank), /\[B, 2\].*\[2\]/);
    failsWith("SHAPE_MISMATCH", () => binding.output("sum", wrongDim), /\[B, 2\].*\[1, 3\]/);
  });

  it("refuses to run with missing inputs or outputs, or symbols that disagree", () => {
    using session = Session.create(testModel(TWO));
    using one = Tensor.allocate("float32", [1, 2]);
    using two = Tensor.allocate("float32", [2, 2]);
    using six = Tensor.allocate("float32", [6]);
    using four = Tensor.allocate("float32", [4]);
    using three = Tensor.allocate("float32", [3]);
    using binding = session.bind().input("a", one).input("flat", six).input("t", three);
    failsWith("MISSING_BINDING", () => session.run(binding), /missing: b$/);
    binding.input("b", two);
    failsWith("MISSING_BINDING", () => session.run(binding), /output/);
    binding.outputOn("sum", "cpu");
    failsWith("MISSING_BINDING", () => binding.results());
    failsWith("SHAPE_MISMATCH", () => session.run(binding), /B is 1 in a but 2 in b/);
    binding.input("a", two).input("flat", four);
    failsWith("SHAPE_MISMATCH", () => session.run(binding), /B\*T is 6 .* 4 in flat/);
    binding.input("flat", six);
    session.run(binding);
    binding.results().get("sum")!.dispose();
    binding.clear();
    failsWith("MISSING_BINDING", () => session.run(binding), /missing: a, b, flat, t$/);
  });

  it("refuses an output tensor that the run turns out not to fit, and works again afterwards", () => {
    using session = Session.create(testModel(ADD));
    using a = f32([1, 2, 3]);
    using small = Tensor.allocate("float32", [2]);
    using right = Tensor.allocate("float32", [3]);
    using binding = session.bind().input("a", a).input("b", a).output("y", small);
    failsWith("SHAPE_MISMATCH", () => session.run(binding), /^the run failed: [^/]*$/);
    session.run(binding.output("y", right));
    expect([...right.data]).toEqual([2, 4, 6]);
  });

  it("does not run with a disposed tensor, nor after it or its session was closed", () => {
    const session = Session.create(testModel(ADD));
    using other = Session.create(testModel(ADD));
    const a = f32([1]);
    using b = f32([1]);
    const binding = session.bind().input("a", a).input("b", b).outputOn("y", "cpu");
    failsWith("SESSION_CLOSED", () => other.run(binding));
    session.run(binding);
    a.dispose();
    failsWith("TENSOR_FREED", () => session.run(binding));
    failsWith("TENSOR_FREED", () => binding.input("a", a));
    session.run(binding.input("a", b));
    binding.dispose();
    binding.dispose();
    failsWith("SESSION_CLOSED", () => session.run(binding));
    failsWith("SESSION_CLOSED", () => binding.input("a", b));
    const open = session.bind().input("a", b).input("b", b).outputOn("y", "cpu");
    session.dispose();
    session.dispose();
    failsWith("SESSION_CLOSED", () => session.run(open));
    failsWith("SESSION_CLOSED", () => open.input("a", b));
    failsWith("SESSION_CLOSED", () => open.results());
    failsWith("SESSION_CLOSED", () => session.bind());
    failsWith("SESSION_CLOSED", () => session.endProfiling());
    open.dispose();
  });
});

describe("an asynchronous run", () => {
  const N = 384;

  it("leaves the event loop free, and another binding of the session may run meanwhile", async () => {
    using session = Session.create(testModel(slow(N, 200)));
    using x = Tensor.allocate("float32", [N, N]);
    using y = Tensor.allocate("float32", [N, N]);
    using z = Tensor.allocate("float32", [N, N]);
    x.data.set(Float32Array.from({ length: N }, () => 1 / N) as never, 0);
    x.data.fill((1 / N) as never);
    using first = session.bind().input("x", x).output("y", y);
    using second = session.bind().input("x", x).output("y", z);
    let turns = 0;
    const turning = setInterval(() => turns++, 0);
    await Promise.all([session.runAsync(first), session.runAsync(second)]);
    clearInterval(turning);
    expect(turns).toBeGreaterThan(3);
    expect(y.data[0]).toBeCloseTo(1 / N, 6);
    expect(z.data).toEqual(y.data);
  });

  it("holds what it uses until it ends", async () => {
    const session = Session.create(testModel(slow(N, 200)));
    const x = Tensor.allocate("float32", [N, N]);
    const y = Tensor.allocate("float32", [N, N]);
    const binding = session.bind().input("x", x).output("y", y);
    const run = session.runAsync(binding);
    const forbidden = [
      () => session.dispose(),
      () => binding.dispose(),
      () => binding.clear(),
      () => binding.input("x", x),
      () => binding.results(),
      () => x.dispose(),
      () => y.dispose(),
      () => session.run(binding),
    ];
    for (const act of forbidden) failsWith("RUN_IN_PROGRESS", act);
    await expect(session.runAsync(binding)).rejects.toMatchObject({ code: "RUN_IN_PROGRESS" });
    await run;
    session.run(binding);
    for (const resource of [binding, session, x, y]) resource.dispose();
  });

  it("is stopped by a signal, after which the same binding runs again", async () => {
    using session = Session.create(testModel(slow(N, 2000)));
    using x = Tensor.allocate("float32", [N, N]);
    using y = Tensor.allocate("float32", [N, N]);
    using binding = session.bind().input("x", x).output("y", y);
    const controller = new AbortController();
    const run = session.runAsync(binding, { signal: controller.signal });
    setImmediate(() => controller.abort());
    await expect(run).rejects.toMatchObject({ code: "RUN_CANCELLED" });
    const again = session.runAsync(binding, { signal: controller.signal });
    await expect(again).rejects.toMatchObject({ code: "RUN_CANCELLED" });
    failsWith("RUN_CANCELLED", () => session.run(binding, { signal: controller.signal }));
    using quick = Session.create(testModel(ADD));
    using a = f32([1]);
    const unused = new AbortController();
    using sum = quick.bind().input("a", a).input("b", a).outputOn("y", "cpu");
    await quick.runAsync(sum, { signal: unused.signal });
    unused.abort();
    binding.results();
    sum.results().get("y")!.dispose();
  });
});
