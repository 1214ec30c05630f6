/** @file Adapters against PyTorch: logits, routes, probabilities, losses and gradients of test/reference/. */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Adapter, geluDenominator, geluNumerator } from "../../src/methods/index.ts";
import { Backbone, readSafetensors } from "../../src/models/index.ts";
import { adapterCases, type Batch, distance, FIXTURES, fixture, pass } from "./support.ts";

interface Sequence {
  readonly tokens?: number[];
  readonly prompt?: number[];
  readonly response?: number[];
  readonly logits?: number[][];
  readonly routes?: number[][];
  readonly probabilities?: number[][];
}

interface Expected {
  readonly backbone: string;
  readonly sequences: Sequence[];
  readonly training?: Batch & {
    readonly loss: number;
    /** MiLoRA's, not weighted. */
    readonly loadBalanceLoss?: number;
    /** Losses of the method, weighted, by name. */
    readonly auxiliary?: Readonly<Record<string, number>>;
  };
}

const TOLERANCE = 1e-4;
describe.each(adapterCases())("$method/$name", ({ method, name }) => {
  const directory = join(FIXTURES, method, name);
  const expected = fixture<Expected>(method, name, "expected.json");
  let backbone: Backbone;
  let adapter: Adapter;
  beforeAll(async () => {
    backbone = await Backbone.load(join(FIXTURES, "backbones", expected.backbone));
    adapter = Adapter.load(directory, backbone.config);
  });
  afterAll(() => {
    adapter?.dispose();
    backbone?.dispose();
  });

  test("logits and routes of each sequence", () => {
    for (const sequence of expected.sequences) {
      if (!sequence.logits) continue;
      const tokens = sequence.tokens ?? [...sequence.prompt!, ...sequence.response!];
      const promptLengths = [sequence.prompt?.length ?? tokens.length];
      const { logits, values } = pass(backbone, adapter, { tokens: [tokens], promptLengths });
      expect(distance(logits, sequence.logits.flat())).toBeLessThan(TOLERANCE);
      if (!sequence.routes) continue;
      const experts = sequence.probabilities![0]!.length;
      const gates = values.get("gates")!;
      const routes = sequence.routes.map((_, layer) =>
        Array.from({ length: experts }, (_, e) => e).filter((e) => gates[layer * experts + e] !== 0),
      );
      expect(routes).toEqual(sequence.routes);
      expect(distance(values.get("probabilities")!, sequence.probabilities!.flat())).toBeLessThan(TOLERANCE);
    }
  });

  test.runIf(expected.training)("loss and gradients of a padded batch", () => {
    const training = expected.training!;
    const { loss, auxiliary, gradients } = pass(backbone, adapter, training);
    expect(loss).toBeCloseTo(training.loss, 4);
    if (training.loadBalanceLoss !== undefined) {
      expect(auxiliary.get("load_balance")).toBeCloseTo(0.01 * training.loadBalanceLoss, 5);
    }
    for (const [name, value] of Object.entries(training.auxiliary ?? {})) {
      expect(auxiliary.get(name) ?? 0, name).toBeCloseTo(value, 5);
    }
    const { tensors } = readSafetensors(join(directory, "gradients.safetensors"));
    expect([...gradients.keys()].sort()).toEqual([...tensors.keys()].sort());
    for (const [key, tensor] of tensors) {
      const values = tensor.data as Float32Array;
      // Coefficients of x⁵ have gradients in the tens and hundreds: there the tolerance is relative to the largest.
      const scale = Math.max(1, ...values.map(Math.abs));
      // In this one case PyTorch's own float32 gradient is 1.5e-4 away from its float64 one.
      const rounded = name === "dora" && key.includes("activation.denominator");
      expect.soft(distance(gradients.get(key)!, values) / scale, key).toBeLessThan(rounded ? 4e-4 : TOLERANCE);
    }
  });
});

test("the rational activation starts as GELU, closer than 1e-3 on [-3, 3]", () => {
  let worst = 0;
  for (let x = -3; x <= 3; x += 1 / 512) {
    const numerator = geluNumerator.reduce((sum, a, j) => sum + a * x ** j, 0);
    const denominator = 1 + Math.abs(geluDenominator.reduce((sum, b, i) => sum + b * x ** (i + 1), 0));
    worst = Math.max(worst, Math.abs(numerator / denominator - (x / 2) * (1 + erf(x / Math.SQRT2))));
  }
  expect(worst).toBeLessThan(1e-3);
  expect(worst).toBeGreaterThan(1e-6); // the fit is not exact; an exact one would mean that nothing was compared
});

/** By its Maclaurin series, exact to double precision on the interval used. */
function erf(x: number): number {
  let term = x;
  let sum = x;
  for (let n = 1; n < 100; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}
