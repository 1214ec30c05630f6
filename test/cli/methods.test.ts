/** @file Holds the documents to the table of methods: each is named in the README and described in docs/formats.md. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { methods } from "../../src/methods/index.ts";
import { root } from "./milora.ts";

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
