/** @file The sizes of a backbone, read off an adapter alone, are enough to load and show it. */
import { readdirSync } from "node:fs";
import { join, sep } from "node:path";
import { describe, expect, test } from "vitest";
import { Adapter } from "../../methods/index.ts";
import { readBackboneConfig } from "../../models/index.ts";
import { inferBackbone } from "./infer.ts";

const fixtures = new URL("../../../test/fixtures/", import.meta.url).pathname;
const backbone = readBackboneConfig(join(fixtures, "backbones/llama-gqa"));
/** Vectors and prefixes do not tell which widths of the backbone they have. */
const silent = new Set(["ia3", "iapt", "p-tuning-v2"]);

const cases = readdirSync(fixtures, { recursive: true, encoding: "utf8" })
  .map((path) => path.split(sep))
  .filter(([method, , file]) => file === "adapter_config.json" && !silent.has(method!) && method !== "saved")
  .map(([method, name]) => `${method}/${name}`)
  .filter((path) => path !== "full/tied");

describe.each(cases)("%s", (path) => {
  test("is the adapter that it is on its own backbone", () => {
    const directory = join(fixtures, path);
    using told = Adapter.load(directory, backbone);
    using alone = Adapter.load(directory, inferBackbone(directory));
    expect(alone.digest).toBe(told.digest);
    expect(alone.method.structure?.(alone.config, alone.backbone)).toEqual(
      told.method.structure?.(told.config, told.backbone),
    );
  });
});
