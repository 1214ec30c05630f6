/** @file Outputs that are kept are found again; what is none of them any more is measured anew, never taken for one. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { type RowOutput, RowStore } from "./store.ts";

function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), "milora-rows-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const choice: RowOutput = { kind: "choice", logLikelihoods: [-1.5, -2], greedy: [true, false] };

test("lines that are no outputs count as not there", () => {
  const path = join(temporary(), "rows.jsonl");
  const damaged: unknown[] = [
    { ...choice, logLikelihoods: [-1.5] },
    { ...choice, logLikelihoods: [-1.5, null] },
    { ...choice, greedy: "tf" },
    { kind: "choice" },
    { kind: "generate", text: "x" },
    { kind: "generate", text: "x", tokens: -1 },
    { kind: "generate", text: ["x"], tokens: 1 },
    { kind: "else" },
    null,
  ];
  const lines = damaged.map((output, i) => JSON.stringify({ key: `k${i}`, output }));
  const good = JSON.stringify({ task: "t", key: "good", output: choice });
  writeFileSync(path, [...lines, "null", "[", "", good, '{"key": "half'].join("\n"));
  const store = new RowStore(path);
  expect(damaged.map((_, i) => store.get(`k${i}`))).toEqual(damaged.map(() => undefined));
  expect(store.get("good")).toEqual(choice);
  store.put([{ key: "more", about: {}, output: { kind: "generate", text: "a", tokens: 1 } }]);
  expect(new RowStore(path).get("more")).toEqual({ kind: "generate", text: "a", tokens: 1 });
  expect(readFileSync(path, "utf8")).toMatch(/half\n\{"key":"more".*\n$/);
});

test("a file that cannot be read or written is told as input", () => {
  const directory = temporary();
  expect(() => new RowStore(directory)).toThrow(expect.objectContaining({ code: "FILE_UNREADABLE" }) as Error);
  writeFileSync(join(directory, "file"), "");
  const store = new RowStore(join(directory, "file", "rows.jsonl"));
  const row = { key: "k", about: {}, output: choice };
  expect(() => store.put([row])).toThrow(expect.objectContaining({ code: "OUTPUT_UNWRITABLE" }) as Error);
});
