/** @file AdaLoRA's budget: importance scores of all weights, kept as running means, and the rows that are masked by them. */
import { InputError } from "../../base/index.ts";
import { abs, add, exportOnnx, Graph, mean, mul, reshape, sub } from "../../graph/index.ts";
import { type Binding, Session, Tensor } from "../../runtime/index.ts";
import type { TrainingContext, TrainingState } from "../method.ts";
import { type AdaloraConfig, adaloraKeys, rankedSites } from "./config.ts";

/** Total rank that may stay at a step (from 0), and whether rows are masked then: PEFT's cubic schedule (eq. 11). */
export function budgetAt(
  step: number,
  { tinit, tfinal, deltaT }: AdaloraConfig,
  totalSteps: number,
  ranks: { readonly initial: number; readonly target: number },
): { readonly budget: number; readonly due: boolean } {
  if (step <= tinit) return { budget: ranks.initial, due: false };
  if (step > totalSteps - tfinal) return { budget: ranks.target, due: true };
  const left = 1 - (step - tinit) / (totalSteps - tfinal - tinit);
  return {
    budget: Math.trunc((ranks.initial - ranks.target) * left ** 3 + ranks.target),
    due: step % deltaT === 0,
  };
}

/** Which of the scores are above all but the `budget` largest; equal ones at the border all fall. */
export function keepLargest(scores: Float32Array, budget: number): boolean[] {
  const fallen = scores.length - budget;
  if (fallen < 1) return new Array<boolean>(scores.length).fill(true);
  const threshold = scores.toSorted()[fallen - 1]!;
  return Array.from(scores, (score) => score > threshold);
}

/** Running means of each weight's sensitivity |w · ∂L/∂w| and of its fluctuation (eq. 9, 10), over flat buffers. */
function buildSensitivity({ beta1, beta2 }: AdaloraConfig): Uint8Array {
  const graph = new Graph("sensitivity");
  const buffer = (name: string) => graph.input(name, "float32", ["n"]);
  const [parameter, gradient, average, uncertainty] = [
    buffer("parameter"),
    buffer("gradient"),
    buffer("average"),
    buffer("uncertainty"),
  ];
  const sensitivity = abs(mul(parameter, mul(gradient, graph.input("clip", "float32", []))));
  const newAverage = add(mul(average, beta1), mul(sensitivity, 1 - beta1));
  const deviation = abs(sub(sensitivity, newAverage));
  graph.output("newAverage", newAverage, { replaces: average });
  graph.output("newUncertainty", add(mul(uncertainty, beta2), mul(deviation, 1 - beta2)), { replaces: uncertainty });
  return exportOnnx(graph);
}

/** Importance of each triplet of a module: that of E, and the means over the row of A and the column of B (eq. 8). */
function buildScores(): Uint8Array {
  const graph = new Graph("scores");
  const score = (name: string, shape: string[]) =>
    mul(graph.input(`${name}.average`, "float32", shape), graph.input(`${name}.uncertainty`, "float32", shape));
  const a = mean(score("a", ["r", "in"]), { axes: [1], keepDims: false });
  const b = mean(score("b", ["out", "r"]), { axes: [0], keepDims: false });
  graph.output("scores", add(reshape(score("e", ["r"]), ["r"]), add(a, b)));
  return exportOnnx(graph);
}

/** The rank allocator of one training run, step for step that of PEFT. */
export class AdaloraTraining implements TrainingState {
  readonly tensors: ReadonlyMap<string, Tensor>;
  readonly #config: AdaloraConfig;
  readonly #totalSteps: number;
  readonly #ranks: { readonly initial: number; readonly target: number };
  /** All E, views of the parameters, in the order of the scores. */
  readonly #values: Float32Array[];
  readonly #average: Tensor; // float32 [n], as the parameters
  readonly #uncertainty: Tensor; // float32 [n]
  /** 1 for rows that stay once the budget is final, float32 [modules · init_r]. */
  readonly #kept: Tensor;
  readonly #scores: Tensor; // float32 [modules · init_r]
  readonly #clip = Tensor.scalar("float32", 1);
  readonly #sensitivity: Session;
  readonly #update: Binding;
  readonly #scoring: Session;
  /** One for each module. */
  readonly #bindings: readonly Binding[];
  readonly #views: Tensor[] = [];

