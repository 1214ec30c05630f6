/** @file milora's operators with the widest instructions of this machine. */
import { describe, expect, test } from "vitest";
import { configureRuntime, operators } from "./index.ts";
import { linearTests } from "./testing/linear-operator.ts";
import { instructionsOf, NONE_HERE } from "./testing/operators.ts";

delete process.env.MILORA_OPERATORS;
configureRuntime({ threads: 2 });

test("there are operators where there must be", () => {
  expect(operators()?.instructions).toBe(instructionsOf());
});

describe.skipIf(operators() === undefined)(`operators (else: ${NONE_HERE})`, () => {
  linearTests();
});
