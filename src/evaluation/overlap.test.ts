/** @file Finding test questions in training rows: what counts, what is a frame, where an adapter's training rows are. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { resolveTrainingConfig } from "../training/index.ts";
import { asTraining, findOverlap, trainingSourcesOf, trainingTexts } from "./overlap.ts";

const words = (from: number, count: number): string =>
  Array.from({ length: count }, (_, i) => `word${from + i}`).join(" ");

const find = (texts: readonly string[], training: readonly string[]) =>
  findOverlap(texts, asTraining(["train"], training));

test("13 words in a row are found, in any case and with any signs between them; 12 are not", () => {
  const texts = [`Start ${words(0, 13)} end of it`, `Start ${words(100, 12)} end of it`, words(200, 30)];
  const training = [`x ${words(0, 13).toUpperCase().replaceAll(" ", ", ")} y`, `x ${words(100, 12)} y`];
  expect(find(texts, training)).toMatchObject({ rows: [0], checked: 3, unchecked: 0, trainingRows: 2, words: 13 });
});

test("a shorter question is found as a whole, from 8 words on", () => {
  const texts = [words(0, 9), words(50, 7), `${words(0, 8)} other`];
  expect(find(texts, [`before ${words(0, 9)} after`, words(50, 7)])).toMatchObject({
    rows: [0],
    checked: 2,
    unchecked: 1,
  });
});

test("words that many questions share are the task's frame", () => {
  const frame = words(1000, 20);
  const texts = Array.from({ length: 10 }, (_, i) => `${frame} ${words(100 * i, 5)}`);
  expect(find(texts, [frame, `${frame} ${words(300, 5)}`]).rows).toEqual([3]);
});

test("the training rows of an adapter are those of its run", async () => {
  const run = mkdtempSync(join(tmpdir(), "milora-overlap-"));
  onTestFinished(() => rmSync(run, { recursive: true }));
  const adapter = join(run, "checkpoints/step-3");
  mkdirSync(adapter, { recursive: true });
  expect(trainingSourcesOf(adapter)).toBeUndefined();
  const rows = join(run, "rows.jsonl");
  writeFileSync(rows, '{"question": "one?", "reply": "two"}\n');
  const config = (train: unknown) =>
    JSON.stringify(
      resolveTrainingConfig({
        model: "m",
        method: "lora",
        output_dir: run,
        data: { train, columns: { prompt: "question", completion: "reply" } },
      } as never),
    );
  writeFileSync(join(run, "config.json"), config(rows));
  expect(await trainingTexts(trainingSourcesOf(adapter)!)).toMatchObject({ names: [rows], rows: [["one", "two"]] });
  writeFileSync(join(run, "config.json"), config([{ path: rows, name: "own" }, "b.jsonl"]));
  expect(trainingSourcesOf(run)!.map(({ path }) => path)).toEqual([rows, "b.jsonl"]);
});
