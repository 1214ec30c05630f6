/** @file Beam search over one prompt, with the token ids that transformers' `generate(num_beams=…)` gives. */

/** One token of a hypothesis; hypotheses share their beginnings. */
interface Step {
  readonly token: number;
  readonly logprob: number;
  readonly parent: Step | undefined;
  /** Number of tokens up to and with this one. */
  readonly length: number;
}

interface Running {
  readonly last: Step | undefined;
  /** Sum of log-probabilities, float32 as in transformers. */
  readonly score: number;
  /** Row of the batch that holds this hypothesis. */
  readonly row: number;
}

interface Finished {
  readonly last: Step;
  readonly score: number;
}

interface Candidate {
  readonly from: Running;
  readonly token: number;
  readonly score: number;
}

/** What the batch has to do before the next step. Rows are 0 … beams - 1. */
export interface BeamMoves {
  /** Copies of a row's cache, only onto rows whose hypothesis ended here; order does not matter. */
  readonly copies: readonly {
    readonly from: number;
    readonly to: number;
    /** Generated tokens that both rows have in common: positions before need no copy. */
    readonly shared: number;
  }[];
  /** Next token of each row; rows without a hypothesis (all of its continuations ended) get one all the same. */
  readonly tokens: readonly number[];
}

export interface BeamOptions {
  readonly beams: number;
  readonly lengthPenalty: number;
  readonly maxNewTokens: number;
  readonly eosTokenIds: readonly number[];
  /** Whether generated tokens end in a stop string. */
  readonly stops?: ((tokens: readonly number[]) => boolean) | undefined;
}

export interface BeamResult {
  readonly tokens: number[];
  readonly logprobs: number[];
  /** Sum of log-probabilities / length ** lengthPenalty. */
  readonly score: number;
  readonly finishReason: "stop" | "length";
}

/**
 * Beam search as transformers does it with `do_sample=False`, `early_stopping=False`.
 *
 * Each step takes the best `max(2, 1 + eos ids) · beams` continuations of all running beams by summed log-probability.
 * Those among the first `beams` that end are candidates for the answer, scored sum / length ** lengthPenalty; the best
 * `beams` continuations that do not end run on. The search is over when `beams` answers are known and the best running
 * beam, scored at its present length, beats none of them.
 */
export class BeamSearch {
  readonly #options: BeamOptions;
  /** Best first. At first one hypothesis, the prompt, in row 0. */
  #running: Running[] = [{ last: undefined, score: 0, row: 0 }];
  /** Best first, at most `beams`. */
  #finished: (Finished & { readonly stopped: boolean })[] = [];
  /** What each row's cache holds, also after its hypothesis ended. */
  #rows: (Step | undefined)[];
  #length = 0;
  #done = false;

  constructor(options: BeamOptions) {
    this.#options = options;
    this.#rows = new Array<undefined>(options.beams).fill(undefined);
  }

  get done(): boolean {
    return this.#done;
  }

