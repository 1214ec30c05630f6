/** @file Dev perplexity: the forward pass alone, over examples sorted by length. */
import { exportOnnx, Graph } from "../graph/index.ts";
import { ADAPTER_INPUT, type Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { Session } from "../runtime/index.ts";
import { Collated, microBatches, supervisedTokens } from "./batches.ts";
import type { Example } from "./data.ts";
import { PassSession, type SessionTuning, sessionOptions } from "./gradients.ts";
import { buildObjective } from "./objective.ts";

export interface Evaluation {
  /** Mean cross entropy over all supervised tokens, nats; the method's own losses are not in it. */
  readonly loss: number;
  /** exp(loss) */
  readonly perplexity: number;
  readonly supervisedTokens: number;
}

export class EvaluationSession implements Disposable {
  readonly #pass: PassSession;

  constructor(backbone: Backbone, adapter: Adapter, tuning: SessionTuning = {}) {
    const graph = new Graph("evaluation");
    const objective = buildObjective(graph, backbone, adapter, false);
    graph.output("crossEntropy", objective.crossEntropy);
    const session = Session.create(exportOnnx(graph), sessionOptions(backbone, tuning));
    this.#pass = new PassSession(session, [], false);
    for (const [key, tensor] of adapter.tensors) this.#pass.input(ADAPTER_INPUT + key, tensor);
  }

  /** Returns undefined when the signal was aborted between two passes. */
  async evaluate(
    examples: readonly Example[],
    options: { microBatchSize: number; maxLength: number; signal?: AbortSignal | undefined },
  ): Promise<Evaluation | undefined> {
    let total = 0;
    for (const part of microBatches(examples, options.microBatchSize)) {
      if (options.signal?.aborted) return undefined;
      using batch = new Collated(part, options.maxLength);
      total += (await this.#pass.run(batch)).crossEntropy;
    }
    const tokens = supervisedTokens(examples);
    return { loss: total / tokens, perplexity: Math.exp(total / tokens), supervisedTokens: tokens };
  }

  [Symbol.dispose](): void {
    this.#pass[Symbol.dispose]();
  }
}
