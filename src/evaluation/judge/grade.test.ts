/** @file Grading held against FastChat: its messages to the byte, its reading of verdicts, its means; and the intervals. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { temporary } from "../../../test/cli/milora.ts";
import { judgeServer } from "../../../test/judge-server.ts";
import { type AnsweredQuestion, gradePairs, gradeSingle, requestsOf } from "./grade.ts";
import { Judge } from "./judge.ts";
import { type JudgedQuestion, type JudgeMessage, pairMessages, singleMessages, type Turn } from "./prompts.ts";
import { clusterInterval } from "./scores.ts";
import { outcomeOf, ratingOf, winnerOf } from "./verdict.ts";

const root = join(import.meta.dirname, "../../..");

/** Written by FastChat's own code: test/reference/fastchat_judge.py. */
const fastchat = JSON.parse(readFileSync(join(root, "test/fixtures/judge/fastchat.json"), "utf8")) as {
  prompts: Record<string, object>;
  answers: { A: string[]; B: string[] };
  cases: {
    question: number;
    kind: "single" | "pair";
    turn: Turn;
    messages: JudgeMessage[];
    temperature: number;
    max_tokens: number;
  }[];
  verdicts: { text: string; rating: number; winner: string }[];
};

const lines = (name: string): Record<string, unknown>[] =>
  readFileSync(join(root, "assets", name), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));

const references = new Map(
  lines("data/mt_bench/references.jsonl").map((row) => [
    row.question_id,
    (row.choices as { turns: string[] }[])[0]!.turns,
  ]),
);
const questions = new Map(
  lines("data/mt_bench/test.jsonl").map((row): [number, JudgedQuestion] => {
    const known = references.get(row.question_id);
    const id = row.question_id as number;
    const question = { id, category: row.category as string, turns: row.turns as string[] };
    return [id, known ? { ...question, references: known } : question];
  }),
);

test("the bundled prompts are FastChat's", () => {
  expect(Object.fromEntries(lines("judge/prompts.jsonl").map((prompt) => [prompt.name, prompt]))).toEqual(
    fastchat.prompts,
  );
  expect(questions.size).toBe(80);
});

test.each(fastchat.cases)("question $question, $kind, turn $turn is asked as FastChat asks it", (one) => {
  const question = questions.get(one.question)!;
  const { A, B } = fastchat.answers;
  const messages =
    one.kind === "single" ? singleMessages(question, A, one.turn) : pairMessages(question, A, B, one.turn);
  expect(messages).toEqual(one.messages);
});

test("a rating of more digits than a number has is none", () => {
  expect(ratingOf(`Rating: [[${"9".repeat(400)}]]`)).toBeUndefined();
});

test.each(fastchat.verdicts)("$text is read as FastChat reads it", ({ text, rating, winner }) => {
  expect(ratingOf(text) ?? -1).toBe(rating);
  expect(winnerOf(text) ?? "error").toBe(winner);
});

test("a win is one in both orders", () => {
  expect(outcomeOf("A", "B")).toBe("win");
  expect(outcomeOf("B", "A")).toBe("loss");
  for (const [straight, swapped] of [
    ["A", "A"],
    ["B", "B"],
    ["tie", "tie"],
    ["A", "tie"],
    ["tie", "A"],
  ] as const) {
    expect(outcomeOf(straight, swapped)).toBe("tie");
  }
  expect(outcomeOf("A", undefined)).toBeUndefined();
  expect(outcomeOf(undefined, "B")).toBeUndefined();
});

const items: AnsweredQuestion[] = [81, 82, 111, 112].map((id) => ({
  question: questions.get(id)!,
  answers: [`first of ${id}`, `second of ${id}`],
}));

function judgeAt(url: string): Judge {
  const settings = { model: "judge-1", temperature: 0, maxTokens: 2048, timeoutMs: 5000, backoffMs: 1 };
  return new Judge({ url, cache: temporary(), ...settings });
}

