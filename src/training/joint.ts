/** @file Steps of several adapters at once on one frozen backbone: their rows pass it together, all else is each one's own. */
import { InputError } from "../base/index.ts";
import type { Recomputation } from "../graph/index.ts";
import type { Method } from "../methods/index.ts";
import { Collated, countTokens, IDLE, IDLE_LENGTH, supervisedTokens, Together } from "./batches.ts";
import type { Example } from "./data.ts";
import { type Evaluation, EvaluationSession } from "./evaluate.ts";
import { type GradientPass, GradientSession } from "./gradients.ts";
import type { Group } from "./optimizer.ts";
import { PackedBatch } from "./packing.ts";
import type { StepInput, StepOutcome, Trainer } from "./trainer.ts";
import { Update, type UpdateResult } from "./update.ts";

export interface JointInput extends Omit<StepInput, "signal"> {
  readonly batch: readonly Example[];
}

type Settled<T> = PromiseSettledResult<T>;

async function settled<T>(promise: Promise<T>): Promise<Settled<T>> {
  return (await Promise.allSettled([promise]))[0];
}

/** Throws `InputError` naming the methods whose change of the frozen weights the others would see. */
export function requireJoinable(methods: readonly Method[]): void {
  const changing = new Set(methods.filter(({ changesHead }) => changesHead).map(({ name }) => name));
  if (methods.length === 1 || changing.size === 0) return;
  const problems = [...changing].map((name) => `${name} changes the backbone itself; train it alone`);
  throw new InputError("CONFIG_INVALID", "training together", problems);
}

/**
 * Tokens of a pass up to which the rows of several adapters pass the backbone faster together than one after the other;
 * measured (docs/performance.md). Few rows leave the cores waiting for weights to be read, and each pass over quantised
 * ones dequantises them anew; with many rows nothing is left to gain that would pay for cutting and joining them.
 */
const TOGETHER_UP_TO = { float32: 192, int8: 1024, int4: 1024 } as const;

const THOROUGH: readonly (Recomputation | undefined)[] = ["nothing", "light", "all"];

/** What adapters recompute that pass together: what comes out is the same, and the one that must save memory does. */
export function mostThorough(asked: readonly (Recomputation | undefined)[]): Recomputation | undefined {
  return THOROUGH.findLast((what) => asked.includes(what));
}

/** Which of the trainers pass together, by their places. */
function clustersOf(trainers: readonly Trainer[]): number[][] {
  const small: number[] = [];
  const large: number[] = [];
  for (const [i, { backbone, options }] of trainers.entries()) {
    const few = (options.passTokens ?? 0) <= TOGETHER_UP_TO[backbone.weights.kind];
    (few ? small : large).push(i);
  }
  return [...(small.length ? [small] : []), ...large.map((i) => [i])];
}

/** Trainers whose rows pass the backbone together, and the session in which they do. */
interface Cluster {
  /** Their places among all. */
  readonly members: readonly number[];
  readonly session: GradientSession;
  /** An earlier one, by itself too, whose graphs serve for this one. */
  readonly like: Cluster | undefined;
  /** Made when it is first needed. */
  evaluation?: EvaluationSession;
}

/**
 * Steps the adapters of `trainers` together. Each has batches, losses, clipping, updates and counts of its own, as if it
 * were alone; what is shared is the pass through the backbone. Trainers and backbone outlive it.
 */
export class JointTrainer implements Disposable {
  readonly trainers: readonly Trainer[];
  readonly #clusters: readonly Cluster[];

