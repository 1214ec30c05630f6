/** @file Data files: the row forms, JSON and JSONL, and errors that name every bad row. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { InputError } from "../base/index.ts";
import { loadRows, type RowOptions, rowsOfText } from "./rows.ts";

const directory = mkdtempSync(join(tmpdir(), "milora-rows-"));
afterAll(() => rmSync(directory, { recursive: true }));

function file(name: string, content: string): string {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
}

async function errorOf(path: string, options: RowOptions = {}): Promise<InputError> {
  try {
    await loadRows(path, options);
  } catch (error) {
    if (error instanceof InputError) return error;
    throw error;
  }
  throw new Error("expected an InputError");
}

const rows = [
  { instruction: "add", input: "1 1", output: "2", answer: "2" },
  { instruction: "say hi", output: "hi" },
  { prompt: "a", completion: "b" },
  { prompt: "a", response: "b" },
  {
    messages: [
      { role: "user", content: "q" },
      { role: "assistant", content: "a" },
      { role: "user", content: "thanks" },
    ],
  },
];
const expected = [
  { number: 1, form: "instruction", instruction: "add", input: "1 1", output: "2", answer: "2" },
  { number: 2, form: "instruction", instruction: "say hi", input: "", output: "hi" },
  { number: 3, form: "completion", prompt: "a", response: "b" },
  { number: 4, form: "completion", prompt: "a", response: "b" },
  { number: 5, form: "messages", messages: rows[4]!.messages!.slice(0, 2) },
];

describe("loadRows", () => {
  it("reads every form from a JSON array", async () => {
    expect(await loadRows(file("a.json", JSON.stringify(rows)))).toMatchObject(expected);
  });

  it("reads the same from JSONL, with blank lines, a byte-order mark and CRLF", async () => {
    const content = `\uFEFF${rows.map((row) => JSON.stringify(row)).join("\r\n")}\r\n\r\n`;
    expect(await loadRows(file("a.jsonl", content))).toMatchObject(expected);
  });

  it("numbers JSONL rows by line", async () => {
    const path = file("b.jsonl", `\n\n{"prompt":"a","completion":"b"}\n`);
    expect((await loadRows(path))[0]?.number).toBe(3);
  });

  it("names all bad rows and what each lacks", async () => {
    const bad = [
      { instruction: "x" },
      { output: "y" },
      { prompt: "p" },
      { messages: [{ role: "boss", content: "" }] },
      7,
    ];
    const error = await errorOf(file("bad.json", JSON.stringify([rows[0], ...bad, { instruction: 1, output: null }])));
    expect(error.message).toContain("6 bad rows of 7");
    expect(error.problems).toEqual([
      'row 2: missing "output"',
      'row 3: needs "instruction", "prompt" or "messages", has "output"',
      'row 4: missing "completion" (or "response")',
      "row 5: messages[0].role is not one of system, user, assistant, tool",
      "row 6: a number, not an object",
      'row 7: "instruction" is a number, not text, "output" is null, not text',
    ]);
  });

  it("shows twenty bad rows and counts the others", async () => {
    const error = await errorOf(file("many.jsonl", "{}\n".repeat(15) + "{nonsense\n".repeat(10)));
    expect(error.problems).toHaveLength(21);
    expect(error.problems[14]).toBe('row 15: needs "instruction", "prompt" or "messages", has nothing');
    expect(error.problems[15]).toMatch(/^row 16: not valid JSON/);
    expect(error.problems.at(-1)).toBe("and 5 more");
  });

  it("refuses conversations without an answer or a question, empty files and missing ones", async () => {
    const lone = { messages: [{ role: "assistant", content: "a" }] };
    const open = { messages: [{ role: "user", content: "a" }] };
    expect((await errorOf(file("turns.json", JSON.stringify([lone, open])))).problems).toEqual([
      "row 1: no message before the assistant's",
      "row 2: no assistant message",
    ]);
    expect((await errorOf(file("empty.jsonl", "\n"))).message).toContain("has no rows");
    expect((await errorOf(join(directory, "none.json"))).message).toContain("no such file");
    expect((await errorOf(file("cut.json", '[{"prompt":'))).message).toContain("not valid JSON");
  });
});

describe("rowsOfText", () => {
  it("reads what a file of that name would hold", async () => {
    expect(await rowsOfText(JSON.stringify(rows), "data.json")).toMatchObject(expected);
    const csv = 'prompt,completion\n"a, b",c\n';
    expect(await rowsOfText(csv, "data.csv")).toMatchObject([{ number: 1, prompt: "a, b", response: "c" }]);
    await expect(rowsOfText(csv, "data.jsonl")).rejects.toThrow(/data.jsonl[\s\S]*row 1: not valid JSON/);
  });

  it("takes prompts without answers only where they are all that is wanted", async () => {
    const text = '{"prompt":"a"}\n{"instruction":"b","output":"c"}\n{"instruction":"d"}';
    const found = await rowsOfText(text, "data.jsonl", { promptsOnly: true });
    expect(found).toMatchObject([{ prompt: "a", response: "" }, { output: "c" }, { instruction: "d", output: "" }]);
    await expect(rowsOfText(text, "data.jsonl")).rejects.toThrow(
      /row 1: missing "completion"[\s\S]*row 3: missing "output"/,
    );
    const other = rowsOfText('{"question":"q"}', "data.jsonl", { promptsOnly: true });
    await expect(other).rejects.toThrow(/has "question"$/);
  });

  it("looks at no more than the first rows", async () => {
    const text = '{"prompt":"a","completion":"b"}\nbroken';
    expect(await rowsOfText(text, "data.jsonl", { limit: 1 })).toHaveLength(1);
    await expect(rowsOfText(text, "data.jsonl", { limit: 2 })).rejects.toThrow(/1 bad rows of 2/);
  });
});