test("ratings become means by turn and category; what has none is counted and left out", async () => {
  const given: Record<string, string> = {
    "first of 81": "Good. Rating: [[8]]",
    "second of 81": "Rating: [[4]]",
    "first of 82": "I cannot rate this.",
    "second of 82": "[6]",
    "first of 111": "[[10]]",
    "second of 111": "[[1]]",
    "first of 112": "[[9.5]]",
    "second of 112": "[[2]]",
  };
  const server = await judgeServer(({ body }) => {
    const { content } = body.messages[1]!;
    return given[Object.keys(given).findLast((name) => content.includes(name))!]!;
  });
  const { scores, judgments } = await gradeSingle(judgeAt(server.url), items);
  expect(server.asked).toHaveLength(8);
  expect(scores.overall).toMatchObject({ value: (8 + 4 + 6 + 10 + 1 + 9.5 + 2) / 7, judged: 7, unjudged: 1 });
  expect(scores.turns).toMatchObject([
    { turn: 1, score: { value: (8 + 10 + 9.5) / 3, judged: 3, unjudged: 1 } },
    { turn: 2, score: { value: (4 + 6 + 1 + 2) / 4, judged: 4, unjudged: 0 } },
  ]);
  expect(scores.categories.map(({ category, overall }) => [category, overall.value])).toEqual([
    ["writing", 6],
    ["math", 22.5 / 4],
  ]);
  const [low, high] = scores.overall.interval!;
  expect(low).toBeGreaterThanOrEqual(1);
  expect(low).toBeLessThan(scores.overall.value!);
  expect(high).toBeGreaterThan(scores.overall.value!);
  expect(judgments.map(({ question, turn, prompt, rating }) => [question, turn, prompt, rating])).toEqual([
    [81, 1, "single-v1", 8],
    [81, 2, "single-v1-multi-turn", 4],
    [82, 1, "single-v1", null],
    [82, 2, "single-v1-multi-turn", 6],
    [111, 1, "single-math-v1", 10],
    [111, 2, "single-math-v1-multi-turn", 1],
    [112, 1, "single-math-v1", 9.5],
    [112, 2, "single-math-v1-multi-turn", 2],
  ]);
  expect(requestsOf(items)).toHaveLength(8);
});

test("two models play each turn twice, with changed places", async () => {
  // Prefers the longer text, save for question 82, where it always takes the first place, and 112, where it says nothing.
  const server = await judgeServer(({ body }) => {
    const { content } = body.messages[1]!;
    if (content.includes("of 112")) return "Hm.";
    if (content.includes("of 82")) return "[[A]]";
    const [mine, other] = [content.lastIndexOf("second of"), content.lastIndexOf("a baseline")];
    const at = mine < 0 ? content.indexOf("first of") : mine;
    return at < other ? "My verdict: [[A]]" : "My verdict: [[B]]";
  });
  const paired = items.map((item) => ({ ...item, baseline: ["a baseline", "a baseline"] }));
  const { scores, judgments } = await gradePairs(judgeAt(server.url), paired);
  expect(server.asked).toHaveLength(16);
  expect(scores.overall).toMatchObject({ wins: 4, losses: 0, ties: 2, judged: 6, unjudged: 2, value: 5 / 6 });
  expect(scores.categories).toMatchObject([
    { category: "writing", overall: { wins: 2, ties: 2, value: 0.75 } },
    { category: "math", overall: { wins: 2, ties: 0, unjudged: 2, value: 1, interval: [1, 1] } },
  ]);
  expect(judgments[0]).toMatchObject({ outcome: "win", winners: ["A", "B"], prompt: "pair-v2" });
  expect(judgments[2]).toMatchObject({ outcome: "tie", winners: ["A", "A"] });
  expect(judgments[6]).toMatchObject({ outcome: null, winners: [null, null] });
});

test("intervals draw questions, not turns: two equal turns are no more than one", () => {
  const ratings = [1, 9, 4, 7, 7, 2, 8, 5, 3, 10];
  const once = clusterInterval(
    ratings.map((value) => [value]),
    1,
  )!;
  const twice = clusterInterval(
    ratings.map((value) => [value, value]),
    1,
  )!;
  expect(twice).toEqual(once);
  const taken = clusterInterval(
    [...ratings, ...ratings].map((value) => [value]),
    1,
  )!;
  expect(taken[1] - taken[0]).toBeLessThan(once[1] - once[0]);
  expect(clusterInterval([], 1)).toBeNull();
});
