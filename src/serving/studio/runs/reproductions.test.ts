/** @file Reports of `milora reproduce` as the studio's pages get them. */
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { reproduce } from "../../../evaluation/index.ts";
import { scratch } from "../../http/testing.ts";
import { RunApps } from "./testing.ts";

const { directory, remove } = scratch();
const apps = new RunApps();

afterAll(async () => {
  await apps[Symbol.asyncDispose]();
  remove();
});

const results = "docs/results/results.json";

test("are listed and told as they were written; the results of other commands are not", async () => {
  const folder = join(directory, "reproductions");
  for (const name of ["small", "demo", "damaged"]) mkdirSync(join(folder, name), { recursive: true });
  cpSync(results, join(folder, "small/results.json"));
  writeFileSync(join(folder, "demo/results.json"), '{"seconds":3}');
  writeFileSync(join(folder, "damaged/results.json"), readFileSync(results, "utf8").slice(0, -100));
  const get = await apps.serve(folder);
  const { reproductions } = (await get("/reproductions")).body;
  const written = JSON.parse(readFileSync(results, "utf8"));
  expect(reproductions).toMatchObject([{ id: "small", preset: "small", model: "tiny-llama", made: written.made }]);
  expect(reproductions[0].studies[0]).toEqual({
    ...{ name: "table1", title: written.studies[0].title },
    ...{ cells: written.studies[0].cells, done: written.studies[0].done },
  });
  const { body } = await get("/reproductions/small");
  expect(body.studies.map(({ tables }: { tables: unknown }) => tables)).toEqual(
    written.studies.map(({ tables }: { tables: unknown }) => tables),
  );
  expect(body.differences).toEqual(written.differences);
  expect((await get("/reproductions/demo")).status).toBe(404);
});

test("one that was made just now", async () => {
  const output = join(directory, "fresh/out");
  const report = await reproduce(["table6", "fig2"], {
    output,
    preset: "smoke",
    changes: { counted: ["authors"], routed: [] },
  });
  writeFileSync(join(output, "results.json"), JSON.stringify(report));
  const get = await apps.serve(join(directory, "fresh"));
  expect((await get("/reproductions/out")).body).toMatchObject(JSON.parse(JSON.stringify({ id: "out", ...report })));
});
