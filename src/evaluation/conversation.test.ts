/** @file Conversations through the engine: what each turn is asked, how it is decoded, going on, and answers as files. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine } from "../generation/index.ts";
import { Backbone } from "../models/index.ts";
import { alpacaPrompt, PromptTemplate } from "../training/index.ts";
import { answersText, answersTo, judgedQuestions, readAnswers } from "./answers.ts";
import { answerTask, type ConversationOptions, conversationForm } from "./conversation.ts";
import { evaluateTask } from "./evaluate.ts";
import { loadSplit } from "./load.ts";
import { conversationTokens } from "./prompts.ts";
import { defaultProtocol, findTasks } from "./registry.ts";
import { RowStore } from "./store.ts";

const root = join(import.meta.dirname, "../..");
const fastchat = JSON.parse(readFileSync(join(root, "test/fixtures/judge/fastchat.json"), "utf8")) as {
  temperatures: Record<string, number>;
};
let backbone: Backbone;
let engine: Engine;
let directory: string;
let rows: string;
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "milora-conversation-"));
  backbone = await Backbone.load(join(root, "assets/tiny-llama"));
  engine = Engine.create(backbone);
  rows = join(directory, "questions.jsonl");
  const questions = [
    { question_id: 81, category: "writing", turns: ["Write a line about rain.", "Now about snow."] },
    { question_id: 101, category: "reasoning", turns: ["Who is second?", "And who is last?"] },
    { question_id: 7, category: "stem", turns: ["What is a cell?"] },
  ];
  writeFileSync(rows, questions.map((question) => `${JSON.stringify(question)}\n`).join(""));
});
afterAll(() => {
  engine.dispose();
  backbone.dispose();
  rmSync(directory, { recursive: true });
});

async function mtBench() {
  const [task] = await findTasks(["mt_bench"], await defaultProtocol(["mt_bench"]));
  return task!;
}

async function answered(options: ConversationOptions = {}) {
  return await answerTask(engine, await mtBench(), { data: { rows }, maxNewTokens: 8, ...options });
}

test("MT-Bench is bundled: 80 questions of two turns, with FastChat's temperatures and references", async () => {
  const task = await mtBench();
  const { form, protocol } = conversationForm(task);
  expect(protocol).toBe("fastchat");
  const { documents } = await loadSplit(task, form.split, {});
  expect(documents).toHaveLength(80);
  const counts = new Map<string, number>();
  for (const { category, turns, question } of documents) {
    counts.set(category!, (counts.get(category!) ?? 0) + 1);
    expect(turns).toHaveLength(2);
    expect(turns![0]).toBe(question);
  }
  expect([...counts.values()]).toEqual(Array(8).fill(10));
  for (const document of documents) expect(form.temperature(document)).toBe(fastchat.temperatures[document.category!]);
  const empty = documents.map((document, row) => ({ row, document, answers: [] }));
  const judged = await judgedQuestions(task, form, empty);
  expect(judged.filter(({ question }) => question.references?.length === 2)).toHaveLength(30);
  await expect(evaluateTask(engine, task, { protocol })).rejects.toMatchObject({ code: "TASK_UNSUPPORTED" });
  expect(await defaultProtocol(["mt_bench", "arc_easy"])).toBe("hu2023");
});

test("rows of the hub are read, and what is no conversation is named", async () => {
  const task = await mtBench();
  expect(task.read({ prompt_id: 5, category: "math", prompt: ["a", "b"], reference: [] })).toMatchObject({
    id: 5,
    turns: ["a", "b"],
  });
  expect(task.read({ question_id: 5, category: "math", turns: "a" })).toMatch(/"turns"/);
  expect(task.read({ category: "math", turns: ["a"] })).toMatch(/"question_id"/);
  expect(task.read({ question_id: 5, category: "math", turns: ["a", "b", "c"] })).toMatch(/has 3 turns/);
});

test("later turns have the earlier answers before them, in the template", () => {
  const { tokenizer } = backbone;
  const [turns, answers] = [["One?", "Two?"], ["First."]];
  const text = (template: Parameters<typeof conversationTokens>[3]) =>
    tokenizer.decode(conversationTokens(tokenizer, turns, answers, template), { skipSpecialTokens: false });
  expect(text("chat")).toBe(
    "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nFirst.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n",
  );
  expect(text("alpaca")).toBe(`${alpacaPrompt("One?", "")}First.\n\n### Instruction:\nTwo?\n\n### Response:\n`);
  const jinja = new PromptTemplate("{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}");
  expect(text(jinja)).toBe("user=One?;assistant=First.;user=Two?;");
  expect(() => text("none")).toThrow(/cannot show a conversation/);
  // The first turn under alpaca is what adapters are trained with.
  expect(conversationTokens(tokenizer, ["One?"], [], "alpaca")).toEqual(tokenizer.encode(alpacaPrompt("One?", "")));
});

test("answers are those of the engine, turn by turn, drawn by category or greedy", async () => {
  const result = await answered({ greedy: true });
  const { tokenizer } = backbone;
  for (const { document, answers } of result.samples) {
    expect(answers).toHaveLength(document.turns!.length);
    for (const [turn, answer] of answers.entries()) {
      const prompt = conversationTokens(tokenizer, document.turns!.slice(0, turn + 1), answers.slice(0, turn), "chat");
      const [alone] = await engine.generate([{ prompt, options: { maxNewTokens: 8 } }]);
      expect(answer).toBe(alone!.text.trim());
    }
  }
  expect(result).toMatchObject({ template: "chat", rows: 3, cut: 0, unfinished: 5, backbone: backbone.digest });
  expect(result.decoding.writing).toEqual({ beams: 1, maxNewTokens: 8, temperature: 0, stop: [] });

  const drawn = await answered();
  expect(drawn.decoding).toEqual({
    writing: { beams: 1, maxNewTokens: 8, temperature: 0.7, stop: [], topK: 50, seed: 1234 },
    reasoning: { beams: 1, maxNewTokens: 8, temperature: 0, stop: [] },
    stem: { beams: 1, maxNewTokens: 8, temperature: 0.1, stop: [], topK: 50, seed: 1234 },
  });
  expect(drawn.samples[1]!.answers).toEqual(result.samples[1]!.answers);
  expect(drawn.samples[0]!.answers).not.toEqual(result.samples[0]!.answers);
  expect((await answered()).samples).toEqual(drawn.samples);
  expect((await answered({ seed: 5 })).samples[0]!.answers).not.toEqual(drawn.samples[0]!.answers);
  await expect(answered({ beams: 2 })).rejects.toThrow(/--beams.*add --greedy/);
  expect((await answered({ beams: 2, greedy: true, limit: 1 })).decoding.writing).toMatchObject({ beams: 2 });
});

test("answers leave room for all turns, and prompts that do not fit are counted", async () => {
  const { maxNewTokens, ...rest } = (await answered({ limit: 1, maxNewTokens: undefined })).decoding.writing!;
  expect(maxNewTokens).toBe(256); // a quarter of 1024
  expect(rest.temperature).toBe(0.7);
  const long = join(directory, "long.jsonl");
  const turns = ["word ".repeat(1100), "And?"];
  writeFileSync(long, `${JSON.stringify({ question_id: 1, category: "math", turns })}\n`);
  expect(await answered({ data: { rows: long } })).toMatchObject({ cut: 2, rows: 1 });
  await expect(answered({ maxNewTokens: 1024 })).rejects.toThrow(/leave no room/);
});

test("what was answered is not asked again, each turn by itself", async () => {
  const path = join(directory, "rows.jsonl");
  const whole = await answered({ store: new RowStore(path) });
  const kept = readFileSync(path, "utf8").trimEnd().split("\n");
  expect(kept.map((line) => (JSON.parse(line) as { turn: number }).turn).sort()).toEqual([1, 1, 1, 2, 2]);
  const closed = Engine.create(backbone);
  closed.dispose();
  const options = { data: { rows }, maxNewTokens: 8, store: new RowStore(path) };
  expect(await answerTask(closed, await mtBench(), options)).toEqual(whole);

  // Stopped between the turns: the first are kept.
  const stopped = join(directory, "stopped.jsonl");
  const controller = new AbortController();
  let threes = 0; // told when the engine has finished, and when the rows are written
  const begun = answered({
    store: new RowStore(stopped),
    signal: controller.signal,
    onProgress: (done) => {
      if (done === 3 && ++threes === 2) controller.abort(new Error("enough"));
    },
  });
  await expect(begun).rejects.toThrow("enough");
  expect(readFileSync(stopped, "utf8").trimEnd().split("\n")).toHaveLength(3);
  const progress: number[] = [];
  const again = await answered({ store: new RowStore(stopped), onProgress: (done) => progress.push(done) });
  expect(again).toEqual(whole);
  expect(progress[0]).toBe(3);
});

test("answers are files as FastChat has them, and are read back", async () => {
  const { samples } = await answered({ greedy: true });
  const path = join(directory, "answers.jsonl");
  writeFileSync(path, answersText("tiny", samples));
  const answers = await readAnswers(path);
  expect(answers.model).toBe("tiny");
  const documents = samples.map(({ document }) => document);
  expect(answersTo(documents, answers, path)).toEqual(samples);
  const [line] = readFileSync(path, "utf8").split("\n");
  expect(JSON.parse(line!)).toEqual({
    question_id: 81,
    answer_id: expect.stringMatching(/^[0-9a-f]{22}$/),
    model_id: "tiny",
    choices: [{ index: 0, turns: samples[0]!.answers }],
    tstamp: expect.any(Number),
  });
  writeFileSync(path, '{"question_id": 81, "choices": [{"turns": ["only one"]}]}\n');
  expect(() => answersTo(documents.slice(0, 1), { model: "x", turns: new Map([["81", ["one"]]]) }, path)).toThrow(
    /no answers to the 2 turns of question 81/,
  );
  writeFileSync(path, '{"question_id": 81}\nnot json\n');
  await expect(readAnswers(path)).rejects.toMatchObject({ code: "DATA_INVALID", problems: { length: 2 } });
});

test("references belong to MT-Bench's own questions; others bring theirs", async () => {
  const task = await mtBench();
  const { form } = conversationForm(task);
  const { samples } = await answered({ greedy: true });
  await expect(judgedQuestions(task, form, samples)).rejects.toThrow(
    /--judge-references.*no reference answers for question 101/,
  );
  const path = join(directory, "references.jsonl");
  writeFileSync(path, '{"question_id": 101, "choices": [{"index": 0, "turns": ["You.", "Nobody."]}]}\n');
  const judged = await judgedQuestions(task, form, samples, path);
  expect(judged.map(({ question }) => question.references)).toEqual([undefined, ["You.", "Nobody."], undefined]);
});
