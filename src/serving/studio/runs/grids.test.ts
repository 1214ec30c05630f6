/** @file Grids of folders as the studio's pages get them: whole, half done, damaged, and what is none. */
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { gridSchema, writeIndex, writeRecord } from "../../../evaluation/index.ts";
import { scratch } from "../../http/testing.ts";
import type { GridDetail, GridSummary } from "../types.ts";
import { RunApps } from "./testing.ts";

const { directory, remove } = scratch();
const apps = new RunApps();
afterAll(async () => {
  await apps[Symbol.asyncDispose]();
  remove();
});

const record = (id: string, value: object) => ({
  ...{ id, kind: "x", label: id, value, seconds: 1, amount: 1, machine: "m", made: "now" },
});
const accuracy = (value: number) => ({ metric: "accuracy", value, interval: [0, 1], rows: 2, scores: [1, 0] });

function writeGrid(path: string): void {
  const evaluate = [{ data: "test.jsonl" }, { data: "p.jsonl", metric: "perplexity" }];
  const train = { model: "assets/tiny-llama", data: { train: "rows.jsonl" } };
  const grid = gridSchema.parse({ train, axes: { method: ["lora", "milora"] }, evaluate });
  mkdirSync(path, { recursive: true });
  const points = ["a", "b"].map((id, i) => ({
    ...{ settings: { method: ["lora", "milora"][i] }, run: `run-${id}`, cells: [`${id}1`, `${id}2`] },
  }));
  writeIndex(path, { grid, points });
}

test("are listed and told as far as they are; what is no grid, is damaged or leads elsewhere, is not", async () => {
  const folder = join(directory, "runs");
  const grid = join(folder, "deep/grid");
  writeGrid(grid);
  mkdirSync(join(folder, "other"));
  writeFileSync(join(folder, "other/grid.json"), '{"train":{},"evaluate":[]}');
  const get = await apps.serve(folder);
  const list = async () => (await get("/grids")).body.grids as GridSummary[];
  const detail = async () => (await get(`/grids/${encodeURIComponent("deep/grid")}`)).body as GridDetail;
  expect(await list()).toMatchObject([
    {
      ...{ id: "deep/grid", directory: grid, axes: ["method"], evaluations: ["test.jsonl", "p.jsonl perplexity"] },
      ...{ trainings: { total: 2, done: 0 }, cells: { total: 4, done: 0 } },
    },
  ]);
  expect(await detail()).toMatchObject({ read: 0, points: [{ trained: false, run: null }, { trained: false }] });

  writeRecord(grid, record("run-a", { steps: 2, devPerplexity: 7.25 }));
  writeRecord(grid, record("a1", accuracy(0.5)));
  expect((await list())[0]).toMatchObject({ trainings: { total: 2, done: 1 }, cells: { total: 4, done: 1 } });
  const half = await detail();
  expect(half.columns.map(({ title }) => title)).toEqual(["method", "test.jsonl, accuracy %", "p.jsonl perplexity"]);
  expect(half.points[0]).toEqual({ values: { method: "lora", "test.jsonl": 50 }, run: null, trained: true, devPerplexity: 7.25 }); // biome-ignore format: one line
  expect(half.points[1]).toMatchObject({ values: { method: "milora" }, trained: false, devPerplexity: null });

  // What is finished later is there at the next look; a file that is no record, or no file, tells nothing.
  writeRecord(grid, record("b2", { ...accuracy(3.5), metric: "perplexity", interval: null }));
  writeFileSync(join(grid, "cells/a2.json"), '{"id":"a2","value":{"value":"x"}}');
  writeFileSync(join(directory, "secret.json"), readFileSync(join(grid, "cells/a1.json")));
  symlinkSync(join(directory, "secret.json"), join(grid, "cells/b1.json"));
  const failures = [{ label: "milora → test.jsonl", code: "FILE_UNREADABLE", reason: "no such file" }];
  writeFileSync(join(grid, "results.json"), JSON.stringify({ failures }));
  const later = await detail();
  expect(later.points.map(({ values }) => values)).toEqual([
    { method: "lora", "test.jsonl": 50 },
    { method: "milora", "p.jsonl perplexity": 3.5 },
  ]);
  expect(later).toMatchObject({ read: 3, failures });
  rmSync(join(grid, "cells/b2.json"));
  expect((await detail()).points[1]!.values).toEqual({ method: "milora" });

  expect(await get("/grids/other")).toMatchObject({ status: 404, body: { error: { code: "GRID_NOT_FOUND" } } });
  expect(await get(`/grids/${encodeURIComponent("../runs/deep/grid")}`)).toMatchObject({ status: 404 });
});
