/** @file Dev perplexity: the forward pass alone, over examples sorted by length. */
import { exportOnnx, Graph } from "../graph/index.ts";
import { ADAPTER_INPUT, type Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { Session } from "../runtime/index.ts";
import { Collated, microBatches, supervisedTokens } from "./batches.ts";
import type { Example } from "./data.ts";
import { PassSession, type SessionTuning, sessionOptions } from "./gradients.ts";
import { buildObjective } from "./objective.ts";
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

export class EvaluationSession implements Disposable {
  readonly #pass: PassSession;
  readonly #experts: readonly string[] | undefined;

  constructor(backbone: Backbone, adapter: Adapter, tuning: SessionTuning = {}) {
    const graph = new Graph("evaluation");
    const objective = buildObjective(graph, backbone, adapter);
    graph.output("crossEntropy", objective.crossEntropy);
    const { gates, probabilities } = objective;
    if (gates && probabilities) {
      graph.output("gates", gates);
      graph.output("probabilities", probabilities);
      this.#experts = adapter.method.routing?.(adapter.config).experts;
    }
    const session = Session.create(exportOnnx(graph), sessionOptions(backbone, tuning));
    this.#pass = new PassSession(session, [], this.#experts ? ["gates", "probabilities"] : []);
    for (const [key, tensor] of adapter.tensors) this.#pass.input(ADAPTER_INPUT + key, tensor);
  }

  /** Returns undefined when the signal was aborted between two passes. */
  async evaluate(
    examples: readonly Example[],
    options: { microBatchSize: number; maxLength: number; signal?: AbortSignal | undefined },
  ): Promise<Evaluation | undefined> {
    let total = 0;
    const tally = this.#experts && new RoutingTally(this.#experts);
    for (const part of microBatches(examples, options.microBatchSize)) {
      if (options.signal?.aborted) return undefined;
      using batch = new Collated(part, options.maxLength);
      const { crossEntropy, perSequence } = await this.#pass.run(batch);
      total += crossEntropy;
      if (!tally) continue;
      const [gates, probabilities] = [perSequence.get("gates")!, perSequence.get("probabilities")!];
      const size = gates.values.length / part.length;
      for (const [i, { origin }] of part.entries()) {
        const ofRow = (values: Float32Array) => values.subarray(i * size, (i + 1) * size);
        tally.add(origin?.label ?? "", ofRow(gates.values), ofRow(probabilities.values));
      }
    }
    const tokens = supervisedTokens(examples);
    const routing = tally?.metrics();
    return {
      loss: total / tokens,
      perplexity: Math.exp(total / tokens),
      supervisedTokens: tokens,
      ...(routing && { routing }),
    };
  }

  [Symbol.dispose](): void {
    this.#pass[Symbol.dispose]();
  }
}
