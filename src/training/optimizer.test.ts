/** @file AdamW against its textbook form in double precision: clipping, bias correction, decay, in-place buffers. */
import { describe, expect, it } from "vitest";
import { Random } from "../base/index.ts";
import { Tensor } from "../runtime/index.ts";
import { AdamW, type AdamWOptions, type OptimizerGroup } from "./optimizer.ts";

function group(n: number, random: Random): OptimizerGroup {
  const parameter = Tensor.allocate("float32", [n]);
  (parameter.data as Float32Array).set(Float32Array.from({ length: n }, () => random.normal()));
  const buffer = () => Tensor.allocate("float32", [n]);
  return { parameter, gradient: buffer(), first: buffer(), second: buffer() };
}

/** torch.optim.AdamW with clip_grad_norm_ before it, in float64. */
class Reference {
  readonly p: Float64Array;
  readonly m: Float64Array;
  readonly v: Float64Array;
  constructor(parameter: Float32Array) {
    this.p = Float64Array.from(parameter);
    this.m = new Float64Array(parameter.length);
    this.v = new Float64Array(parameter.length);
  }
  update(
    g: Float32Array,
    norm: number,
    lr: number,
    t: number,
    { betas: [b1, b2], eps, weightDecay, maxGradNorm }: AdamWOptions,
  ) {
    const clip = maxGradNorm === 0 ? 1 : Math.min(1, maxGradNorm / (norm + 1e-6));
    for (const i of g.keys()) {
      const x = g[i]! * clip;
      this.m[i] = b1 * this.m[i]! + (1 - b1) * x;
      this.v[i] = b2 * this.v[i]! + (1 - b2) * x * x;
      const mHat = this.m[i]! / (1 - b1 ** t);
      const vHat = this.v[i]! / (1 - b2 ** t);
      this.p[i] = this.p[i]! * (1 - lr * weightDecay) - (lr * mHat) / (Math.sqrt(vHat) + eps);
    }
  }
}

const data = (tensor: Tensor): Float32Array => tensor.data as Float32Array;

describe("AdamW", () => {
  for (const [name, options] of [
    ["clipping and weight decay", { betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.1, maxGradNorm: 0.5 }],
    ["neither", { betas: [0.8, 0.99], eps: 1e-6, weightDecay: 0, maxGradNorm: 0 }],
  ] as [string, AdamWOptions][]) {
    it(`follows torch's AdamW over ten steps, with ${name}`, async () => {
      const random = new Random(3);
      using optimizer = new AdamW(options);
      const groups = [group(1000, random), group(48, random)];
      const references = groups.map(({ parameter }) => new Reference(data(parameter)));
      for (let t = 1; t <= 10; t++) {
        for (const { gradient } of groups) {
          data(gradient).set(Float32Array.from({ length: gradient.size }, () => random.normal() * 0.1 * (t % 3)));
        }
        const all = groups.flatMap(({ gradient }) => Array.from(data(gradient)));
        const norm = await optimizer.norm(groups);
        const exact = Math.sqrt(all.reduce((sum, x) => sum + x * x, 0));
        expect(Math.abs(norm - exact)).toBeLessThanOrEqual(1e-5 * exact);
        for (const [i, one] of groups.entries()) {
          await optimizer.update([one], norm, 1e-2 / t, t);
          references[i]!.update(data(one.gradient), exact, 1e-2 / t, t, options);
        }
      }
      for (const [i, { parameter, first, second }] of groups.entries()) {
        const { p, m, v } = references[i]!;
        for (const [actual, wanted] of [
          [parameter, p],
          [first, m],
          [second, v],
        ] as const) {
          const worst = Math.max(...wanted.map((x, j) => Math.abs(x - data(actual)[j]!)));
          expect(worst).toBeLessThan(2e-6);
        }
      }
      for (const one of groups) for (const tensor of Object.values(one)) (tensor as Tensor).dispose();
    });
  }

  it("leaves zeros of padding at zero", async () => {
    using optimizer = new AdamW({ betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.1, maxGradNorm: 1 });
    const one = group(16, new Random(1));
    data(one.parameter).fill(0);
    for (let t = 1; t <= 3; t++) await optimizer.update([one], await optimizer.norm([one]), 1e-3, t);
    expect(Array.from(data(one.parameter))).toEqual(new Array(16).fill(0));
    for (const tensor of Object.values(one)) (tensor as Tensor).dispose();
  });

  it("reports a norm that is not finite", async () => {
    using optimizer = new AdamW({ betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0, maxGradNorm: 1 });
    const one = group(16, new Random(1));
    data(one.gradient)[3] = Number.NaN;
    expect(await optimizer.norm([one])).toBeNaN();
    for (const tensor of Object.values(one)) (tensor as Tensor).dispose();
  });
});
