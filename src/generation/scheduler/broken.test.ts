/** @file A step that fails as a whole: what had rows in it fails, a prompt that is being read as well, and work goes on. */
import { afterEach, expect, test, vi } from "vitest";
import { Backbone } from "../../models/index.ts";
import { RuntimeError } from "../../runtime/index.ts";
import { Batch } from "../batch.ts";
import { Engine } from "../engine.ts";
import { smallConfig } from "../testing.ts";
import { Scheduler } from "./scheduler.ts";

afterEach(() => vi.restoreAllMocks());

test("nobody waits for rows that have gone", async () => {
  using backbone = Backbone.random(smallConfig, { seed: 3 });
  using engine = Engine.create(backbone);
  await using scheduler = new Scheduler(engine, { maxPrefillTokens: 16 });
  const options = { maxNewTokens: 8, eosTokenIds: [] };
  const ask = async (prompt: readonly number[]) => {
    const stream = scheduler.submit({ tenant: "a", prompt, options });
    for (;;) {
      const next = await stream.next();
      if (next.done) return next.value[0]!.tokens.length;
    }
  };
  const long = Array.from({ length: 60 }, (_, i) => 1 + (i % 40));
  // The runtime gives up on a step that is taken while the long prompt is half read.
  const step = Batch.prototype.step;
  let steps = 0;
  vi.spyOn(Batch.prototype, "step").mockImplementation(async function (this: Batch, ...given) {
    steps++;
    if (steps === 2) throw new RuntimeError("RUNTIME_FAILED", "the runtime gave up");
    return step.apply(this, given);
  });
  const short = ask([1, 44, 23, 90]);
  const reading = ask(long);
  const outcomes = await Promise.allSettled([short, reading]);
  expect(outcomes).toMatchObject([
    { status: "rejected", reason: { code: "RUNTIME_FAILED" } },
    { status: "rejected", reason: { code: "RUNTIME_FAILED" } },
  ]);
  expect(await ask(long)).toBe(8);
  expect(scheduler.stats()).toMatchObject({ waiting: 0, running: 0, rows: 0 });
});
