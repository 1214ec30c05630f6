/** @file Continuations that share the pass over their prompt have the probabilities that each has alone. */
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { Engine } from "./engine.ts";
import { batchesOf, paysToShare } from "./score-shared.ts";
import { distance, loadAdapter, loadBackbone, loadTiny } from "./testing.ts";

let tiny: Backbone;
let engine: Engine;
beforeAll(async () => {
  tiny = await loadTiny();
  engine = Engine.create(tiny);
});
afterAll(() => {
  engine.dispose();
  tiny.dispose();
});

async function compare(
  engine: Engine,
  questions: readonly { prompt: number[]; choices: number[][] }[],
  adapter?: Adapter,
) {
  const rows = questions.flatMap(({ prompt, choices }) => choices.map((continuation) => ({ prompt, continuation })));
  const together = await engine.score(rows, adapter);
  for (const [index, row] of rows.entries()) {
    const [alone] = await engine.score([row], adapter);
    expect(together[index]!.greedy).toBe(alone!.greedy);
    expect(distance(together[index]!.logprobs, alone!.logprobs)).toBeLessThan(1e-5);
  }
  return together;
}

test("choices of questions, of one token and of many, in any mixture", async () => {
  const { tokenizer } = tiny;
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
  const long = encode(
    `${"The mitochondrion is the site of respiration. ".repeat(6)}Question: what does a plant need?\nAnswer:`,
  );
  const short = encode("Question: what is the sky?\nAnswer:");
  const [best] = await engine.generate([{ prompt: long, options: { maxNewTokens: 3 } }]);
  const questions = [
    {
      prompt: long,
      choices: [encode(" water and light"), encode(" A"), encode(" the nucleus of a cell, and more"), best!.tokens],
    },
    { prompt: short, choices: [encode(" A"), encode(" B"), encode(" C")] },
    { prompt: [...short, ...short], choices: [encode(" blue"), encode(" blue"), encode(" very large and blue"), []] },
  ];
  expect(questions.slice(0, 2).every(({ prompt, choices }) => paysToShare({ prompt, continuations: choices }))).toBe(
    true,
  );
  const scores = await compare(engine, questions);
  expect(scores[3]!.greedy).toBe(true);
  expect(scores.at(-1)).toEqual({ logprobs: [], greedy: true });
});

test.each(["default", "pooler-last", "dora"])("routed adapters choose by the prompt alone: %s", async (name) => {
  using backbone = await loadBackbone("llama-gqa");
  using adapter = loadAdapter(`milora/${name}`, backbone);
  using engine = Engine.create(backbone);
  const { vocabSize } = backbone.config;
  const tokens = (count: number, seed: number) =>
    Array.from({ length: count }, (_, i) => (seed * 7 + i * 13) % vocabSize);
  const questions = [1, 2, 3].map((seed) => ({
    prompt: tokens(12 + 5 * seed, seed),
    choices: [tokens(1, 5), tokens(2, 6), tokens(4, 7), tokens(3, 8)],
  }));
  await compare(engine, questions, adapter);
});

test("batches keep to the limits and hold every group once", () => {
  const groups = Array.from({ length: 40 }, (_, i) => ({
    prompt: new Array<number>(20 + ((i * 37) % 90)).fill(1),
    continuations: Array.from({ length: 2 + (i % 4) }, (_, c) => new Array<number>(1 + c).fill(1)),
  }));
  const batches = batchesOf(groups);
  expect(batches.flat().sort((a, b) => a - b)).toEqual(groups.map((_, i) => i));
  expect(batches.length).toBeLessThan(20);
});