  /**
   * Takes the next-token log-probabilities of the rows, and says what they go on with; `undefined` when the search
   * is over.
   *
   * @param logProbsOf float32 [V] of a row; the first time only row 0 is read
   */
  advance(logProbsOf: (row: number) => Float32Array): BeamMoves | undefined {
    const { beams, lengthPenalty, maxNewTokens, eosTokenIds, stops } = this.#options;
    const width = Math.max(2, 1 + eosTokenIds.length) * beams;
    const best = this.#best(logProbsOf, width);
    this.#length++;
    const next: (Candidate & { step: Step })[] = [];
    best.forEach((candidate, rank) => {
      const { from, token, score } = candidate;
      const step: Step = {
        token,
        logprob: logProbsOf(from.row)[token]!,
        parent: from.last,
        length: this.#length,
      };
      const stopped = eosTokenIds.includes(token) || (stops?.(tokensOf(step)) ?? false);
      if (!stopped && this.#length < maxNewTokens) next.push({ ...candidate, step });
      else if (rank < beams) this.#finish({ last: step, score: score / this.#length ** lengthPenalty, stopped });
    });
    const running = next.slice(0, beams);
    const worst = this.#finished.length === beams ? this.#finished.at(-1)!.score : Number.NEGATIVE_INFINITY;
    const hope = running[0] ? running[0].score / this.#length ** lengthPenalty : Number.NEGATIVE_INFINITY;
    if (running.length === 0 || hope <= worst) {
      this.#done = true;
      this.#running = [];
      return undefined;
    }
    return this.#place(running);
  }

  /** The best answers so far, at most `count`; where fewer have finished, the best running hypotheses after them. */
  results(count = 1): BeamResult[] {
    const { lengthPenalty } = this.#options;
    const running = this.#running.map(({ last, score }) => ({
      last,
      score: score / Math.max(this.#length, 1) ** lengthPenalty,
      stopped: false,
    }));
    return [...this.#finished, ...running].slice(0, count).map(({ last, score, stopped }) => {
      const steps = stepsOf(last);
      return {
        tokens: steps.map((step) => step.token),
        logprobs: steps.map((step) => step.logprob),
        score,
        finishReason: stopped ? "stop" : "length",
      };
    });
  }

  /** The `width` best continuations, best first; of equal ones those of better beams and lower ids first. */
  #best(logProbsOf: (row: number) => Float32Array, width: number): Candidate[] {
    const best: Candidate[] = [];
    let floor = Number.NEGATIVE_INFINITY;
    for (const from of this.#running) {
      const logProbs = logProbsOf(from.row);
      for (let token = 0; token < logProbs.length; token++) {
        // Rounded as transformers' float32 sum, so that equal scores tie here too.
        const score = Math.fround(logProbs[token]! + from.score);
        if (!(score > floor)) continue;
        let at = best.length;
        while (at > 0 && best[at - 1]!.score < score) at--;
        best.splice(at, 0, { from, token, score });
        if (best.length > width) best.pop();
        if (best.length === width) floor = best[width - 1]!.score;
      }
    }
    return best;
  }

  #finish(answer: Finished & { readonly stopped: boolean }): void {
    const list = this.#finished;
    let at = list.length;
    while (at > 0 && list[at - 1]!.score < answer.score) at--;
    list.splice(at, 0, answer);
    if (list.length > this.#options.beams) list.pop();
  }

  /** Gives every hypothesis a row: the best child of a row stays in it, the others take rows that became free. */
  #place(running: readonly (Candidate & { readonly step: Step })[]): BeamMoves {
    const { beams } = this.#options;
    const taken = new Set<number>();
    const placed: Running[] = [];
    const waiting: (Candidate & { readonly step: Step; index: number })[] = [];
    running.forEach((child, index) => {
      if (taken.has(child.from.row)) {
        waiting.push({ ...child, index });
      } else {
        taken.add(child.from.row);
        placed[index] = { last: child.step, score: child.score, row: child.from.row };
      }
    });
    const copies = [];
    let free = 0;
    for (const { step, score, from, index } of waiting) {
      while (taken.has(free)) free++;
      taken.add(free);
      copies.push({ from: from.row, to: free, shared: commonLength(this.#rows[free], from.last) });
      placed[index] = { last: step, score, row: free };
    }
    // A row whose hypotheses all ended idles: it is fed any token, and its cache matches its own history no more.
    const tokens = new Array<number>(beams).fill(placed[0]!.last!.token);
    const rows: (Step | undefined)[] = this.#rows.map((last, row) =>
      taken.has(row) ? last : { token: -1, logprob: 0, parent: last, length: this.#length },
    );
    for (const { last, row } of placed) {
      tokens[row] = last!.token;
      rows[row] = last;
    }
    this.#rows = rows;
    this.#running = placed;
    return { copies, tokens };
  }
}

function stepsOf(last: Step | undefined): Step[] {
  const steps: Step[] = [];
  for (let step = last; step; step = step.parent) steps.push(step);
  return steps.reverse();
}

function tokensOf(last: Step): number[] {
  return stepsOf(last).map((step) => step.token);
}

/** Number of tokens with which both begin. */
function commonLength(a: Step | undefined, b: Step | undefined): number {
  let left = a;
  let right = b;
  while (left !== right) {
    if ((left?.length ?? 0) >= (right?.length ?? 0)) left = left?.parent;
    else right = right?.parent;
  }
  return left?.length ?? 0;
}
