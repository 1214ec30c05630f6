/** @file What a router does while it is trained: experts that fade out, and the information of a route, by hand. */
import { expect, test } from "vitest";
import { Graph, grad, mul, sum, type Value } from "../../graph/index.ts";
import { Backbone } from "../../models/index.ts";
import { Tensor } from "../../runtime/index.ts";
import { runOnce } from "../compute.ts";
import { milora } from "../index.ts";
import type { MiloraConfig } from "./config.ts";
import { information, loadBalance, PromptMask, type Routes, route } from "./router.ts";

const EXPERTS = 3;
/** Of two prompts; the routers below are made so that these are their scores. */
const SCORES = [
  [2, 1, 0.5],
  [0, 1, 3],
];
const WEIGHTS = [0.3, -1.2, 0.7];

/** Results of a graph over a router whose scores are its input, one token a prompt; and their gradients in the scores. */
function run(
  options: Partial<MiloraConfig>,
  progress: number | undefined,
  results: (routes: Routes, graph: Graph) => Record<string, Value>,
): Record<string, number[]> {
  const graph = new Graph();
  const modules = ["q_proj", "k_proj", "v_proj"];
  const fixed = { target_modules: modules, top_k: 1, pooler: "mean", activation: "identity", router_input: "raw" };
  const config = milora.newConfig({ ...fixed, ...options }, Backbone.shapes["llama-2-7b"]!);
  const shape = [SCORES.length, EXPERTS];
  const hidden = graph.input("hidden", "float32", shape);
  const mask = new PromptMask(graph.constant("float32", [SCORES.length, 1], [1, 1]));
  const identity = graph.constant("float32", [EXPERTS, EXPERTS], [1, 0, 0, 0, 1, 0, 0, 0, 1]);
  const at = progress === undefined ? undefined : graph.scalar(progress);
  for (const [name, value] of Object.entries(
    results(
      route(config, 0, hidden, mask, () => identity, at),
      graph,
    ),
  )) {
    graph.output(name, value);
    graph.output(`${name}.gradient`, grad(value.shape.length ? sum(value) : value, [hidden])[0]!);
  }
  using scores = Tensor.from("float32", shape, Float32Array.from(SCORES.flat()));
  return Object.fromEntries(
    [...runOnce(graph, new Map([["hidden", scores]]))].map(([name, tensor]) => {
      using owned = tensor;
      return [name, Array.from(owned.data as Float32Array)];
    }),
  );
}

function softmax(scores: readonly number[]): number[] {
  const exps = scores.map(Math.exp);
  return exps.map((value) => value / exps.reduce((a, b) => a + b));
}

const weigh = (gates: Value, graph: Graph) => mul(gates, graph.constant("float32", [EXPERTS], WEIGHTS));

function near(actual: readonly number[] | undefined, wanted: readonly number[], digits = 5): void {
  expect(actual).toHaveLength(wanted.length);
  for (const [i, value] of wanted.entries()) expect(actual![i]).toBeCloseTo(value, digits);
}

test.each([
  [0, 1],
  [0.25, 0.5],
  [0.45, 0.1],
  [0.5, 0],
  [1, 0],
])("at %d of the training an expert that is not chosen counts %d", (progress, faded) => {
  const strengths = [1, faded, faded, faded, faded, 1];
  const { trained, gates, weighed, ...gradients } = run({ anneal: 0.5 }, progress, (routes, graph) => ({
    trained: routes.trained,
    gates: routes.gates,
    weighed: weigh(routes.trained, graph),
  }));
  near(trained, strengths);
  expect(gates).toEqual([1, 0, 0, 0, 0, 1]);
  near(
    weighed,
    strengths.map((strength, i) => strength * WEIGHTS[i % EXPERTS]!),
  );
  // Straight through: the gradient of Σ w m p in the scores, m held fast, is p_j (w_j m_j − Σ_i w_i m_i p_i).
  const wanted = SCORES.flatMap((row, b) => {
    const p = softmax(row);
    const pull = WEIGHTS.map((w, i) => w * strengths[b * EXPERTS + i]!);
    const mean = pull.reduce((total, value, i) => total + value * p[i]!, 0);
    return p.map((value, j) => value * (pull[j]! - mean));
  });
  near(gradients["weighed.gradient"], wanted);
});

test.each(["straight_through", "probability", "renormalized"] as const)(
  "once they have faded, in use and without annealing the gates are the same (%s)",
  (gate) => {
    const trained = (anneal: number, progress?: number) =>
      run({ anneal, gate, top_k: 2 }, progress, ({ trained }) => ({ trained })).trained;
    const hard = trained(0);
    expect(hard![2]).toBe(0); // the third score is the lowest of the first prompt
    for (const gates of [trained(0, 0.1), trained(0.5, 0.5), trained(0.5, 1), trained(0.5)])
      expect(gates).toEqual(hard);
    expect(trained(0.5, 0.1)).not.toEqual(hard);
  },
);

/** H(p given the prompt) − H(mean p), in nats. */
function informationOf(scores: readonly (readonly number[])[]): number {
  const entropy = (p: readonly number[]) => -p.reduce((total, value) => total + value * Math.log(value), 0);
  const rows = scores.map(softmax);
  const means = WEIGHTS.map((_, i) => rows.reduce((total, row) => total + row[i]! / rows.length, 0));
  return rows.reduce((total, row) => total + entropy(row) / rows.length, 0) - entropy(means);
}

test("the information loss is minus the mutual information between prompt and expert", () => {
  const result = run({}, 0.5, (routes) => ({ loss: information(routes), balance: loadBalance(routes) }));
  near(result.loss, [informationOf(SCORES)], 6);
  expect(result.loss![0]).toBeLessThan(-0.1);
  const step = 1e-5;
  const slopes = SCORES.flatMap((row, b) =>
    row.map((_, j) => {
      const moved = (by: number) => SCORES.map((r, i) => r.map((s, k) => (i === b && k === j ? s + by : s)));
      return (informationOf(moved(step)) - informationOf(moved(-step))) / (2 * step);
    }),
  );
  near(result["loss.gradient"], slopes);
  expect(result["balance.gradient"]).not.toEqual(result["loss.gradient"]);
});
