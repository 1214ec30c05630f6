/** @file Holds docs/api.md to the declarations; `npx vitest run test/package/api.test.ts -u` writes it anew. */
import { join } from "node:path";
import { expect, test } from "vitest";
import * as library from "../../src/index.ts";
import { apiPage, entriesOf } from "./api.ts";

const root = join(import.meta.dirname, "../..");
const found = entriesOf(join(root, "dist"), join(root, "dist/index.d.ts"));

test("docs/api.md is what the declarations say", async () => {
  await expect(apiPage(found)).toMatchFileSnapshot(join(root, "docs/api.md"));
});

test("it has every value that the package exports", () => {
  const values = found.exported.filter(({ kind }) => kind !== "type").map(({ name }) => name);
  expect(values.sort()).toEqual(Object.keys(library).sort());
  const inner = found.exported.find(({ name }) => name === "graph")!.entries.filter(({ kind }) => kind !== "type");
  expect(inner.map(({ name }) => name).sort()).toEqual(Object.keys(library.graph).sort());
});

test("what is only named is no value", () => {
  expect(found.named.length).toBeGreaterThan(20);
  expect(
    found.named.filter(({ name }) => name in library && !found.exported.some((entry) => entry.name === name)),
  ).toEqual([]);
});

test("every class, function and value says what it is for", () => {
  const silent = found.exported.filter(({ kind, comment }) => kind !== "type" && comment === "");
  expect(silent.map(({ name }) => name)).toEqual([]);
});
