/** @file Models loaded on a worker thread: the event loop stays free, and nothing borrowed goes away. */
import { setImmediate } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, it } from "vitest";
import { PrepackedWeights, Session, Tensor } from "./index.ts";
import { ADD, linear, type TestModel, testModel } from "./testing.ts";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

/** y = x · w · w · …: so many nodes that loading takes a while. */
function long(size: number, steps: number): TestModel {
  const name = (step: number): string => (step === 0 ? "x" : step === steps ? "y" : `h${step}`);
  return {
    ...linear(size, size),
    nodes: Array.from({ length: steps }, (_, step) => ({
      op: "MatMul",
      inputs: [name(step), "w"],
      outputs: [name(step + 1)],
    })),
  };
}

const identity = (size: number): Tensor =>
  Tensor.from(
    "float32",
    [size, size],
    Float32Array.from({ length: size * size }, (_, i) => Number(i % (size + 1) === 0)),
  );

function answer(session: Session, size: number): number[] {
  using x = Tensor.from(
    "float32",
    [1, size],
    Float32Array.from({ length: size }, (_, i) => i),
  );
  using y = session.call({ x }).y!;
  return [...(y.data as Float32Array)];
}

const count = (size: number): number[] => Array.from({ length: size }, (_, i) => i);

it("leaves the event loop free while it loads", async () => {
  const model = testModel(long(8, 1500));
  using w = identity(8);
  let fired = 0;
  let done = false;
  const timers = (async () => {
    while (!done) {
      await new Promise((resolve) => setTimeout(resolve, 0));
      if (!done) fired++;
    }
  })();
  using session = await Session.createAsync(model, { initializers: new Map([["w", w]]) });
  done = true;
  expect(fired).toBeGreaterThan(0);
  await timers;
  expect(answer(session, 8)).toEqual(count(8));
  expect(session.sharesInitializers).toBe(true);
});

it("loads many at a time over the same weights, packed once, and beside blocking ones", async () => {
  using w = identity(64);
  using prepacked = new PrepackedWeights();
  const options = { initializers: new Map([["w", w]]), prepacked };
  const models = [1, 2, 40, 200, 3, 100, 7, 1].map((steps) => testModel(long(64, steps)));
  const pending = models.map((model) => Session.createAsync(model, options));
  using blocking = Session.create(models[2]!, options);
  const sessions = await Promise.all(pending);
  try {
    for (const session of [...sessions, blocking]) expect(answer(session, 64)).toEqual(count(64));
  } finally {
    for (const session of sessions) session.dispose();
  }
});

it("keeps what it was given until it ends, whatever is disposed or collected meanwhile", async () => {
  const size = 32;
  for (let round = 0; round < 10; round++) {
    const start = (): Promise<Session> => {
      const w = identity(size);
      const prepacked = new PrepackedWeights();
      const pending = Session.createAsync(testModel(long(size, 300)), { initializers: new Map([["w", w]]), prepacked });
      w.dispose();
      prepacked.dispose();
      return pending;
    };
    const pending = start();
    collect();
    for (let fill = 0; fill < 50; fill++) new Float32Array(size * size).fill(9);
    await setImmediate();
    collect();
    using session = await pending;
    expect(answer(session, size)).toEqual(count(size));
  }
});

it("falls back to copies where the runtime computes from weights while loading", async () => {
  const transposed: TestModel = {
    ...linear(2, 2),
    nodes: [
      { op: "Transpose", inputs: ["w"], outputs: ["t"], attributes: { perm: [1, 0] } },
      { op: "MatMul", inputs: ["x", "t"], outputs: ["y"] },
    ],
  };
  using w = Tensor.from("float32", [2, 2], Float32Array.of(1, 2, 3, 4));
  using session = await Session.createAsync(testModel(transposed), { initializers: new Map([["w", w]]) });
  expect(session.sharesInitializers).toBe(false);
  expect(answer(session, 2)).toEqual([2, 4]);
});

it("rejects as the blocking one throws", async () => {
  const good = testModel(linear(256, 256));
  const bad = [
    new Uint8Array(0),
    Uint8Array.of(1, 2, 3),
    testModel({ ...ADD, nodes: [{ op: "NoSuchOperator", inputs: ["a"], outputs: ["y"] }] }),
    testModel({ ...linear(256, 256), nodes: [{ op: "Add", inputs: ["w", "nowhere"], outputs: ["y"] }] }),
  ];
  using small = identity(2);
  for (const bytes of bad) {
    using w = identity(256);
    using prepacked = new PrepackedWeights();
    const loading = Session.createAsync(bytes, { initializers: new Map([["w", w]]), prepacked });
    await expect(loading).rejects.toMatchObject({
      code: "RUNTIME_FAILED",
      message: expect.stringMatching(/could not load the model/),
    });
  }
  const missing = Session.createAsync(good);
  await expect(missing).rejects.toMatchObject({ code: "MISSING_BINDING" });
  const ill = Session.createAsync(good, { initializers: new Map([["w", small]]) });
  await expect(ill).rejects.toMatchObject({ code: "SHAPE_MISMATCH" });
});

it("refuses what is more than can wait for a worker thread at a time", async () => {
  const model = testModel(ADD);
  const outcomes = await Promise.allSettled(Array.from({ length: 300 }, () => Session.createAsync(model)));
  const refused = outcomes.filter((outcome) => outcome.status === "rejected");
  for (const outcome of outcomes) if (outcome.status === "fulfilled") outcome.value.dispose();
  expect(refused.length).toBeGreaterThan(0);
  expect(refused.length).toBeLessThan(300);
  expect(refused[0]).toMatchObject({
    reason: { code: "RUNTIME_FAILED", message: expect.stringMatching(/could not begin to load the model: \w/) },
  });
  using session = await Session.createAsync(model);
  expect(session.inputs.length).toBe(2);
});
