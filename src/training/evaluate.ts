/** @file Dev perplexity: the forward pass alone, over examples sorted by length. */
import { exportOnnx, Graph } from "../graph/index.ts";
import { ADAPTER_INPUT, type Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { Session } from "../runtime/index.ts";
import { Collated, IDLE, IDLE_LENGTH, microBatches, supervisedTokens, Together } from "./batches.ts";
import type { Example } from "./data.ts";
import { type Accumulated, type PassResult, PassSession, type SessionTuning, sessionOptions } from "./gradients.ts";
import { buildObjectives, memberPrefix } from "./objective.ts";
import { type RoutingMetrics, RoutingTally } from "./routing.ts";

export interface Evaluation {
  /** Mean cross entropy over all supervised tokens, nats; the method's own losses are not in it. */
  readonly loss: number;
  /** exp(loss) */
  readonly perplexity: number;
  readonly supervisedTokens: number;
  /** Routed methods: what their routers did. */
  readonly routing?: RoutingMetrics;
}

/** What one adapter is to be evaluated on. */
export interface EvaluationJob {
  readonly examples: readonly Example[];
  readonly microBatchSize: number;
  readonly maxLength: number;
}

/** An adapter, and where its parameters are. */
export type Evaluated = Pick<Accumulated, "adapter" | "parameters">;

/** What adds up over the passes of an evaluation. */
class Tally {
  total = 0;
  readonly routing: RoutingTally | undefined;
  readonly parts: readonly Example[][];

  constructor({ examples, microBatchSize }: EvaluationJob, experts: readonly string[] | undefined) {
    this.parts = microBatches(examples, microBatchSize);
    this.routing = experts && new RoutingTally(experts);
  }

  add(part: readonly Example[], { crossEntropy, perSequence }: PassResult): void {
    this.total += crossEntropy;
    if (!this.routing) return;
    const [gates, probabilities] = [perSequence.get("gates")!, perSequence.get("probabilities")!];
    const size = gates.values.length / part.length;
    for (const [i, { origin }] of part.entries()) {
      const ofRow = (values: Float32Array) => values.subarray(i * size, (i + 1) * size);
      this.routing.add(origin?.label ?? "", ofRow(gates.values), ofRow(probabilities.values));
    }
  }

  result(tokens: number): Evaluation {
    const loss = this.total / tokens;
    const routing = this.routing?.metrics();
    return { loss, perplexity: Math.exp(loss), supervisedTokens: tokens, ...(routing && { routing }) };
  }
}

/** The forward pass of one adapter or several at once. */
export class EvaluationSession implements Disposable {
  readonly #pass: PassSession;
  readonly #experts: readonly (readonly string[] | undefined)[];

  /**
   * @param source the backbone; or a session for other adapters of the same methods and configs, whose graph serves for
   *   these too and which must outlive this one
   */
  constructor(source: Backbone | EvaluationSession, members: readonly Evaluated[], tuning: SessionTuning = {}) {
    const adapters = members.map(({ adapter }) => adapter);
    this.#pass =
      source instanceof EvaluationSession
        ? new PassSession(source.#pass, source.#pass.members)
        : EvaluationSession.#build(source, adapters, tuning);
    this.#experts = adapters.map(({ method, config }, i) =>
      this.#pass.members[i]!.perSequence.length ? method.routing?.(config).experts : undefined,
    );
    for (const [i, { parameters }] of members.entries()) {
      const prefix = memberPrefix(i, adapters.length) + ADAPTER_INPUT;
      for (const [key, tensor] of parameters) this.#pass.input(prefix + key, tensor);
    }
  }

  static #build(backbone: Backbone, adapters: readonly Adapter[], tuning: SessionTuning): PassSession {
    const graph = new Graph("evaluation", tuning.device);
    const members = adapters.map((adapter) => ({ adapter }));
    const objectives = buildObjectives(graph, backbone, members, { differentiable: false });
    const perSequence = objectives.map(({ crossEntropy, gates, probabilities }, i) => {
      const prefix = memberPrefix(i, adapters.length);
      graph.output(`${prefix}crossEntropy`, crossEntropy);
      if (!gates || !probabilities) return [];
      graph.output(`${prefix}gates`, gates);
      graph.output(`${prefix}probabilities`, probabilities);
      return ["gates", "probabilities"];
    });
    return new PassSession(
      Session.create(exportOnnx(graph), sessionOptions(backbone, tuning)),
      perSequence.map((names) => ({ auxiliary: [], perSequence: names })),
    );
  }

  /**
   * @param jobs one for each adapter; undefined where one is not to be evaluated now
   * @returns undefined when the signal was aborted between two passes
   */
  async evaluate(
    jobs: readonly (EvaluationJob | undefined)[],
    signal?: AbortSignal,
  ): Promise<(Evaluation | undefined)[] | undefined> {
    const tallies = jobs.map((job, i) => job && new Tally(job, this.#experts[i]));
    const passes = Math.max(...tallies.map((tally) => tally?.parts.length ?? 0));
    for (let pass = 0; pass < passes; pass++) {
      if (signal?.aborted) return undefined;
      using batches = new Together(
        tallies.map((tally, i) => new Collated(tally?.parts[pass] ?? IDLE, jobs[i]?.maxLength ?? IDLE_LENGTH)),
      );
      const results = await this.#pass.run(batches.each);
      for (const [i, tally] of tallies.entries()) {
        const part = tally?.parts[pass];
        if (part) tally.add(part, results[i]!);
      }
    }
    return tallies.map((tally, i) => tally?.result(supervisedTokens(jobs[i]!.examples)));
  }

  [Symbol.dispose](): void {
    this.#pass[Symbol.dispose]();
  }
}
