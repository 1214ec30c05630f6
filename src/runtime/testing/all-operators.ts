/** @file The tests of milora's operators, for one instruction set; and that they may run side by side. */
import { describe, expect, test } from "vitest";
import { configureRuntime, operators, Tensor } from "../index.ts";
import { attentionHalvesTests } from "./attention-halves.ts";
import { attentionTests, cachedAttention } from "./attention-operator.ts";
import { itemTests, packTests } from "./item-operator.ts";
import { linearTests } from "./linear-operator.ts";
import { expectSame, floats, instructionsOf, linearNode, matrix, normals, Products, weightOf } from "./operators.ts";
import { rangeTests } from "./range-operator.ts";
import { routeTests } from "./route-operator.ts";
import { rowTests } from "./row-operators.ts";

/** `limit`: the value of MILORA_OPERATORS. */
export function operatorTests(limit?: "avx2"): void {
  if (limit === undefined) delete process.env.MILORA_OPERATORS;
  else process.env.MILORA_OPERATORS = limit;
  configureRuntime({ threads: 2 });

  test("there are operators where there must be", () => {
    expect(operators()?.instructions).toBe(instructionsOf(limit));
  });

  describe.skipIf(operators() === undefined)("operators (left out where there is no library for the machine)", () => {
    linearTests();
    itemTests();
    rangeTests();
    packTests();
    attentionTests();
    attentionHalvesTests();
    rowTests();
    routeTests();
    sideBySide();
  });
}

function sideBySide(): void {
  test("sessions that run at the same time give what they give alone", async () => {
    const [K, N, M] = [576, 960, 24];
    const weight = weightOf(1, { K, N, bits: 4, block: 32 });
    using products = new Products(weight, [linearNode(weight)], ["y"]);
    using attention = cachedAttention();
    const inputs = [1, 2, 3].map((seed) => normals(seed, M * K));
    const alone = inputs.map((x) => products.run(x, K).y!);
    const attended = attention.run();
    for (let round = 0; round < 20; round++) {
      const own = inputs.map((data) => {
        const [x, y] = [matrix(M, K, data), Tensor.allocate("float32", [M, N])];
        return { x, y, binding: products.session.bind().input("x", x).output("y", y) };
      });
      const attending = attention.start();
      await Promise.all([attending.done, ...own.map(({ binding }) => products.session.runAsync(binding))]);
      own.forEach(({ x, y, binding }, i) => {
        expectSame(floats(y), alone[i]!);
        for (const owned of [binding, x, y]) owned.dispose();
      });
      expectSame(attending.result(), attended);
    }
  });
}