  /** @param trainers of one backbone, at least one */
  constructor(trainers: readonly Trainer[]) {
    requireJoinable(trainers.map(({ adapter: { method } }) => method));
    const [{ backbone, options }] = trainers as [Trainer];
    if (trainers.some((trainer) => trainer.backbone !== backbone)) throw new TypeError("trainers of several backbones");
    this.trainers = trainers;
    const known = new Map<string, Cluster>();
    this.#clusters = clustersOf(trainers).map((members) => {
      const own = members.map((i) => trainers[i]!);
      const key = JSON.stringify(
        own.map(({ adapter: { method, config }, options: { packing, recompute } }) => [
          method.name,
          config,
          packing,
          recompute,
        ]),
      );
      const like = known.get(key);
      const session = new GradientSession(
        like?.session ?? backbone,
        own.map(({ accumulated, options: { packing } }) => ({ accumulated, packed: packing })),
        options.tuning,
        mostThorough(own.map(({ options: { recompute } }) => recompute)),
      );
      const cluster = { members, session, like };
      known.set(key, like ?? cluster);
      return cluster;
    });
  }

  /**
   * One step of each adapter, as `Trainer.step` describes it.
   * @param inputs in the order of the trainers
   * @returns what came of each: an adapter whose numbers are not finite is left as it was and does not disturb the
   *   others. Undefined when the signal was aborted; then nothing has changed anywhere.
   */
  async step(inputs: readonly JointInput[], signal?: AbortSignal): Promise<Settled<StepOutcome>[] | undefined> {
    const first = this.trainers.map((trainer, i) => {
      const { batch, lr, activation } = inputs[i]!;
      if (trainer.bilevel && !activation) throw new TypeError("a bi-level step needs a dev batch");
      const names: readonly Group[] = trainer.bilevel ? ["weights"] : [...trainer.groups.keys()];
      return new Update(trainer, names, batch, lr, inputs[i]!);
    });
    const done = await this.#run(first, signal);
    if (done === undefined) return undefined;
    const second = this.trainers.map((trainer, i) => {
      const { activation } = inputs[i]!;
      if (!trainer.bilevel || !activation || done[i]!.status === "rejected") return undefined;
      return new Update(trainer, ["activation"], activation.batch, activation.lr, inputs[i]!);
    });
    const then = second.some((update) => update) ? await this.#run(second) : undefined;
    return done.map((result, i) => outcomeOf(inputs[i]!, result!, then?.[i]));
  }

  /** Takes updates through their passes, and finishes them. */
  async #run<U extends Update | undefined>(
    updates: readonly U[],
    signal?: AbortSignal,
  ): Promise<(Settled<UpdateResult> | (U & undefined))[] | undefined> {
    for (const cluster of this.#clusters) if (!(await this.#pass(cluster, updates, signal))) return undefined;
    const results: (Settled<UpdateResult> | (U & undefined))[] = [];
    for (const update of updates) results.push(update ? await settled(update.finish()) : (update as U & undefined));
    return results;
  }

  /** All passes of a cluster, those with fewer standing idle at the end; false when the signal was aborted. */
  async #pass(
    { members, session }: Cluster,
    all: readonly (Update | undefined)[],
    signal: AbortSignal | undefined,
  ): Promise<boolean> {
    const updates = members.map((i) => all[i]);
    for (const [i, update] of updates.entries()) if (update) session.prepare(i, update.seed, update.progress);
    const count = Math.max(...updates.map((update) => update?.passes ?? 0));
    for (let index = 0; index < count; index++) {
      if (signal?.aborted) return false;
      const own = updates.map((update) => update?.pass(index));
      const passes = own.map((pass, i) => pass ?? idle(this.trainers[members[i]!]!));
      using _batches = new Together(passes.map(({ batch }) => batch));
      const results = await session.accumulate(passes);
      for (const [i, pass] of own.entries()) if (pass) updates[i]!.take(results[i]!);
    }
    return true;
  }

  /**
   * Perplexity of each adapter on its examples, without any update.
   * @param examples in the order of the trainers; undefined for those that are not to be evaluated now
   * @returns undefined when the signal was aborted
   */
  async evaluate(
    examples: readonly (readonly Example[] | undefined)[],
    signal?: AbortSignal,
  ): Promise<(Evaluation | undefined)[] | undefined> {
    const [{ backbone, options }] = this.trainers as [Trainer];
    const { profile: _, ...tuning } = options.tuning ?? {};
    const evaluations = new Array<Evaluation | undefined>(this.trainers.length);
    for (const cluster of this.#clusters) {
      const own = cluster.members.map((i) => this.trainers[i]!);
      const jobs = own.map(({ options: { microBatchSize, maxLength } }, k) => {
        const rows = examples[cluster.members[k]!];
        return rows && { examples: rows, microBatchSize, maxLength };
      });
      if (jobs.every((job) => job === undefined)) continue;
      const accumulated = own.map(({ accumulated }) => accumulated);
      cluster.evaluation ??= new EvaluationSession(cluster.like?.evaluation ?? backbone, accumulated, tuning);
      const results = await cluster.evaluation.evaluate(jobs, signal);
      if (results === undefined) return undefined;
      for (const [k, i] of cluster.members.entries()) evaluations[i] = results[k];
    }
    return evaluations;
  }

  endProfiling(): string {
    return this.#clusters[0]!.session.endProfiling();
  }

  [Symbol.dispose](): void {
    for (const { session, evaluation } of this.#clusters.toReversed()) {
      evaluation?.[Symbol.dispose]();
      session[Symbol.dispose]();
    }
  }
}

/** A pass of an adapter that has none left: its gradients are zero, its losses nobody reads. */
function idle({ options: { packing } }: Trainer): GradientPass {
  const batch = packing ? new PackedBatch([IDLE], IDLE_LENGTH) : new Collated(IDLE, IDLE_LENGTH);
  return { batch, inverseTokens: 0, promptShare: 0 };
}

function outcomeOf(
  { batch, activation }: JointInput,
  first: Settled<UpdateResult>,
  second: Settled<UpdateResult> | undefined,
): Settled<StepOutcome> {
  if (first.status === "rejected") return first;
  if (second?.status === "rejected") return second;
  const { losses, active } = first.value;
  const value = {
    losses,
    ...(active && { active }),
    ...(second && { activation: second.value.losses }),
    tokens: countTokens(batch) + (second && activation ? countTokens(activation.batch) : 0),
    supervisedTokens: supervisedTokens(batch),
  };
  return { status: "fulfilled", value };
}
