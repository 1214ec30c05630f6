/** @file Tests of the operator Route: the routers of prompts against float64, whatever is beside them. */
import { describe, expect, test } from "vitest";
import { Random } from "../../base/index.ts";
import { OPERATOR_DOMAIN, operators, Session, Tensor } from "../index.ts";
import { testModel } from "../testing.ts";
import { expectNear, expectSame, floats, matrix, normals, range } from "./operators.ts";

const POOLINGS = ["self_attention", "mean", "last", "max"] as const;
const ACTIVATIONS = ["rational", "gelu", "relu", "identity"] as const;
const WEIGHTS = ["straight_through", "probability", "renormalized"] as const;

interface Settings {
  pooling: (typeof POOLINGS)[number];
  activation: (typeof ACTIVATIONS)[number];
  weight: (typeof WEIGHTS)[number];
  topK: number;
  rms: boolean;
  experts: number;
}

const DEFAULTS: Settings = {
  pooling: "self_attention",
  activation: "rational",
  weight: "straight_through",
  topK: 2,
  rms: false,
  experts: 7,
};

/** A router, its numbers in native memory. */
export class TestRouter implements Disposable {
  readonly settings: Settings;
  readonly pooler: Float32Array;
  readonly numerator = normals(3, 7, 0.3);
  readonly denominator = normals(4, 5, 0.3);
  readonly gate: Float32Array;
  readonly #own: Tensor[];

  constructor(settings: Partial<Settings>, d: number, seed = 1, gate?: Float32Array) {
    this.settings = { ...DEFAULTS, ...settings };
    this.pooler = normals(seed, d, 1 / Math.sqrt(d));
    this.gate = gate ?? normals(seed + 1, this.settings.experts * d, 1 / Math.sqrt(d));
    const arrays = [this.pooler, this.numerator, this.denominator, this.gate];
    this.#own = arrays.map((data) => Tensor.from("float32", [data.length], data));
  }

  /** Struct Router of native/kernels.h. */
  get struct(): bigint[] {
    const { pooling, activation, weight, topK, rms, experts } = this.settings;
    const addresses = this.#own.map(({ address }) => address);
    const kinds = [POOLINGS.indexOf(pooling), ACTIVATIONS.indexOf(activation), topK, WEIGHTS.indexOf(weight)];
    return [...addresses, ...[...kinds, Number(rms), experts].map(BigInt)];
  }

