/** @file The scheduler as its users see it: tokens and results as of the engine alone, cancelling, refusals, drain. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { Adapter, methodOf } from "../../methods/index.ts";
import { Backbone } from "../../models/index.ts";
import { Engine } from "../engine.ts";
import type { GenerationResult } from "../request.ts";
import { smallConfig } from "../testing.ts";
import { Scheduler } from "./scheduler.ts";
import type { ChoiceToken } from "./types.ts";

let backbone: Backbone;
let engine: Engine;
beforeAll(() => {
  backbone = Backbone.random(smallConfig, { seed: 3 });
  engine = Engine.create(backbone);
});
afterAll(() => {
  engine.dispose();
  backbone.dispose();
});

async function collect(
  stream: AsyncGenerator<ChoiceToken, readonly GenerationResult[]>,
): Promise<{ tokens: ChoiceToken[]; results: readonly GenerationResult[] }> {
  const tokens: ChoiceToken[] = [];
  for (;;) {
    const next = await stream.next();
    if (next.done) return { tokens, results: next.value };
    tokens.push(next.value);
  }
}

const prompt = [1, 44, 23, 90];

test("answers are those of the engine, the first of several as if it were alone", async () => {
  await using scheduler = new Scheduler(engine);
  using adapter = Adapter.create(methodOf("milora"), { r: 2, top_k: 2 }, backbone.config, 1);
  const options = { maxNewTokens: 12, temperature: 1, seed: 4, eosTokenIds: [] };
  const request = { tenant: "a", prompt, adapter, options };
  const [expected] = await engine.generate([request]);
  const { tokens, results } = await collect(scheduler.submit({ ...request, n: 3 }));
  expect(results.map((result) => result.tokens.length)).toEqual([12, 12, 12]);
  expect(results[0]!.tokens).toEqual(expected!.tokens);
  expect(results[1]!.tokens).not.toEqual(results[0]!.tokens);
  for (const choice of [0, 1, 2]) {
    expect(tokens.filter((token) => token.choice === choice).map(({ token }) => token)).toEqual(
      results[choice]!.tokens,
    );
  }
});
