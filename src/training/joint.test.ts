/** @file Adapters stepped together take the steps they take alone: every method, uneven batches, failures, quantised weights. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Random } from "../base/index.ts";
import { Adapter, methodOf, methods } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import type { Example } from "./data.ts";
import { JointTrainer, mostThorough } from "./joint.ts";
import { exampleOf, SMALL } from "./testing.ts";
import { Trainer, type TrainerOptions } from "./trainer.ts";

const model = join(import.meta.dirname, "../../test/fixtures/backbones/llama-gqa");
const backbone = await Backbone.load(model);
const int8 = await Backbone.load(model, { weights: "int8" });
afterAll(() => {
  backbone.dispose();
  int8.dispose();
});

/** Of each loss and norm, and of each tensor, after as many steps as below: what rounding makes of other row counts. */
const TOLERANCE = 1e-5;
const STEPS = 10;

const settings: typeof SMALL = {
  ...SMALL,
  adalora: { init_r: 4, tinit: 2, tfinal: 2 },
  ia3: { projection_dim: 8, target_modules: ["k_proj", "down_proj"], feedforward_modules: ["down_proj"] },
  // Not k_proj: a softmax hardly sees a bias of all keys, whose gradient is then rounding, of which AdamW makes steps.
  ssp: { r: 4, target_modules: ["q_proj", "v_proj", "down_proj"] },
};

interface Case {
  readonly method: string;
  readonly seed: number;
  readonly lr?: number;
  readonly options?: Partial<TrainerOptions>;
  /** Lengths of the sequences of each batch. */
  readonly lengths?: readonly number[];
}

const batchOf = (random: Random, lengths: readonly number[]): Example[] =>
  lengths.map((length) => exampleOf(random, length));

function make({ method, seed, options }: Case, frozen: Backbone) {
  const run = { totalSteps: STEPS };
  const adapter = Adapter.create(methodOf(method), settings[method] ?? { r: 4 }, frozen.config, seed, frozen, run);
  const trainer = new Trainer(frozen, adapter, {
    betas: [0.9, 0.999],
    eps: 1e-8,
    weightDecay: 0.01,
    maxGradNorm: 1,
    microBatchSize: 2,
    maxLength: 64,
    bilevel: true,
    seed,
    ...options,
  });
  return { adapter, trainer };
}

/** The batches of a case, the same whether it is stepped alone or not. */
function inputsOf({ seed, lr = 1e-3, lengths = [9, 17, 6] }: Case) {
  const random = new Random(100 + seed);
  return Array.from({ length: STEPS }, (_, step) => ({
    batch: batchOf(random, lengths),
    lr: lr * (1 - step / STEPS),
    progress: step / STEPS,
    activation: { batch: batchOf(random, [8, 5]), lr: lr / 2 },
  }));
}

const numbers = (adapter: Adapter) => adapter.specs.map(({ key }) => adapter.values(key).slice());
const dev = batchOf(new Random(7), [12, 5, 9]);

async function alone(one: Case, frozen: Backbone) {
  const { adapter, trainer } = make(one, frozen);
  const losses: number[] = [];
  for (const { batch, ...input } of inputsOf(one)) {
    const outcome = (await trainer.step(batch, input))!;
    losses.push(outcome.losses.loss, outcome.losses.grad_norm, outcome.activation?.loss ?? 0);
  }
  const evaluation = await trainer.evaluate(dev);
  const result = { losses, values: numbers(adapter), dev: evaluation!.loss };
  trainer[Symbol.dispose]();
  adapter.dispose();
  return result;
}

async function together(cases: readonly Case[], frozen: Backbone) {
  const made = cases.map((one) => make(one, frozen));
  const inputs = cases.map(inputsOf);
  const losses: number[][] = cases.map(() => []);
  using joint = new JointTrainer(made.map(({ trainer }) => trainer));
  for (let step = 0; step < STEPS; step++) {
    const results = (await joint.step(inputs.map((own) => own[step]!)))!;
    for (const [i, result] of results.entries()) {
      if (result.status === "rejected") throw result.reason;
      const { losses: of, activation } = result.value;
      losses[i]!.push(of.loss, of.grad_norm, activation?.loss ?? 0);
    }
  }
  const evaluations = (await joint.evaluate(cases.map(() => dev)))!;
  return made.map(({ adapter, trainer }, i) => {
    const result = { losses: losses[i]!, values: numbers(adapter), dev: evaluations[i]!.loss };
    trainer[Symbol.dispose]();
    adapter.dispose();
    return result;
  });
}

/** Distance of two lists of numbers, relative to the length of the second (L2). */
function distance(actual: ArrayLike<number>, wanted: ArrayLike<number>): number {
  let [squares, scale] = [0, 1e-12];
  for (let i = 0; i < wanted.length; i++) {
    squares += (actual[i]! - wanted[i]!) ** 2;
    scale += wanted[i]! ** 2;
  }
  return Math.sqrt(squares / scale);
}

