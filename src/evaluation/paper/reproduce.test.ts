/** @file Tests of reproducing in one call. */
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { reproduce } from "./reproduce.ts";
import type { RunEvent } from "./run.ts";

const directory = mkdtempSync(join(tmpdir(), "milora-reproduce-"));
afterAll(() => rmSync(directory, { recursive: true }));

test("gives the report, and the second time from what is there", async () => {
  const output = join(directory, "out");
  const events: RunEvent["type"][] = [];
  const once = () =>
    reproduce(["table6"], {
      output,
      preset: "smoke",
      changes: { counted: ["authors"] },
      onEvent: ({ type }) => events.push(type),
    });
  const report = await once();
  expect(report).toMatchObject({ preset: "smoke", failures: [] });
  const [table] = report.studies.map(({ tables }) => tables[0]!);
  expect(table!.rows).toMatchObject([{ train: 1287, dev: 150, test: 225 }]);
  expect(events).toContain("measured");

  const cells = readdirSync(join(output, "cells")).map((name) => join(output, "cells", name));
  const written = cells.map((path) => statSync(path).mtimeMs);
  events.length = 0;
  const again = await once();
  expect(again.studies).toEqual(report.studies);
  expect(events).toEqual([]);
  expect(cells.map((path) => statSync(path).mtimeMs)).toEqual(written);
});

test("what fails is in the report; unknown names are refused before anything is made", async () => {
  const output = join(directory, "failing");
  const changes = { dataDirectory: directory, counted: ["aqua"] };
  const { failures } = await reproduce(["table6"], { output, preset: "smoke", changes });
  expect(failures).toMatchObject([{ code: "FILE_UNREADABLE" }]);
  await expect(reproduce(["table66"], { output: join(directory, "no") })).rejects.toThrow(/did you mean "table6"/);
  expect(readdirSync(directory)).not.toContain("no");
});
