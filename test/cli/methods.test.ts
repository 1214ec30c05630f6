/** @file Holds the documents to the table of methods: each is named in the README and described in docs/formats.md. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { methods } from "../../src/methods/index.ts";
import { milora, root } from "./milora.ts";

const read = (file: string): string => readFileSync(join(root, file), "utf8");

test("README.md lists the methods that there are", () => {
  const line = /^Methods: (.+)$/m.exec(read("README.md"))?.[1] ?? "";
  const listed = [...line.matchAll(/`([^`]+)`/g)].map((match) => match[1]!);
  expect(listed.sort()).toEqual([...methods.keys()].sort());
});

test("docs/formats.md has a row for each method", () => {
  const rows = read("docs/formats.md").match(/^\| [^|]*`[^|]*\| `[A-Z0-9_]+`.*$/gm) ?? [];
  for (const { name, peftType } of methods.values()) {
    const row = rows.find((text) => text.split("|")[1]!.includes(`\`${name}\``));
    expect(row, `no row for ${name}`).toBeDefined();
    expect(row!.split("|")[2]).toContain(`\`${peftType}\``);
  }
});

test("milora methods counts them all, beside the paper's figures on its backbone only", async () => {
  const { stdout } = await milora(["methods", "--json"]);
  const { shape, methods: rows } = JSON.parse(stdout) as { shape: string; methods: Record<string, unknown>[] };
  expect(shape).toBe("llama-2-7b");
  expect(rows.map(({ method }) => method)).toEqual([...methods.keys()]);
  expect(rows.find(({ method }) => method === "lora")).toMatchObject({
    peft_type: "LORA",
    tunable: { parts: { lora: 79_953_920 }, total: 79_953_920 },
    paper: { tunable: 80, activated: 80 },
  });
  const text = await milora(["methods", "--shape", "smollm2-135m"]);
  expect(text.stdout).toMatch(/^lora +9,768,960 /m);
  expect(text.stdout).not.toContain("paper, M");
});
