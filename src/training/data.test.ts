/** @file From rows to examples: templates, the boundary between prompt and response, what is cut, dropped and split off. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Tokenizer } from "../models/index.ts";
import { countRows, examplesDigest, loadData, splitRows, toExample } from "./data.ts";
import { renderPrompt, renderRow } from "./render.ts";
import { parseRow, type Row } from "./rows.ts";

const root = join(import.meta.dirname, "../..");
const tiny = Tokenizer.load(join(root, "assets/tiny-llama"));
const sentencePiece = Tokenizer.load(join(root, "test/fixtures/sentencepiece"));
const directory = mkdtempSync(join(tmpdir(), "milora-data-"));
afterAll(() => rmSync(directory, { recursive: true }));

function row(value: unknown): Row {
  const { row: parsed, problems } = parseRow(value, 1);
  if (!parsed) throw new Error(problems.join());
  return parsed;
}

function file(name: string, rows: readonly unknown[]): string {
  const path = join(directory, name);
  writeFileSync(path, JSON.stringify(rows));
  return path;
}

const withSpecials = { skipSpecialTokens: false };

describe("renderRow", () => {
  it("writes Alpaca's two prompts", () => {
    const plain = renderPrompt(row({ instruction: "Add.", output: "2" }), tiny, { template: "alpaca" });
    expect(tiny.decode(plain, withSpecials)).toBe(
      "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n",
    );
    const both = renderPrompt(row({ instruction: "Add.", input: "1 1", output: "2" }), tiny, { template: "alpaca" });
    expect(tiny.decode(both, withSpecials)).toBe(
      "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n",
    );
  });

  const cases = [
    { prompt: "Say:", response: " hello there" },
    { prompt: "Say:", response: "hello there" },
    { prompt: "Say:\n", response: "hello there" },
    { prompt: "Say:\n", response: "\nhello there" },
    { prompt: "Say ", response: "hello" },
    { prompt: "hel", response: "lo" },
    { prompt: "1", response: "23 4" },
    { prompt: "a\n", response: "\n\n  b é 😀" },
  ];
  for (const [name, tokenizer] of [
    ["byte-level BPE", tiny],
    ["SentencePiece", sentencePiece],
  ] as const) {
    it(`gives ids that inference feeds and that read as prompt + response (${name})`, () => {
      for (const value of cases) {
        const one = row(value);
        const { prompt, response } = renderRow(one, tokenizer, { template: "none" });
        expect(prompt).toEqual(tokenizer.encode(value.prompt));
        expect(prompt).toEqual(renderPrompt(one, tokenizer, { template: "none" }));
        expect(response.at(-1)).toBe(tokenizer.eosTokenIds[0]);
        expect(tokenizer.decode([...prompt, ...response])).toBe(value.prompt + value.response);
      }
    });
  }

  it("uses the chat template, and learns the template's own end of the turn", () => {
    const turns = [
      { role: "user", content: "hi" },
      { role: "assistant", content: "hello" },
      { role: "user", content: "bye" },
      { role: "assistant", content: "see you" },
    ];
    const { prompt, response } = renderRow(row({ messages: turns }), tiny, { template: "chat" });
    expect(tiny.decode(prompt, withSpecials)).toBe(
      "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n",
    );
    expect(tiny.decode(response, withSpecials)).toBe("see you<|im_end|><|endoftext|>");
    const instruction = renderRow(row({ instruction: "bye", input: "now", output: "ok" }), tiny, { template: "chat" });
    expect(tiny.decode(instruction.prompt, withSpecials)).toBe(
      "<|im_start|>user\nbye\n\nnow<|im_end|>\n<|im_start|>assistant\n",
    );
  });

  it("shows a single question of a conversation in any template, and refuses longer ones", () => {
    const messages = [
      { role: "user", content: "Add." },
      { role: "assistant", content: "2" },
    ];
    const asRow = renderRow(row({ messages }), tiny, { template: "alpaca" });
    expect(asRow).toEqual(renderRow(row({ instruction: "Add.", output: "2" }), tiny, { template: "alpaca" }));
    const long = row({ messages: [...messages, ...messages] });
    expect(() => renderRow(long, tiny, { template: "alpaca" })).toThrow(
      /row 1: is a conversation of 4 messages.*use "chat"/,
    );
  });
});

describe("toExample", () => {
  it("keeps what fits, cuts the end of the response, and never leaves an example without supervised tokens", () => {
    expect(toExample([1, 2], [3, 4], 4)).toEqual({ tokens: Int32Array.of(1, 2, 3, 4), promptLength: 2 });
    expect(toExample([1, 2], [3, 4], 3)).toEqual({ tokens: Int32Array.of(1, 2, 3), promptLength: 2 });
    expect(toExample([1, 2], [3, 4], 2)).toBeUndefined();
    expect(toExample([], [3], 9)).toBeUndefined();
  });
});

describe("splitRows", () => {
  it("takes a seeded share and keeps the order of both parts", () => {
    const rows = Array.from({ length: 40 }, (_, i) => i);
    const { train, dev } = splitRows(rows, 0.1, 3);
    expect([...train, ...dev].sort((a, b) => a - b)).toEqual(rows);
    expect(dev).toHaveLength(4);
    expect(dev).toEqual(dev.toSorted((a, b) => a - b));
    expect(splitRows(rows, 0.1, 3)).toEqual({ train, dev });
    expect(splitRows(rows, 0.1, 4).dev).not.toEqual(dev);
    expect(splitRows(rows, 0, 3)).toEqual({ train: rows, dev: [] });
    expect(() => splitRows([1], 0.5, 3)).toThrow(/leaves none to train on/);
  });
});

describe("loadData", () => {
  const base = { template: "none", maxLength: 20, seed: 0 } as const;
  const good = { prompt: "What?", response: "That." };

  it("counts what it leaves out or cuts", async () => {
    const train = file("train.json", [
      good,
      { instruction: "What?", output: "That." },
      { prompt: "Empty", response: " \n" },
      { prompt: "word ".repeat(30), response: "lost" },
      { prompt: "a", response: "word ".repeat(30) },
    ]);
    const dev = file("dev.json", [good, { prompt: "Other?", response: "Yes." }]);
    const { train: examples, dev: devExamples, warnings } = await loadData(tiny, { ...base, train, dev });
    expect(examples).toHaveLength(2);
    expect(examples[1]!.tokens).toHaveLength(20);
    expect(devExamples).toHaveLength(2);
    expect(warnings).toEqual([
      `${train}: 1 row of 5 left out, empty output`,
      `${train}: 1 row of 5 left out, the same as an earlier row`,
      `${train}: 1 row of 5 left out, the prompt alone has 20 tokens or more`,
      `${train}: 1 row of 5 cut at 20 tokens: the end of the response is not learned`,
      `${dev}: 1 of 2 rows are training rows, too; dev perplexity will flatter`,
    ]);
  });

  it("refuses data of which nothing is left", async () => {
    const train = file("long.json", [{ prompt: "word ".repeat(30), response: "lost" }]);
    await expect(loadData(tiny, { ...base, train, dev: 0 })).rejects.toThrow(/no row is left to learn from/);
    const empty = file("nothing.json", [{ prompt: "x", response: "" }]);
    await expect(loadData(tiny, { ...base, train: empty, dev: 0 })).rejects.toThrow(/every row has an empty output/);
  });

  it("has a digest that sees tokens and boundaries", async () => {
    const first = toExample([1, 2], [3], 9)!;
    const second = toExample([1], [2, 3], 9)!;
    expect(examplesDigest([first], [])).not.toBe(examplesDigest([second], []));
    expect(examplesDigest([first], [])).not.toBe(examplesDigest([], [first]));
    const train = file("a.json", [good, { prompt: "b", response: "c" }]);
    const { digest } = await loadData(tiny, { ...base, train, dev: 0 });
    expect((await loadData(tiny, { ...base, train, dev: 0 })).digest).toBe(digest);
  });

  it("stops when asked to", async () => {
    const train = file(
      "many.json",
      Array.from({ length: 200 }, (_, i) => ({ prompt: `${i}`, response: "x" })),
    );
    const signal = AbortSignal.abort(new Error("stop"));
    await expect(loadData(tiny, { ...base, train, dev: 0, signal })).rejects.toThrow("stop");
  });
});

describe("countRows", () => {
  it("counts the rows of a file, a pattern, a directory, and lists of them", async () => {
    const some = (n: number) => Array.from({ length: n }, (_, i) => ({ q: `${i % 2}`, answer: "yes" })); // repeated, too
    mkdirSync(join(directory, "parts"));
    const one = file("parts/one.json", some(3));
    file("parts/two.json", some(4));
    const plain = file("plain.json", [{ prompt: "a", response: "b" }]);
    const options = { template: "alpaca", columns: { prompt: "q", response: "answer" } };
    const mapped = { path: one, columns: options.columns };
    expect(await countRows({ ...options, train: one })).toBe(3);
    expect(await countRows({ ...options, train: join(directory, "parts/*.json") })).toBe(7);
    expect(await countRows({ ...options, train: join(directory, "parts") })).toBe(7);
    expect(await countRows({ ...options, train: [{ path: one, weight: 2 }] })).toBe(3);
    expect(await countRows({ template: "alpaca", train: [mapped, plain] })).toBe(4);
    const free = "{{ q }}?";
    const rows = [{ q: "1", answer: "no", output: "x" }];
    expect(await countRows({ template: free, train: [file("free.json", rows)] })).toBe(1);
    await expect(countRows({ ...options, train: [one, "none.json"] })).rejects.toThrow(/none\.json/);
  });
});
