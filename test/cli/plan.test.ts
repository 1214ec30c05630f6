/** @file `milora bench` and `milora plan`: a profile of the bundled model, traffic in YAML, and what the documents say of both. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { parse } from "yaml";
import type { z } from "zod";
import { profileSchema, trafficSchema } from "../../src/serving/index.ts";
import { milora, root, temporary, tiny } from "./milora.ts";

const scaling = readFileSync(join(root, "docs/scaling.md"), "utf8");
const examples = [...scaling.matchAll(/^```yaml\n(.*?)^```/gms)].map((match) => match[1]!);

test("a profile is measured, planned with, and sized for", { timeout: 180_000 }, async () => {
  const directory = temporary();
  const profile = join(directory, "profile.json");
  const quick = ["--quick", "--max-batch", "2", "--adapter-method", "milora", "--rank", "4"];
  const measured = await milora(["bench", "--model", tiny, ...quick, "--output", profile, "--json"]);
  expect(measured, measured.stderr).toMatchObject({ code: 0 });
  const written = profileSchema.parse(JSON.parse(readFileSync(profile, "utf8")));
  expect(JSON.parse(measured.stdout)).toEqual({ output: profile, ...written });

  const traffic = join(directory, "traffic.yaml");
  writeFileSync(traffic, "tenants: 50\nrequestsPerSecond: 1\nprompt: 8\nanswer: {min: 1, max: 3}\nseconds: 20\n");
  const files = ["--profile", profile, "--traffic", traffic];
  const planned = await milora(["plan", ...files, "--replicas", "2", "--set", "requestsPerSecond=2", "--json"]);
  expect(planned, planned.stderr).toMatchObject({ code: 0 });
  const { forecasts, traffic: asked } = JSON.parse(planned.stdout);
  expect(asked.requestsPerSecond).toBe(2);
  expect(forecasts.map(({ method, servers }: Record<string, unknown>) => [method, servers])).toEqual([
    ["milora", 2],
    ["model each", 2],
  ]);
  // What is asked for is far below what even a busy machine does.
  const wanted = ["--set", "target.firstTokenP95Ms=60000", "--set", "target.refused=1"];
  const sized = await milora(["plan", ...files, "--size", ...wanted, "--method", "milora", "--price", "0.5"]);
  expect(sized, sized.stderr).toMatchObject({ code: 0 });
  expect(sized.stdout).toMatch(/^milora +1 .* \d+\.\d{3}$/m);
});

test("what cannot be planned with is said in one line", async () => {
  const directory = temporary();
  const file = join(directory, "file.json");
  writeFileSync(file, "{}");
  const noProfile = await milora(["plan", "--profile", file, "--traffic", file]);
  expect(noProfile.code).toBe(2);
  expect(noProfile.stderr).toMatch(/^error: .*file\.json: \d+ problems: .*version/);
  const noMethod = await milora(["bench", "--model", tiny, "--adapter-method", "magic", "--output", file]);
  expect(noMethod).toMatchObject({ code: 2 });
  expect(noMethod.stderr).toContain("no method magic; there are adalora, ");
});

test("docs/scaling.md: its traffic is valid, and its table has every field and default", () => {
  expect(examples.length).toBeGreaterThan(0);
  for (const text of examples) expect(() => trafficSchema.parse(parse(text))).not.toThrow();
  const { shape } = trafficSchema as unknown as z.ZodObject;
  const rows = new Map([...scaling.matchAll(/^\| `(\w+)` \| (.*?) \| (.*?) \|$/gm)].map((match) => [match[1]!, match]));
  for (const key of Object.keys(shape)) expect(rows.has(key), key).toBe(true);
  const defaults = trafficSchema.parse({ streams: 1 });
  for (const [key, [, , written]] of rows) {
    const value = defaults[key as keyof typeof defaults];
    if (value === undefined || typeof value === "object" || key === "streams") continue;
    expect(written, key).toBe(`\`${String(value)}\``);
  }
});
