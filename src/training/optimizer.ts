/** @file AdamW over flat buffers, as graphs: clipping, bias correction and the update never leave native memory. */
import { add, div, exportOnnx, Graph, mul, sqrt, square, sub, sum, type Value } from "../graph/index.ts";
import type { ParameterSpec } from "../methods/index.ts";
import { type Binding, type DeviceName, Session, Tensor } from "../runtime/index.ts";

/** `weights` is Ω and `activation` Θ of the bi-level loop; each has one flat buffer. */
export type Group = ParameterSpec["group"];
export const GROUPS: readonly Group[] = ["weights", "activation"];

export interface AdamWOptions {
  readonly betas: readonly [number, number];
  readonly eps: number;
  /** Decoupled: the parameter shrinks by lr · weightDecay before the update. */
  readonly weightDecay: number;
  /** Gradients are scaled down to this global norm; 0 = no clipping. */
  readonly maxGradNorm: number;
}

/** Σ x² over buffers, whose root over all groups is the global norm. */
function buildNorm(count: number, device: DeviceName): Uint8Array {
  const graph = new Graph("norm", device);
  const sums = Array.from({ length: count }, (_, i) => sum(square(graph.input(`gradient.${i}`, "float32", [`n${i}`]))));
  graph.output("sumOfSquares", sums.reduce(add));
  return exportOnnx(graph);
}

/**
 * One AdamW update (Loshchilov & Hutter 2019, as torch.optim.AdamW computes it); step-dependent factors are inputs:
 * `clip` scales the gradient, `decay` = 1 - lr·λ, `stepSize` = lr / (1 - β1ᵗ), `correction` = 1 / √(1 - β2ᵗ).
 */
function buildUpdate({ betas: [beta1, beta2], eps }: AdamWOptions, count: number, device: DeviceName): Uint8Array {
  const graph = new Graph("adamw", device);
  const [clip, decay, stepSize, correction] = FACTORS.map((name) => graph.input(name, "float32", [])) as Four<Value>;
  for (let i = 0; i < count; i++) {
    const buffer = (name: string) => graph.input(`${name}.${i}`, "float32", [`n${i}`]);
    const [parameter, first, second] = [buffer("parameter"), buffer("first"), buffer("second")];
    const clipped = mul(buffer("gradient"), clip); // the only node that reads the gradient
    const m = add(mul(first, beta1), mul(clipped, 1 - beta1));
    const v = add(mul(second, beta2), mul(square(clipped), 1 - beta2));
    const denominator = add(mul(sqrt(v), correction), eps);
    const updated = sub(mul(parameter, decay), mul(div(m, denominator), stepSize));
    graph.output(`newParameter.${i}`, updated, { replaces: parameter });
    graph.output(`newFirst.${i}`, m, { replaces: first });
    graph.output(`newSecond.${i}`, v, { replaces: second });
  }
  return exportOnnx(graph);
}

const FACTORS = ["clip", "decay", "stepSize", "correction"] as const;
type Four<T> = [T, T, T, T];

/** Parameters, a group of them or a part of one: four float32 buffers of one layout. */
export interface OptimizerGroup {
  readonly parameter: Tensor; // float32 [n]
  /** Accumulated gradients; left as they are. */
  readonly gradient: Tensor; // float32 [n]
  readonly first: Tensor; // float32 [n], AdamW's exp_avg
  readonly second: Tensor; // float32 [n], AdamW's exp_avg_sq
}

interface Bound {
  readonly session: Session;
  readonly binding: Binding;
}

/** Binds and runs the two graphs for any number of groups. Does not own the groups' buffers. */
export class AdamW implements Disposable {
  readonly #options: AdamWOptions;
  readonly #device: DeviceName;
  /** By what they do and to how many buffers: on the CPU to one at a time, elsewhere to all at once. */
  readonly #sessions = new Map<string, Bound>();
  readonly #sumOfSquares = Tensor.scalar("float32", 0);
  readonly #factors = new Map(FACTORS.map((name) => [name, Tensor.scalar("float32", 0)]));

  /** @param device where the buffers are */
  constructor(options: AdamWOptions, device: DeviceName = "cpu") {
    this.#options = options;
    this.#device = device;
  }

  /** Global norm of the gradients of `groups`, before clipping. */
  async norm(groups: readonly OptimizerGroup[]): Promise<number> {
    let total = 0;
    for (const together of this.#together(groups)) {
      const { session, binding } = this.#session("norm", together.length);
      for (const [i, { gradient }] of together.entries()) binding.input(`gradient.${i}`, gradient);
      await session.runAsync(binding);
      total += this.#sumOfSquares.data[0] as number;
    }
    return Math.sqrt(total);
  }

  /** What gradients of that global norm are multiplied with, as in torch's `clip_grad_norm_`. */
  clip(norm: number): number {
    const { maxGradNorm } = this.#options;
    return maxGradNorm === 0 ? 1 : Math.min(1, maxGradNorm / (norm + 1e-6));
  }

  /**
   * Updates one group, or all parts of it, in place.
   * @param norm of all groups that are updated together
   * @param updates number of updates of this group, this one included
   */
  async update(parts: readonly OptimizerGroup[], norm: number, lr: number, updates: number): Promise<void> {
    const { betas, weightDecay } = this.#options;
    const set = (name: (typeof FACTORS)[number], value: number): void => {
      this.#factors.get(name)!.data[0] = value;
    };
    set("clip", this.clip(norm));
    set("decay", 1 - lr * weightDecay);
    set("stepSize", lr / (1 - betas[0] ** updates));
    set("correction", 1 / Math.sqrt(1 - betas[1] ** updates));
    for (const together of this.#together(parts)) {
      const { session, binding } = this.#session("update", together.length);
      for (const [i, { parameter, gradient, first, second }] of together.entries()) {
        binding
          .input(`parameter.${i}`, parameter)
          .input(`gradient.${i}`, gradient)
          .input(`first.${i}`, first)
          .input(`second.${i}`, second)
          .output(`newParameter.${i}`, parameter)
          .output(`newFirst.${i}`, first)
          .output(`newSecond.${i}`, second);
      }
      await session.runAsync(binding);
    }
  }

  #together(parts: readonly OptimizerGroup[]): (readonly OptimizerGroup[])[] {
    return this.#device === "cpu" ? parts.map((part) => [part]) : [parts];
  }

  #session(what: "norm" | "update", count: number): Bound {
    const key = `${what} ${count}`;
    const known = this.#sessions.get(key);
    if (known) return known;
    const device = this.#device;
    const model = what === "norm" ? buildNorm(count, device) : buildUpdate(this.#options, count, device);
    const session = Session.create(model, { device });
    const binding = session.bind();
    if (what === "norm") binding.output("sumOfSquares", this.#sumOfSquares);
    else for (const [name, tensor] of this.#factors) binding.input(name, tensor);
    const bound = { session, binding };
    this.#sessions.set(key, bound);
    return bound;
  }

  [Symbol.dispose](): void {
    for (const { session } of this.#sessions.values()) session.dispose();
    this.#sumOfSquares.dispose();
    for (const tensor of this.#factors.values()) tensor.dispose();
  }
}
