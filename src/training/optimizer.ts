/** @file AdamW over flat buffers, as graphs: clipping, bias correction and the update never leave native memory. */
import { add, div, exportOnnx, Graph, mul, sqrt, square, sub, sum } from "../graph/index.ts";
import type { ParameterSpec } from "../methods/index.ts";
import { type Binding, Session, Tensor } from "../runtime/index.ts";

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

/** Σ x², whose root over all groups is the global norm. */
function buildNorm(): Uint8Array {
  const graph = new Graph("norm");
  const gradient = graph.input("gradient", "float32", ["n"]);
  graph.output("sumOfSquares", sum(square(gradient)));
  return exportOnnx(graph);
}

/**
 * One AdamW update (Loshchilov & Hutter 2019, as torch.optim.AdamW computes it); step-dependent factors are inputs:
 * `clip` scales the gradient, `decay` = 1 - lr·λ, `stepSize` = lr / (1 - β1ᵗ), `correction` = 1 / √(1 - β2ᵗ).
 */
function buildUpdate({ betas: [beta1, beta2], eps }: AdamWOptions): Uint8Array {
  const graph = new Graph("adamw");
  const buffer = (name: string) => graph.input(name, "float32", ["n"]);
  const factor = (name: string) => graph.input(name, "float32", []);
  const [parameter, first, second, gradient] = [
    buffer("parameter"),
    buffer("first"),
    buffer("second"),
    buffer("gradient"),
  ];
  const clipped = mul(gradient, factor("clip")); // the only node that reads the gradient
  const m = add(mul(first, beta1), mul(clipped, 1 - beta1));
  const v = add(mul(second, beta2), mul(square(clipped), 1 - beta2));
  const denominator = add(mul(sqrt(v), factor("correction")), eps);
  const decayed = mul(parameter, factor("decay"));
  const updated = sub(decayed, mul(div(m, denominator), factor("stepSize")));
  graph.output("newParameter", updated, { replaces: parameter });
  graph.output("newFirst", m, { replaces: first });
  graph.output("newSecond", v, { replaces: second });
  return exportOnnx(graph);
}

/** A parameter group: four flat float32 buffers of one layout. */
export interface OptimizerGroup {
  readonly parameter: Tensor; // float32 [n]
  /** Accumulated gradients; left as they are. */
  readonly gradient: Tensor; // float32 [n]
  readonly first: Tensor; // float32 [n], AdamW's exp_avg
  readonly second: Tensor; // float32 [n], AdamW's exp_avg_sq
}

/** Binds and runs the two graphs for any number of groups. Does not own the groups' buffers. */
export class AdamW implements Disposable {
  readonly #options: AdamWOptions;
  readonly #norm: Session;
  readonly #update: Session;
  readonly #normBinding: Binding;
  readonly #binding: Binding;
  readonly #sumOfSquares = Tensor.scalar("float32", 0);
  readonly #factors = new Map(
    ["clip", "decay", "stepSize", "correction"].map((name) => [name, Tensor.scalar("float32", 0)]),
  );

  constructor(options: AdamWOptions) {
    this.#options = options;
    this.#norm = Session.create(buildNorm());
    this.#normBinding = this.#norm.bind().output("sumOfSquares", this.#sumOfSquares);
    this.#update = Session.create(buildUpdate(options));
    this.#binding = this.#update.bind();
    for (const [name, tensor] of this.#factors) this.#binding.input(name, tensor);
  }

  /** Global norm of the gradients of `groups`, before clipping. */
  async norm(groups: readonly OptimizerGroup[]): Promise<number> {
    let total = 0;
    for (const { gradient } of groups) {
      this.#normBinding.input("gradient", gradient);
      await this.#norm.runAsync(this.#normBinding);
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
   * Updates one group in place.
   * @param norm of all groups that are updated together
   * @param updates number of updates of this group, this one included
   */
  async update(group: OptimizerGroup, norm: number, lr: number, updates: number): Promise<void> {
    const { betas, weightDecay } = this.#options;
    const set = (name: string, value: number): void => {
      this.#factors.get(name)!.data[0] = value;
    };
    set("clip", this.clip(norm));
    set("decay", 1 - lr * weightDecay);
    set("stepSize", lr / (1 - betas[0] ** updates));
    set("correction", 1 / Math.sqrt(1 - betas[1] ** updates));
    const { parameter, gradient, first, second } = group;
    this.#binding
      .input("parameter", parameter)
      .input("gradient", gradient)
      .input("first", first)
      .input("second", second)
      .output("newParameter", parameter)
      .output("newFirst", first)
      .output("newSecond", second);
    await this.#update.runAsync(this.#binding);
  }

  [Symbol.dispose](): void {
    this.#normBinding.dispose();
    this.#binding.dispose();
    this.#norm.dispose();
    this.#update.dispose();
    this.#sumOfSquares.dispose();
    for (const tensor of this.#factors.values()) tensor.dispose();
  }
}
