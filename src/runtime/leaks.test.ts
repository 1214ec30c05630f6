/** @file Nothing leaks: thousands of native objects made and released in flat memory, and forgotten ones collected. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { operators, PrepackedWeights, Session, Tensor } from "./index.ts";
import { Changes, linear as linearItems } from "./testing/items.ts";
import { linearNode, normals, Products, weightOf } from "./testing/operators.ts";
import { routing, runRoute, TestRouter } from "./testing/route-operator.ts";
import { ADD, linear, testModel } from "./testing.ts";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;
const MiB = 2 ** 20;

/** Lets finalizers run: they are tasks of the event loop after a collection. */
async function settle(): Promise<void> {
  for (let round = 0; round < 4; round++) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

const WINDOWS = 5;

/**
 * Growth of the process's memory over a fifth of the rounds, in bytes: the least of the five, because a leak grows in
 * each of them, while caches, thread stacks and fragmentation of the heap fill up once.
 */
async function growthOver(rounds: number, round: () => unknown): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  let before = process.memoryUsage.rss();
  for (let window = 0; window < WINDOWS; window++) {
    for (let index = 0; index < rounds / WINDOWS; index++) await round();
    await settle();
    const after = process.memoryUsage.rss();
    least = Math.min(least, after - before);
    before = after;
  }
  return least;
}

describe("memory stays flat", () => {
  it("over sessions with weights from outside, bindings and runs", async () => {
    const model = testModel(linear(64, 64));
    using w = Tensor.allocate("float32", [64, 64]);
    using x = Tensor.allocate("float32", [1, 64]);
    const growth = await growthOver(2000, () => {
      using prepacked = new PrepackedWeights();
      using session = Session.create(model, { initializers: new Map([["w", w]]), prepacked });
      using binding = session.bind().input("x", x).outputOn("y", "cpu");
      session.run(binding);
      binding.results().get("y")!.dispose();
    });
    // 400 leaked sessions or packed weights of 16 KiB would cost over 6 MiB.
    expect(growth).toBeLessThan(2 * MiB);
  });

  it("over refused models", async () => {
    const garbage = new Uint8Array(20_000).fill(7);
    let refused = 0;
    const growth = await growthOver(5000, () => {
      try {
        Session.create(garbage);
      } catch {
        refused++; // without expect(), which remembers what it was given
      }
    });
    expect(refused).toBe(5000);
    expect(growth).toBeLessThan(2 * MiB);
  });

  it("over models that were loaded on a worker thread, and refused there", async () => {
    const model = testModel(linear(64, 64));
    const garbage = new Uint8Array(20_000).fill(7);
    using w = Tensor.allocate("float32", [64, 64]);
    const growth = await growthOver(1000, async () => {
      using prepacked = new PrepackedWeights();
      const options = { initializers: new Map([["w", w]]), prepacked };
      const [loaded, refused] = await Promise.allSettled([
        Session.createAsync(model, options),
        Session.createAsync(garbage, options),
      ]);
      if (loaded.status === "rejected" || refused.status === "fulfilled") throw new Error("loaded the wrong one");
      loaded.value.dispose();
    });
    // 200 leaked sessions or packed weights of 16 KiB would cost over 3 MiB.
    expect(growth).toBeLessThan(2 * MiB);
  });

  it("over tensors, views, results and asynchronous runs", async () => {
    using session = Session.create(testModel(ADD));
    const growth = await growthOver(5000, async () => {
      using big = Tensor.allocate("float32", [16_384]);
      using view = big.view(100, [8192]);
      using shared = Tensor.from("float32", [8192], new Float32Array(8192));
      using one = Tensor.scalar("int64", 1);
      if (one.data[0] !== 1n) throw new Error("a scalar lost its value");
      const { y } = session.call({ a: view, b: shared });
      y!.dispose();
      using binding = session.bind().input("a", view).input("b", shared).output("y", shared);
      await session.runAsync(binding);
    });
    // 1000 of the smallest part, 32 KiB, would cost 32 MiB.
    expect(growth).toBeLessThan(4 * MiB);
  });

  it.skipIf(operators() === undefined)("over products by milora's operators, of 1 to 300 rows", async () => {
    const [K, N] = [256, 64];
    const weight = weightOf(1, { K, N, bits: 4, block: 32 });
    using products = new Products(weight, [linearNode(weight)], ["y"]);
    const numbers = normals(1, 300 * K);
    let round = 0;
    const growth = await growthOver(2000, () => {
      products.run(numbers.subarray(0, K * (1 + ((round++ * 101) % 300))), K);
    });
    // 400 times the rounded rows, 60 KiB on average, would cost 20 MiB.
    expect(growth).toBeLessThan(4 * MiB);
  });

  it.skipIf(operators() === undefined)("over adapters of many rows, routers of prompts, and refusals", async () => {
    const [K, N, M] = [256, 64, 200];
    using products = linearItems(weightOf(1, { K, N, bits: 4, block: 32 }));
    const change = { first: 0, outputs: N, rank: 8, rows: M };
    using good = new Changes([{ ...change, row: 0 }], K);
    using bad = new Changes([{ ...change, row: 1 }], K);
    const x = normals(1, M * K);
    using session = routing(0, 7);
    using router = new TestRouter({}, K);
    const prompts = { hidden: x, mask: [new Array<number>(M).fill(1)], d: K };
    const growth = await growthOver(2000, () => {
      products.run(x, K, { items: good.items });
      runRoute(session, prompts, [router.struct]);
      expect(() => products.run(x, K, { items: bad.items })).toThrow(/Linear/);
      expect(() => runRoute(session, prompts, [router.struct.with(9, 0n)])).toThrow(/Route/);
    });
    expect(growth).toBeLessThan(4 * MiB);
  });

  it("over tensors whose elements were looked at", async () => {
    const growth = await growthOver(2000, async () => {
      using tensor = Tensor.allocate("float32", [65_536]);
      tensor.data[1] = 1;
    });
    // 400 of them would cost 100 MiB.
    expect(growth).toBeLessThan(4 * MiB);
  });
});

