/** @file Every op and every gradient rule on the devices that are here, against the CPU. */
import { describe, expect, test } from "vitest";
import { availableDevices, type DeviceName, Session, type Tensor } from "../runtime/index.ts";
import { grad } from "./autodiff.ts";
import { exportOnnx } from "./export.ts";
import { Graph, type Value } from "./graph.ts";
import { mul, sum } from "./index.ts";
import { plainCases } from "./testing/cases.ts";
import { Draw, problems } from "./testing/problems.ts";
import { type Feed, type GradientProblem, tensorOf } from "./testing/run.ts";
import { transformerCases } from "./testing/transformer-cases.ts";

const devices = availableDevices().filter((device) => device !== "cpu");

interface Problem {
  readonly inputs: GradientProblem["inputs"];
  readonly build: (inputs: Value[], graph: Graph) => Value | readonly Value[];
}

/** What devices compute with. */
const narrow = (feed: Feed): Feed => (feed.dtype === "float64" ? { ...feed, dtype: "float32" } : feed);

/** All outputs, by name; with `gradients` those of Σ y² too. */
function resultsOf({ inputs, build }: Problem, device: DeviceName, gradients: boolean): Map<string, number[]> {
  const graph = new Graph("case", device);
  const values = inputs.map((input, i) => {
    const { dtype, dims, shape } = narrow(input);
    return graph.input(`x${i}`, dtype, dims ?? shape);
  });
  const built = [build(values, graph)].flat();
  for (const [i, value] of built.entries()) graph.output(`y${i}`, value);
  if (gradients) {
    const wrt = inputs.flatMap(({ dtype, fixed }, i) => (dtype.startsWith("float") && !fixed ? [i] : []));
    const loss = sum(mul(built[0]!, built[0]!));
    const found = grad(
      loss,
      wrt.map((i) => values[i]!),
    );
    for (const [j, value] of found.entries()) graph.output(`dx${wrt[j]}`, value);
  }
  using session = Session.create(exportOnnx(graph), { device });
  const feeds: Record<string, Tensor> = {};
  for (const { name } of session.inputs) feeds[name] = tensorOf(narrow(inputs[Number(name.slice(1))]!));
  const results = session.call(feeds);
  const numbers = Object.entries(results).map(([name, { data }]) => [name, Array.from(data, Number)] as const);
  for (const tensor of [...Object.values(feeds), ...Object.values(results)]) tensor.dispose();
  return new Map(numbers);
}

function compare(problem: Problem, device: DeviceName, gradients: boolean): void {
  const wanted = resultsOf(problem, "cpu", gradients);
  const found = resultsOf(problem, device, gradients);
  expect([...found.keys()]).toEqual([...wanted.keys()]);
  for (const [name, numbers] of wanted) {
    const scale = Math.max(1, ...numbers.map(Math.abs));
    const worst = Math.max(0, ...numbers.map((x, i) => Math.abs(x - found.get(name)![i]!) / scale));
    expect(worst, name).toBeLessThan(1e-3);
  }
}

/** Their own cases ask for parts of a batch that have no rows. */
const EMPTY_PARTS = ["withSlopes", "rowParts"];
const cases = Object.entries({ ...plainCases, ...transformerCases }).filter(([name]) => !EMPTY_PARTS.includes(name));
const rules = Object.keys(problems).filter((name) => !EMPTY_PARTS.includes(name));

describe.skipIf(devices.length === 0)("a device other than the CPU (skipped where there is none)", () => {
  describe.each(devices)("%s", (device) => {
    test.each(cases)("%s", (_, problem) => compare(problem, device, false));
    test.each(rules)("gradient of %s", (name) => {
      for (const seed of [1, 2, 3]) compare(problems[name]!(new Draw(seed)), device, true);
    });
  });
});
