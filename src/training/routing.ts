/** @file What a routed method's routers did on a set of rows: shares, entropy, distinct routes, and what routes tell of labels. */
import { Random, sum } from "../base/index.ts";

/** All over the rows of one evaluation; information and entropy in bits. */
export interface RoutingMetrics {
  readonly rows: number;
  /** Names of the experts, in the order of the shares. */
  readonly experts: readonly string[];
  /** For each layer, the share of each expert among all that were active. */
  readonly expert_shares: readonly (readonly number[])[];
  /** For each layer, the mean over the rows of the entropy of the router's probabilities; log2(experts) = undecided. */
  readonly entropy: readonly number[];
  /** Distinct routes: sets of active experts over all layers. */
  readonly routes: number;
  /** For each layer, its distinct sets of active experts. */
  readonly layer_routes: readonly number[];
  /** Entropy of the labels: the most that a route can tell of them. */
  readonly label_entropy: number;
  /** For each layer, the mutual information between label and set of active experts. */
  readonly mutual_information: readonly number[];
  /** The same with labels shuffled among the rows: what so few rows show where there is nothing. */
  readonly mutual_information_by_chance: readonly number[];
  /** Both for the route over all layers. */
  readonly route_mutual_information: number;
  readonly route_mutual_information_by_chance: number;
}

/** Shuffles that the value by chance is the mean of. */
const SHUFFLES = 20;

/** H = −Σ p log2 p. The weights need not sum to 1. */
export function entropyOf(weights: Iterable<number>): number {
  const values = [...weights].filter((weight) => weight > 0);
  const total = sum(values);
  return values.reduce((bits, value) => bits - (value / total) * Math.log2(value / total), 0);
}

function countsOf<T>(values: Iterable<T>): Map<T, number> {
  const counts = new Map<T, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

/** I(A; B) = H(A) + H(B) − H(A, B) of two equally long lists, as counted (not corrected for few rows), in bits. */
export function mutualInformation(a: readonly number[], b: readonly number[]): number {
  const both = a.map((value, i) => `${value} ${b[i]}`);
  const [ofA, ofB, ofBoth] = [countsOf(a), countsOf(b), countsOf<string>(both)].map((c) => entropyOf(c.values()));
  return Math.max(0, ofA! + ofB! - ofBoth!);
}

/** Numbers instead of texts, in order of appearance. */
function numbered(texts: readonly string[]): number[] {
  const known = new Map<string, number>();
  return texts.map((text) => known.get(text) ?? known.set(text, known.size).get(text)!);
}

const rounded = (value: number): number => Number(value.toFixed(4));

/** Collects rows; an evaluation makes one and asks for the metrics at its end. */
export class RoutingTally {
  readonly #experts: readonly string[];
  readonly #labels: string[] = [];
  /** For each layer, the active experts of each row, as `0,3,5`. */
  #routes: string[][] = [];
  #active: number[][] = [];
  #entropy: number[] = [];

  constructor(experts: readonly string[]) {
    this.#experts = experts;
  }

  /**
   * @param gates [layers · experts] of one row, 0 = not active
   * @param probabilities [layers · experts] of the same row
   */
  add(label: string, gates: ArrayLike<number>, probabilities: ArrayLike<number>): void {
    const width = this.#experts.length;
    const layers = gates.length / width;
    if (this.#labels.length === 0) {
      this.#routes = Array.from({ length: layers }, () => []);
      this.#active = Array.from({ length: layers }, () => new Array<number>(width).fill(0));
      this.#entropy = new Array<number>(layers).fill(0);
    }
    this.#labels.push(label);
    for (let layer = 0; layer < layers; layer++) {
      const active: number[] = [];
      for (let expert = 0; expert < width; expert++) if (gates[layer * width + expert] !== 0) active.push(expert);
      for (const expert of active) this.#active[layer]![expert]!++;
      this.#routes[layer]!.push(active.join(","));
      const row = Array.from({ length: width }, (_, expert) => probabilities[layer * width + expert]!);
      this.#entropy[layer]! += entropyOf(row);
    }
  }

  /** Undefined without rows. */
  metrics(): RoutingMetrics | undefined {
    const rows = this.#labels.length;
    if (rows === 0) return undefined;
    const layers = this.#routes.map(numbered);
    const whole = numbered(this.#labels.map((_, row) => this.#routes.map((layer) => layer[row]).join(" ")));
    const labels = numbered(this.#labels);
    const random = new Random(0);
    const shuffled = Array.from({ length: SHUFFLES }, () => Array.from(random.permutation(rows), (i) => labels[i]!));
    const byChance = (routes: readonly number[]) =>
      rounded(sum(shuffled.map((others) => mutualInformation(others, routes))) / SHUFFLES);
    return {
      rows,
      experts: this.#experts,
      expert_shares: this.#active.map((counts) => counts.map((count) => rounded(count / (sum(counts) || 1)))),
      entropy: this.#entropy.map((total) => rounded(total / rows)),
      routes: new Set(whole).size,
      layer_routes: layers.map((routes) => new Set(routes).size),
      label_entropy: rounded(entropyOf(countsOf(labels).values())),
      mutual_information: layers.map((routes) => rounded(mutualInformation(labels, routes))),
      mutual_information_by_chance: layers.map(byChance),
      route_mutual_information: rounded(mutualInformation(labels, whole)),
      route_mutual_information_by_chance: byChance(whole),
    };
  }
}