  [Symbol.dispose](): void {
    for (const tensor of this.#own) tensor.dispose();
  }
}

const NONE = new Array<bigint>(10).fill(0n);

export function routing(layer: number, experts: number): Session {
  const attributes = { layer, experts };
  return Session.create(
    testModel({
      inputs: {
        hidden: ["float32", ["N", "d"]],
        mask: ["float32", ["B", "T"]],
        routers: ["int64", ["L", "b", "width"]],
      },
      outputs: { gates: ["float32", ["B", experts]], probabilities: ["float32", ["B", experts]] },
      nodes: [
        {
          op: "Route",
          domain: OPERATOR_DOMAIN,
          inputs: ["hidden", "mask", "routers"],
          outputs: ["gates", "probabilities"],
          attributes,
        },
      ],
    }),
  );
}

/** Prompts in a batch: 1 in `mask` where a token is prompt. */
interface Prompts {
  hidden: Float32Array;
  mask: number[][];
  d: number;
}

export function runRoute(session: Session, { hidden, mask, d }: Prompts, structs: bigint[][], layers = 1) {
  const [B, T] = [mask.length, mask[0]!.length];
  using rows = matrix(B * T, d, hidden);
  using masks = matrix(B, T, Float32Array.from(mask.flat()));
  using routers = Tensor.from("int64", [layers, structs.length / layers, 10], BigInt64Array.from(structs.flat()));
  const results = session.call({ hidden: rows, mask: masks, routers });
  const [gates, probabilities] = [floats(results.gates!).slice(), floats(results.probabilities!).slice()];
  for (const tensor of Object.values(results)) tensor.dispose();
  return { gates, probabilities };
}

/** Calls `check` with one thread and with two. */
function bothWays(check: () => void): void {
  check();
  operators()!.useThreads(1);
  check();
  operators()!.useThreads(2);
}

function erf(x: number): number {
  if (Math.abs(x) > 4) return Math.sign(x);
  let [sum, term] = [0, x];
  for (let n = 0; n < 100; n++) {
    sum += term / (2 * n + 1);
    term *= (-x * x) / (n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

function softmax(x: number[]): number[] {
  const most = Math.max(...x);
  const powers = x.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

const dot = (x: ArrayLike<number>, y: ArrayLike<number>): number =>
  Array.from(x).reduce((sum, value, i) => sum + value * y[i]!, 0);

/** Gates and probabilities of one prompt, whose tokens are rows. */
function expectedOf({ settings, pooler, numerator, denominator, gate }: TestRouter, tokens: Float32Array[], d: number) {
  const { pooling, activation, weight, topK, rms, experts } = settings;
  const last = tokens.length - 1;
  const weights =
    pooling === "self_attention"
      ? softmax(tokens.map((token) => dot(token, pooler)))
      : tokens.map((_, i) => (pooling === "mean" ? 1 / tokens.length : Number(i === last)));
  let pooled = range(d).map((i) => tokens.reduce((sum, token, t) => sum + token[i]! * weights[t]!, 0));
  if (pooling === "max") pooled = range(d).map((i) => Math.max(...tokens.map((token) => token[i]!)));
  const size = rms ? 1 / Math.sqrt(dot(pooled, pooled) / d + 1e-6) : 1;
  const features = pooled.map((value) => {
    const x = value * size;
    if (activation === "identity") return x;
    if (activation === "relu") return Math.max(0, x);
    if (activation === "gelu") return 0.5 * x * (1 + erf(x / Math.SQRT2));
    const p = numerator.reduce((sum, a, j) => sum + a * x ** j, 0);
    const q = denominator.reduce((sum, b, j) => sum + b * x ** (j + 1), 0);
    return p / (1 + Math.abs(q));
  });
  const scores = range(experts).map((e) => dot(features, gate.subarray(e * d, (e + 1) * d)));
  const probabilities = softmax(scores);
  const order = range(experts).sort((a, b) => scores[b]! - scores[a]! || a - b);
  const chosen = new Set(order.slice(0, topK));
  const sum = [...chosen].reduce((total, e) => total + probabilities[e]!, 0);
  const gates = probabilities.map((p, e) => {
    if (!chosen.has(e)) return 0;
    return weight === "straight_through" ? 1 : weight === "probability" ? p : p / sum;
  });
  return { gates, probabilities };
}

/** Masks with prompts at the right, at the left, in two pieces, and nowhere, which means everywhere. */
function masksOf(T: number): number[][] {
  const where = [(t: number) => t >= T / 3, (t: number) => t < T / 2, (t: number) => t % 3 !== 1, () => false];
  return where.map((is) => range(T).map((t) => Number(is(t))));
}

function tokensOf({ hidden, mask, d }: Prompts, b: number): Float32Array[] {
  const T = mask[b]!.length;
  const all = range(T).map((t) => hidden.subarray((b * T + t) * d, (b * T + t + 1) * d));
  const own = all.filter((_, t) => mask[b]![t] === 1);
  return own.length > 0 ? own : all;
}

function check(session: Session, prompts: Prompts, routers: (TestRouter | undefined)[], experts: number, layer = 0) {
  const structs = routers.map((router) => router?.struct ?? NONE);
  const wrong = structs.map(() => NONE.map(() => 1n)); // what a layer below has is not read
  const results = runRoute(session, prompts, [...range(layer).flatMap(() => wrong), ...structs], layer + 1);
  for (const name of ["gates", "probabilities"] as const) {
    const values = new Float64Array(routers.length * experts);
    for (const [b, router] of routers.entries()) {
      if (router) values.set(expectedOf(router, tokensOf(prompts, b), prompts.d)[name], b * experts);
    }
    expectNear(results[name], { values, sizes: values.map((value) => (value === 0 ? 0 : 1)) }, 2e-6);
  }
}

export function routeTests(): void {
  const settings = POOLINGS.flatMap((pooling) => ACTIVATIONS.map((activation) => ({ pooling, activation })));

  describe("Route", () => {
    test.each(settings)("pools by $pooling, activates by $activation", (own) => {
      for (const [d, T] of [
        [1, 3],
        [7, 1],
        [33, 8],
        [100, 33],
        [576, 130], // by two threads
      ] as const) {
        using session = routing(0, 7);
        const prompts = { hidden: normals(d, 4 * T * d), mask: masksOf(T), d };
        for (const [i, weight] of WEIGHTS.entries()) {
          using router = new TestRouter({ ...own, weight, rms: i % 2 === 0, topK: [3, 1, 7][i]! }, d, d + i);
          bothWays(() => check(session, prompts, new Array(4).fill(router), 7));
        }
      }
    });

    test("each prompt by a router of its own, or by none", () => {
      const [d, T, experts] = [64, 20, 9];
      const random = new Random(5);
      const pick = <T>(values: readonly T[]): T => values[random.integer(values.length)]!;
      for (let round = 0; round < 20; round++) {
        const layer = round % 3;
        using session = routing(layer, experts);
        const routers = range(4).map((b) => {
          if ((b + round) % 4 === 3) return undefined;
          const count = 1 + random.integer(experts);
          const kinds = { pooling: pick(POOLINGS), activation: pick(ACTIVATIONS), weight: pick(WEIGHTS) };
          const sizes = { experts: count, topK: 1 + random.integer(count), rms: pick([true, false]) };
          return new TestRouter({ ...kinds, ...sizes }, d, 10 * round + b);
        });
        const prompts = { hidden: normals(round, 4 * T * d), mask: masksOf(T), d };
        bothWays(() => check(session, prompts, routers, experts, layer));
        for (const router of routers) router?.[Symbol.dispose]();
      }
    });

    test("a prompt's result is the same to the bit whatever surrounds it, and other tokens are not read", () => {
      const [d, length] = [600, 50];
      using session = routing(0, 7);
      const own = normals(1, length * d);
      for (const pooling of POOLINGS) {
        using router = new TestRouter({ pooling, weight: "probability" }, d);
        const alone = runRoute(session, { hidden: own, mask: [new Array(length).fill(1)], d }, [router.struct]);
        for (const [B, T, b, at] of [
          [1, 60, 0, 0],
          [3, 77, 1, 27],
          [8, 60, 7, 5], // by two threads
        ] as const) {
          const hidden = new Float32Array(B * T * d).fill(Number.NaN);
          const mask = range(B).map((i) => range(T).map((t) => Number(i !== b || (t >= at && t < at + length))));
          hidden.set(own, (b * T + at) * d);
          bothWays(() => {
            const { gates, probabilities } = runRoute(session, { hidden, mask, d }, new Array(B).fill(router.struct));
            expectSame(gates.subarray(7 * b, 7 * b + 7), alone.gates);
            expectSame(probabilities.subarray(7 * b, 7 * b + 7), alone.probabilities);
            // NaN of prompts shows, in their own results.
            if (B > 1) expect(probabilities.subarray(0, 7)).toEqual(new Float32Array(7).fill(Number.NaN));
          });
        }
      }
    });

    test("chooses by score, where probabilities are too small to tell; of equals the first", () => {
      using session = routing(0, 5);
      const prompts = { hidden: Float32Array.of(1), mask: [[1]], d: 1 };
      const chosen = (gate: number[], topK: number): number[] => {
        const kinds = { pooling: "last", activation: "identity" } as const;
        using router = new TestRouter({ ...kinds, topK, experts: 5 }, 1, 1, Float32Array.from(gate));
        return [...runRoute(session, prompts, [router.struct]).gates];
      };
      expect(chosen([0, -400, -300, 500, -350], 3)).toEqual([1, 0, 1, 1, 0]);
      expect(chosen([2, 3, 3, 2, 3], 2)).toEqual([0, 1, 1, 0, 0]);
      expect(chosen([2, 3, 3, 2, 3], 4)).toEqual([1, 1, 1, 0, 1]);
    });

    test.each([
      ["no pooler", 0, 0n],
      ["no coefficients", 1, 0n],
      ["no denominator", 2, 0n],
      ["a pooling that there is not", 4, 4n],
      ["an activation that there is not", 5, -1n],
      ["no expert chosen", 6, 0n],
      ["more chosen than there are", 6, 8n],
      ["a weight that there is not", 7, 3n],
      ["no experts", 9, 0n],
      ["more experts than there is room for", 9, 8n],
    ])("a router with %s is refused", (_, place, value) => {
      using session = routing(0, 7);
      using router = new TestRouter({}, 8);
      const wrong = router.struct.with(place, value);
      const prompts = { hidden: normals(1, 6 * 8), mask: [range(3).map(() => 1), range(3).map(() => 1)], d: 8 };
      expect(() => runRoute(session, prompts, [router.struct, wrong])).toThrow(/Route: a router/);
    });

    test("what does not fit together is refused", () => {
      using session = routing(1, 7);
      using router = new TestRouter({}, 8);
      const good = { hidden: normals(1, 6 * 8), mask: [range(3).map(() => 1), range(3).map(() => 1)], d: 8 };
      const two = [router.struct, router.struct];
      runRoute(session, good, [...two, ...two], 2);
      expect(() => runRoute(session, good, two)).toThrow(/no routers for this layer/);
      expect(() => runRoute(session, good, [...two, router.struct, router.struct, ...two], 2)).toThrow(/do not fit/);
      using hidden = matrix(5, 8, normals(1, 40));
      using mask = matrix(2, 3, normals(1, 6));
      using routers = Tensor.from("int64", [2, 2, 10], BigInt64Array.from([...two, ...two].flat()));
      expect(() => session.call({ hidden, mask, routers })).toThrow(/do not fit/);
      using narrow = Tensor.from("int64", [2, 2, 9], new BigInt64Array(36));
      using rows = matrix(6, 8, normals(1, 48));
      expect(() => session.call({ hidden: rows, mask, routers: narrow })).toThrow(/do not fit/);
    });
  });
}
