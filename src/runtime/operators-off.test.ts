/** @file Without milora's operators, as on a machine that has none of their instructions. */
import { expect, test } from "vitest";
import { operators, Session, Tensor } from "./index.ts";
import { linearNode } from "./testing/operators.ts";
import { ADD, testModel } from "./testing.ts";

process.env.MILORA_OPERATORS = "off";

test("there are none, and sessions run", () => {
  expect(operators()).toBeUndefined();
  using session = Session.create(testModel(ADD));
  using a = Tensor.from("float32", [2], new Float32Array([1, 2]));
  using y = session.call({ a, b: a }).y!;
  expect([...(y.data as Float32Array)]).toEqual([2, 4]);
});

test("a model that needs them is refused by name", () => {
  const weight = { K: 32, N: 16, bits: 4, block: 32 } as const;
  const model = testModel({
    inputs: { x: ["float32", ["M", 32]], w: ["uint8", [16, 1, 16]], s: ["float16", [16, 1]] },
    outputs: { y: ["float32", ["M", 16]] },
    nodes: [linearNode(weight)],
  });
  expect(() => Session.create(model)).toThrow(/Linear/);
});