async function expectEqual(cases: readonly Case[], frozen = backbone): Promise<void> {
  const joint = await together(cases, frozen);
  for (const [i, one] of cases.entries()) {
    const wanted = await alone(one, frozen);
    const what = `${i} ${one.method}`;
    for (const [step, loss] of wanted.losses.entries()) {
      expect(distance([joint[i]!.losses[step]!], [loss]), `${what}: number ${step}`).toBeLessThan(TOLERANCE);
    }
    for (const [at, values] of wanted.values.entries()) {
      expect(distance(joint[i]!.values[at]!, values), `${what}: parameter ${at}`).toBeLessThan(TOLERANCE);
    }
    expect(distance([joint[i]!.dev], [wanted.dev]), `${what}: dev`).toBeLessThan(TOLERANCE);
  }
}

describe("JointTrainer", () => {
  it("takes the steps of three seeds of LoRA as if each were alone", async () => {
    await expectEqual([0, 1, 2].map((seed) => ({ method: "lora", seed })));
  });

  const joinable = [...methods.values()].filter(({ changesHead }) => !changesHead).map(({ name }) => name);
  const halves = [0, 1].map((half) => joinable.filter((_, i) => i % 2 === half));
  it.each(halves.map((names) => [names.join(", "), names] as const))(
    "takes the steps of methods that have nothing in common: %s",
    async (_, names) => {
      await expectEqual(names.map((method, seed) => ({ method, seed })));
    },
  );

  it("lets each have batches, micro-batches, rates, clipping and packing of its own", async () => {
    await expectEqual([
      { method: "lora", seed: 0, lengths: [9, 17, 6, 30, 4, 12, 8], options: { microBatchSize: 3 } },
      { method: "milora", seed: 1, lengths: [40], lr: 3e-3, options: { maxGradNorm: 0.1, betas: [0.8, 0.99] } },
      { method: "milora", seed: 2, options: { packing: true, bilevel: false, microBatchSize: 1 } },
      { method: "ia3", seed: 3, lengths: [5, 6], options: { microBatchSize: 1 } },
      // Too many to pass with the others: these go one after the other through one graph.
      { method: "lora", seed: 5, options: { passTokens: 10_000 } },
      { method: "lora", seed: 6, options: { passTokens: 10_000 }, lengths: [5, 6, 7, 8, 9] },
      { method: "p-tuning-v2", seed: 4, lengths: [20, 21], options: { packing: true, weightDecay: 0 } },
    ]);
  });

  it("does so over quantised weights", async () => {
    const methods = ["lora", "ia3", "iapt"];
    await expectEqual(
      methods.map((method, seed) => ({ method, seed })),
      int8,
    );
  });

  it("leaves out one whose numbers are not finite, and the others are as if it had not been there", async () => {
    const cases: Case[] = [0, 1, 2].map((seed) => ({ method: "lora", seed }));
    const made = cases.map((one) => make(one, backbone));
    const [, broken] = made;
    const key = broken!.adapter.specs.find((spec) => spec.key.includes("lora_B"))!.key;
    broken!.adapter.values(key)[0] = Number.POSITIVE_INFINITY;
    const before = numbers(broken!.adapter);
    using joint = new JointTrainer(made.map(({ trainer }) => trainer));
    const [first, second, third] = (await joint.step(cases.map((one) => inputsOf(one)[0]!)))!;
    expect(second).toMatchObject({ status: "rejected", reason: { code: "TRAINING_NOT_FINITE" } });
    expect(numbers(broken!.adapter)).toEqual(before);
    for (const [i, result] of [first, third].entries()) {
      const { adapter, trainer } = make(cases[2 * i]!, backbone);
      const { batch, ...input } = inputsOf(cases[2 * i]!)[0]!;
      const { losses } = (await trainer.step(batch, input))!;
      expect(result).toMatchObject({
        status: "fulfilled",
        value: { losses: { loss: expect.closeTo(losses.loss, 5) } },
      });
      for (const [at, values] of numbers(adapter).entries()) {
        expect(distance(numbers(made[2 * i]!.adapter)[at]!, values)).toBeLessThan(TOLERANCE);
      }
      trainer[Symbol.dispose]();
      adapter.dispose();
    }
    for (const { adapter, trainer } of made) {
      trainer[Symbol.dispose]();
      adapter.dispose();
    }
  });

  it("recomputes what the most thorough member asks for, whatever their order", () => {
    expect(mostThorough(["light", "all"])).toBe("all");
    expect(mostThorough(["all", "light", "nothing"])).toBe("all");
    expect(mostThorough([undefined, "nothing", "light"])).toBe("light");
    expect(mostThorough([undefined, undefined])).toBeUndefined();
  });

  it("refuses methods that change the backbone itself, by name", () => {
    const made = [make({ method: "lora", seed: 0 }, backbone), make({ method: "full", seed: 0 }, backbone)];
    const trainers = made.map(({ trainer }) => trainer);
    expect(() => new JointTrainer(trainers)).toThrow(/full changes the backbone itself; train it alone/);
    for (const { adapter, trainer } of made) {
      trainer[Symbol.dispose]();
      adapter.dispose();
    }
  });
});
