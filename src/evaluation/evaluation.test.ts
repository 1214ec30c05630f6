/** @file Tests of exact match and perplexity on the bundled backbone. */
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine } from "../generation/index.ts";
import { Backbone } from "../models/index.ts";
import { renderRow } from "../training/index.ts";
import { exactMatch } from "./exact-match.ts";
import { perplexity } from "./perplexity.ts";
import { type LabelledRow, loadLabelledRows } from "./rows.ts";

const assets = join(import.meta.dirname, "../../assets");
let backbone: Backbone;
let engine: Engine;
let rows: LabelledRow[];

beforeAll(async () => {
  backbone = await Backbone.load(join(assets, "tiny-llama"));
  engine = Engine.create(backbone);
  rows = (await loadLabelledRows(join(assets, "data/subjects/test.jsonl"))).slice(0, 3);
});

afterAll(() => {
  engine.dispose();
  backbone.dispose();
});

test("perplexity is that of the response tokens, each given all before it", async () => {
  const result = await perplexity(engine, backbone.tokenizer, rows);
  const expected: number[] = [];
  for (const row of rows) {
    const { prompt, response } = renderRow(row, backbone.tokenizer, { template: "alpaca" });
    const { logprobs } = await engine.inspectTokens([...prompt, ...response]);
    expected.push(...logprobs.slice(prompt.length - 1));
  }
  expect(result.tokens).toBe(expected.length);
  const mean = expected.reduce((a, b) => a + b, 0) / expected.length;
  expect(result.perplexity).toBeCloseTo(Math.exp(-mean), 2);
});

test("exact match scores what was generated, row by row", async () => {
  const text = async (row: LabelledRow) => {
    const { prompt } = renderRow(row, backbone.tokenizer, { template: "alpaca" });
    const [result] = await engine.generate([{ prompt, options: { maxNewTokens: 6 } }]);
    return result!.text;
  };
  const outputs = await Promise.all(rows.map(text));
  const words = outputs.map((output) => /\p{L}{3,}/u.exec(output)![0]);
  // Answers that the bare backbone happens to write: the first row's and the third's, not the second's.
  const labelled = rows.map((row, i) => ({ ...row, answer: i === 1 ? "zebra" : words[i]! }));
  const instruction = `Say it.\n\nAnswer format: ${[...words, "zebra"].join("/")}`;
  const asked = labelled.map((row) => ({ ...row, form: "instruction" as const, instruction, input: "", output: "" }));
  const result = await exactMatch(engine, backbone.tokenizer, labelled, { maxNewTokens: 6 });
  expect(result.rows.map((row) => row.output)).toEqual(outputs);
  expect(result.rows.map((row) => row.correct)).toEqual([true, false, true]);
  expect(result.accuracy).toMatchObject({ correct: 2, total: 3 });
  const other = await exactMatch(engine, backbone.tokenizer, asked, { maxNewTokens: 6 });
  expect(other.extraction).toEqual({ kind: "labels", labels: [...new Set([...words, "zebra"])] });
  expect(other.promptDigest).not.toBe(result.promptDigest);
});

test("a cancelled measurement gives no accuracy", async () => {
  const controller = new AbortController();
  const measuring = exactMatch(engine, backbone.tokenizer, rows, { signal: controller.signal });
  controller.abort(new Error("enough"));
  await expect(measuring).rejects.toThrow("enough");
});
