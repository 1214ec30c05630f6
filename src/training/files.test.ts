/** @file Data files of every format, packed and unpacked, several at once, and columns under other names. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { parquetWriteBuffer } from "hyparquet-writer";
import { afterAll, describe, expect, it } from "vitest";
import { InputError } from "../base/index.ts";
import { isDataFile, readRecords } from "./files.ts";
import { loadRows, type RowOptions } from "./rows.ts";
import { filesOf } from "./sources.ts";

const directory = mkdtempSync(join(tmpdir(), "milora-files-"));
afterAll(() => rmSync(directory, { recursive: true }));

function file(name: string, content: string | Uint8Array): string {
  const path = join(directory, name);
  mkdirSync(join(path, ".."), { recursive: true });
  writeFileSync(path, content);
  return path;
}

async function problemsOf(source: string, options: RowOptions = {}): Promise<readonly string[]> {
  const error: unknown = await loadRows(source, options).catch((reason: unknown) => reason);
  if (error instanceof InputError) return error.problems;
  throw new Error("expected an InputError");
}

const records = [
  { instruction: 'say "hi", twice', input: "a\r\nb", output: "hi hi\n" },
  { instruction: "add", input: "", output: "é 😀" },
];
const quoted = (text: string): string => `"${text.replaceAll('"', '""')}"`;
const table = (delimiter: string): string =>
  [["instruction", "input", "output"], ...records.map((row) => Object.values(row))]
    .map((row) => row.map(quoted).join(delimiter))
    .join("\r\n");
const parquet = (): Uint8Array =>
  new Uint8Array(
    parquetWriteBuffer({
      columnData: (["instruction", "input", "output"] as const).map((name) => ({
        name,
        data: records.map((row) => row[name]),
        type: "STRING" as const,
      })),
    }),
  );

describe("readRecords", () => {
  const contents: Record<string, string | Uint8Array> = {
    "rows.json": JSON.stringify(records),
    "rows.jsonl": records.map((row) => JSON.stringify(row)).join("\n"),
    "rows.csv": `\uFEFF${table(",")}\r\n`,
    "rows.tsv": table("\t"),
    "rows.parquet": parquet(),
  };
  for (const [name, content] of Object.entries(contents)) {
    it(`reads ${name}, also gzipped and whatever that is called`, async () => {
      const expected = records.map((value, i) => ({ number: i + 1, value }));
      expect(await readRecords(file(name, content))).toEqual(expected);
      expect(await readRecords(file(`${name}.gz`, gzipSync(content)))).toEqual(expected);
      expect(await readRecords(file(`packed/${name}`, gzipSync(content)))).toEqual(expected);
    });
  }

  it("gives the numbers, lists and integers of parquet as JSON has them", async () => {
    const bytes = parquetWriteBuffer({
      columnData: [
        { name: "n", data: [1n, 2n ** 60n], type: "INT64" },
        { name: "x", data: [0.5, 1.5], type: "DOUBLE" },
        { name: "j", data: [{ a: [1] }, null], type: "JSON" },
      ],
    });
    expect(await readRecords(file("typed.parquet", new Uint8Array(bytes)))).toEqual([
      { number: 1, value: { n: 1, x: 0.5, j: { a: [1] } } },
      { number: 2, value: { n: "1152921504606846976", x: 1.5, j: null } },
    ]);
  });

  it("names the rows of a table with too few or too many fields, and refuses what is no table", async () => {
    const path = file("ragged.csv", "prompt,completion\na,b\n\na\na,b,c\n");
    expect(await problemsOf(path)).toEqual(["row 2: has 1 fields, the header 2", "row 3: has 3 fields, the header 2"]);
    expect((await problemsOf(file("open.csv", 'prompt,completion\n"a,b\n')))[0]).toMatch(/^not valid CSV \(/);
    expect(await problemsOf(file("twice.csv", "a,a\n1,2\n"))).toEqual(['the header has "a" twice']);
    expect(await problemsOf(file("header.csv", "prompt,completion\n"))).toEqual(["has no rows"]);
  });

  it("refuses damaged files in one line", async () => {
    expect((await problemsOf(file("cut.jsonl.gz", gzipSync("{}".repeat(99)).subarray(0, 20))))[0]).toMatch(
      /^damaged gzip/,
    );
    expect((await problemsOf(file("cut.parquet", parquet().subarray(0, 60))))[0]).toMatch(
      /^not a readable parquet file/,
    );
    expect(await problemsOf(file("text.parquet", "hello"))).toEqual(["is no parquet file"]);
  });
});

describe("filesOf", () => {
  const row = (text: string): string => JSON.stringify({ prompt: text, completion: "x" });
  const names = ["set/train-1.jsonl", "set/train-0.jsonl", "set/dev.jsonl", "set/notes.txt", "set/deep/train-9.jsonl"];
  const paths = names.map((name) => file(name, `${row(name)}\n`));
  const below = async (source: string): Promise<string[]> =>
    (await filesOf(join(directory, source))).map((path) => path.slice(directory.length + 1));

  it("takes the data files of a directory by name, and the files of a pattern", async () => {
    expect(await below("set")).toEqual(["set/dev.jsonl", "set/train-0.jsonl", "set/train-1.jsonl"]);
    expect(await below("set/train-*.jsonl")).toEqual(["set/train-0.jsonl", "set/train-1.jsonl"]);
    expect(await below("set/train-?.jsonl")).toEqual(["set/train-0.jsonl", "set/train-1.jsonl"]);
    expect(await below("set/{dev,train-1}.jsonl")).toEqual(["set/dev.jsonl", "set/train-1.jsonl"]);
    expect(await below("set/**/train-*.jsonl")).toEqual([
      "set/deep/train-9.jsonl",
      "set/train-0.jsonl",
      "set/train-1.jsonl",
    ]);
    expect(await below("*/dev.jsonl")).toEqual(["set/dev.jsonl"]);
    expect(await below("*/deep/*")).toEqual(["set/deep/train-9.jsonl"]);
    expect(isDataFile(".hidden.json")).toBe(false);
  });

  it("prefers a file whose name only looks like a pattern", async () => {
    const path = file("odd/what?{a,b}*.jsonl", `${row("odd")}\n`);
    file("odd/whatXa.jsonl", `${row("other")}\n`);
    expect(await filesOf(path)).toEqual([path]);
  });

  it("says which file each row is of where there are several", async () => {
    const rows = await loadRows(join(directory, "set/train-*.jsonl"));
    expect(rows.map(({ number, file: from }) => [number, from])).toEqual([
      [1, paths[1]],
      [1, paths[0]],
    ]);
    const bad = file("some/b.jsonl", '{"prompt":1}\n');
    file("some/a.jsonl", `${row("a")}\n`);
    expect(await problemsOf(join(directory, "some"))).toEqual([
      `${bad} row 1: "prompt" is a number, not text, missing "completion" (or "response")`,
    ]);
  });

  it("refuses directories and patterns without files", async () => {
    mkdirSync(join(directory, "empty"));
    await expect(filesOf(join(directory, "empty"))).rejects.toThrow(/the directory has no file that ends in/);
    await expect(filesOf(join(directory, "no/*.jsonl"))).rejects.toThrow(/no file matches this pattern/);
    await expect(filesOf(join(directory, "x{a,*.jsonl"))).rejects.toThrow(/is not closed/);
  });
});

