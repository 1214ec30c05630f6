/** @file Tests of the operators Gated and AddNorm, which change each row by itself. */
import { describe, expect, test } from "vitest";
import { OPERATOR_DOMAIN, operators, Session, Tensor } from "../index.ts";
import { testModel } from "../testing.ts";
import { expectNear, expectSame, floats, matrix, normals } from "./operators.ts";

const WIDTHS = [1, 7, 8, 16, 33, 64, 100, 576, 1536];

const gated = (N: number): Session =>
  Session.create(
    testModel({
      inputs: { x: ["float32", ["M", 2 * N]] },
      outputs: { y: ["float32", ["M", N]] },
      nodes: [{ op: "Gated", domain: OPERATOR_DOMAIN, inputs: ["x"], outputs: ["y"], attributes: { N } }],
    }),
  );

const addNorm = (N: number, epsilon: number): Session =>
  Session.create(
    testModel({
      inputs: { x: ["float32", ["M", N]], skip: ["float32", ["M", N]], weight: ["float32", [N]] },
      outputs: { y: ["float32", ["M", N]], sum: ["float32", ["M", N]] },
      nodes: [
        {
          op: "AddNorm",
          domain: OPERATOR_DOMAIN,
          inputs: ["x", "skip", "weight"],
          outputs: ["y", "sum"],
          attributes: { N, epsilon: { float: epsilon } },
        },
      ],
    }),
  );

function gate(session: Session, x: Float32Array, N: number): Float32Array {
  using rows = matrix(x.length / (2 * N), 2 * N, x);
  using y = session.call({ x: rows }).y!;
  return floats(y).slice();
}

/** Calls `check` with one thread and with two. */
function bothWays(check: () => void): void {
  check();
  operators()!.useThreads(1);
  check();
  operators()!.useThreads(2);
}

export function rowTests(): void {
  describe("Gated", () => {
    test.each(WIDTHS)("is silu of one half times the other, width %d", (N) => {
      using session = gated(N);
      for (const M of [1, 3, 40]) {
        const x = normals(N + M, M * 2 * N, 4);
        const values = new Float64Array(M * N);
        for (let i = 0; i < M * N; i++) {
          const at = Math.floor(i / N) * 2 * N + (i % N);
          values[i] = (x[at]! / (1 + Math.exp(-x[at]!))) * x[at + N]!;
        }
        bothWays(() => expectNear(gate(session, x, N), { values, sizes: values.map(Math.abs) }, 1e-6));
      }
    });

    test("numbers far from zero, and NaN in its place", () => {
      using session = gated(8);
      const x = Float32Array.of(-50, 50, -80, -120, -1e30, 1e30, Number.NaN, -0, ...new Array(8).fill(1));
      const y = gate(session, x, 8);
      expect(y[0]! / (-50 * Math.exp(-50))).toBeCloseTo(1, 5);
      expect(y[2]! / (-80 * Math.exp(-80))).toBeCloseTo(1, 5);
      expect([y[1], y[5], y[6]]).toEqual([50, Math.fround(1e30), Number.NaN]);
      for (const i of [3, 4, 7]) expect(Math.abs(y[i]!)).toBeLessThan(1e-37);
    });
  });

  describe("AddNorm", () => {
    test.each(WIDTHS)("is a sum and its norm, width %d", (N) => {
      const epsilon = 1e-3;
      using session = addNorm(N, epsilon);
      for (const M of [1, 3, 40]) {
        const data = [normals(1, M * N), normals(2, M * N, 3), normals(3, N)] as const;
        using x = matrix(M, N, data[0]);
        using skip = matrix(M, N, data[1]);
        using weight = Tensor.from("float32", [N], data[2]);
        const total = data[0].map((value, i) => value + data[1][i]!);
        const values = Float64Array.from(total, (value, i) => {
          const row = total.subarray(Math.floor(i / N) * N, Math.floor(i / N) * N + N);
          const mean = row.reduce((sum, v) => sum + v * v, 0) / N;
          return (value / Math.sqrt(mean + epsilon)) * data[2][i % N]!;
        });
        bothWays(() => {
          const results = session.call({ x, skip, weight });
          expectSame(floats(results.sum!), total);
          expectNear(floats(results.y!), { values, sizes: values.map(Math.abs) }, 1e-6);
          for (const tensor of Object.values(results)) tensor.dispose();
        });
      }
    });
  });
}