  /** @throws InputError when the config does not say how long the run is */
  constructor({ config, backbone, parameters, gradients, offsets }: TrainingContext<AdaloraConfig>) {
    if (config.total_step == null) {
      throw new InputError("CONFIG_INVALID", "adalora", "total_step: is missing; the budget follows from it");
    }
    const sites = rankedSites(config, backbone).map(({ site }) => site);
    const r = config.init_r;
    const rows = sites.length * r;
    this.#config = config;
    this.#totalSteps = config.total_step;
    this.#ranks = { initial: rows, target: sites.length * config.target_r };
    this.#average = Tensor.allocate("float32", parameters.shape);
    this.#uncertainty = Tensor.allocate("float32", parameters.shape);
    this.#kept = Tensor.from("float32", [rows], new Float32Array(rows).fill(1));
    this.#scores = Tensor.allocate("float32", [rows]);
    this.tensors = new Map([
      ["average", this.#average],
      ["uncertainty", this.#uncertainty],
      ["kept", this.#kept],
    ]);
    this.#sensitivity = Session.create(buildSensitivity(config));
    this.#update = this.#sensitivity
      .bind()
      .input("parameter", parameters)
      .input("gradient", gradients)
      .input("clip", this.#clip)
      .input("average", this.#average)
      .input("uncertainty", this.#uncertainty)
      .output("newAverage", this.#average)
      .output("newUncertainty", this.#uncertainty);
    this.#scoring = Session.create(buildScores());
    const view = (of: Tensor, offset: number, shape: readonly number[]): Tensor => {
      const made = of.view(offset, shape);
      this.#views.push(made);
      return made;
    };
    this.#bindings = sites.map((site, index) => {
      const { a, b, e } = adaloraKeys(site);
      const parts = [
        ["a", a, [r, site.inFeatures]],
        ["b", b, [site.outFeatures, r]],
        ["e", e, [r]],
      ] as const;
      const binding = this.#scoring.bind().output("scores", view(this.#scores, index * r, [r]));
      for (const [name, key, shape] of parts) {
        binding.input(`${name}.average`, view(this.#average, offsets.get(key)!, shape));
        binding.input(`${name}.uncertainty`, view(this.#uncertainty, offsets.get(key)!, shape));
      }
      return binding;
    });
    const values = parameters.data as Float32Array;
    this.#values = sites.map((site) => {
      const start = offsets.get(adaloraKeys(site).e)!;
      return values.subarray(start, start + r);
    });
  }

  /** The importance of each row at the last allocation, module by module. */
  get scores(): Float32Array {
    return this.#scores.data as Float32Array;
  }

  /** PEFT's `update_and_allocate`. */
  async afterUpdate(step: number, clip: number): Promise<void> {
    const last = this.#totalSteps - this.#config.tfinal;
    if (step > last) {
      this.#mask(this.#kept.data as Float32Array);
      return;
    }
    if (step < last) {
      this.#clip.data[0] = clip;
      await this.#sensitivity.runAsync(this.#update);
    }
    const { budget, due } = budgetAt(step, this.#config, this.#totalSteps, this.#ranks);
    if (!due && step < last) return;
    for (const binding of this.#bindings) await this.#scoring.runAsync(binding);
    const kept = Float32Array.from(keepLargest(this.scores, budget), Number);
    if (step === last) (this.#kept.data as Float32Array).set(kept);
    this.#mask(kept);
  }

  [Symbol.dispose](): void {
    for (const binding of [this.#update, ...this.#bindings]) binding.dispose();
    this.#sensitivity.dispose();
    this.#scoring.dispose();
    for (const tensor of [...this.#views, ...this.tensors.values(), this.#scores, this.#clip]) tensor.dispose();
  }

  /** Sets E to 0 in the rows that are not kept. */
  #mask(kept: Float32Array): void {
    const r = this.#config.init_r;
    for (const [index, values] of this.#values.entries()) {
      for (let row = 0; row < r; row++) if (kept[index * r + row] === 0) values[row] = 0;
    }
  }
}