describe("columns", () => {
  it("takes fields from other columns, also from inside of them, and makes numbers text", async () => {
    const path = file(
      "mapped.jsonl",
      [
        { question: "1 + 1?", answers: { text: ["two", "2"] }, label: 2, prompt: "not this one" },
        { question: "again?", answers: { text: ["yes"] }, label: 0, "answers.text.0": "exactly" },
      ]
        .map((row) => JSON.stringify(row))
        .join("\n"),
    );
    const columns = { instruction: "question", output: "answers.text.0", answer: "label" };
    expect(await loadRows(path, { columns })).toMatchObject([
      { form: "instruction", instruction: "1 + 1?", input: "", output: "two", answer: "2" },
      { form: "instruction", instruction: "again?", input: "", output: "exactly", answer: "0" },
    ]);
  });

  it("names the columns that rows lack", async () => {
    const path = file("lacking.jsonl", '{"q":"a","a":"b"}\n{"q":"a"}\n{"a":"b"}\n{"q":["x"],"a":"b"}\n');
    expect(await problemsOf(path, { columns: { instruction: "q", output: "a" } })).toEqual([
      'row 2: missing "a" (for "output")',
      'row 3: missing "q" (for "instruction")',
      'row 4: "instruction" is a list, not text',
    ]);
  });
});