describe("what was forgotten", () => {
  const warnings: Error[] = [];
  const listen = (warning: Error): void => {
    warnings.push(warning);
  };
  beforeAll(() => process.on("warning", listen));
  afterAll(() => process.off("warning", listen));

  it("is not a binding that its session has closed", async () => {
    const model = testModel(ADD);
    for (let round = 0; round < 20; round++) {
      const session = Session.create(model);
      session.bind();
      session.dispose();
    }
    await settle();
    expect(warnings).toEqual([]);
  });

  it("is released when collected, with one warning per kind", async () => {
    const model = testModel(ADD);
    const forget = (): void => {
      const tensor = Tensor.allocate("float32", [65_536]);
      const binding = Session.create(model).bind().input("a", tensor).input("b", tensor).outputOn("y", "cpu");
      binding.session.run(binding);
      binding.results();
      new PrepackedWeights();
    };
    const growth = await growthOver(300, async () => {
      forget();
      await new Promise((resolve) => setImmediate(resolve));
    });
    await settle();
    const leaks = warnings.filter((warning) => (warning as { code?: string }).code === "MILORA_LEAK");
    const kinds = leaks.map((warning) => /^a (\w+)/.exec(warning.message)?.[1]).sort();
    expect(kinds).toEqual(["Binding", "PrepackedWeights", "Session", "Tensor"]);
    // 60 times the tensor and the result, 512 KiB together, would cost 30 MiB.
    expect(growth).toBeLessThan(8 * MiB);
  });

  it("is not what an asynchronous run still uses", async () => {
    const array = new Float32Array(1_000_000);
    const start = (): Promise<void> => {
      const session = Session.create(testModel(ADD));
      const ones = Tensor.from("float32", [1_000_000], new Float32Array(1_000_000).fill(1));
      const y = Tensor.from("float32", [1_000_000], array);
      return session.runAsync(session.bind().input("a", ones).input("b", ones).output("y", y));
    };
    for (let round = 0; round < 20; round++) {
      array.fill(0);
      const run = start();
      collect();
      for (let fill = 0; fill < 5; fill++) new Float32Array(1_000_000).fill(9);
      await run;
      expect(array.every((value) => value === 2)).toBe(true);
    }
  });
});
