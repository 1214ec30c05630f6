/** @file Config files: YAML and JSON give the same, damage is named with its place, unknown settings of methods are refused. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { methodOf } from "../methods/index.ts";
import { resolveTrainingConfig, trainingConfigSchema } from "./config.ts";
import { jsonSchemaOf, readConfigFile, unknownSettings } from "./config-file.ts";

const directory = mkdtempSync(join(tmpdir(), "milora-config-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function file(name: string, text: string): string {
  const path = join(directory, name);
  writeFileSync(path, text);
  return path;
}

test("YAML and JSON give the same", () => {
  const yaml = file(
    "a.yaml",
    "lr: 1e-4 # peak\nbetas: [.9, 0.95]\nadapter:\n  r: 16\n  gate: probability\nbilevel: no\n",
  );
  const json = { lr: 1e-4, betas: [0.9, 0.95], adapter: { r: 16, gate: "probability" }, bilevel: "no" };
  expect(readConfigFile(yaml)).toEqual(json); // YAML 1.2: `no` is text, and the schema refuses it
  expect(readConfigFile(file("a.json", JSON.stringify(json)))).toEqual(json);
});

test.each([
  ["twice.yml", "lr: 1\nlr: 2\n", /line 2, column 1: Map keys must be unique/],
  ["open.yaml", "betas: [1, 2\nlr: 3\n", /open\.yaml: .*line \d+, column \d+/],
  ["tag.yaml", "lr: !!js/function 'f'\n", /line 1, column 5: Unresolved tag/],
  ["list.yaml", "- 1\n- 2\n", /is no list of settings/],
  ["empty.yaml", "", /is no list of settings/],
  ["proto.json", '{"data": {"__proto__": {"train": "x"}}}', /unknown key "data\.__proto__"/],
  ["proto.yaml", "__proto__:\n  method: lora\n", /unknown key "__proto__"/],
  ["cut.json", '{"lr": ', /not valid JSON/],
])("%s is refused", (name, text, message) => {
  expect(() => readConfigFile(file(name, text))).toThrow(message);
});

test("a YAML file that would grow without bound is refused", () => {
  const levels = Array.from({ length: 12 }, (_, i) => `l${i}: &l${i} [${Array(9).fill(i ? `*l${i - 1}` : "x")}]`);
  expect(() => readConfigFile(file("bomb.yaml", `${levels.join("\n")}\n`))).toThrow(/bomb\.yaml: .*alias/i);
});

test("a missing file is named", () => {
  expect(() => readConfigFile(join(directory, "none.yaml"))).toThrow(/none\.yaml: no such file/);
});

test("settings that a method does not have are refused with the nearest one", () => {
  expect(unknownSettings(methodOf("milora"), { r: 8, topk: 1, zzz: 1 })).toEqual([
    'adapter: unknown key "topk" of milora, did you mean "top_k"?',
    'adapter: unknown key "zzz" of milora',
  ]);
  for (const method of ["lora", "adalora", "midora"]) {
    expect(unknownSettings(methodOf(method), { target_modules: ["q_proj"], gqwx: 1 })).toHaveLength(1);
  }
});

test("the JSON Schema has every field with its description, and says what the schema says", () => {
  const schema = jsonSchemaOf(trainingConfigSchema) as {
    properties: Record<string, { description?: string; default?: unknown; properties?: object }>;
    required: string[];
    additionalProperties: boolean;
  };
  expect(Object.keys(schema.properties)).toEqual(Object.keys(trainingConfigSchema.shape));
  for (const field of Object.values(schema.properties)) expect(field.description).toBeTruthy();
  expect(schema.properties.lr).toMatchObject({ type: "number", default: 1e-4, exclusiveMinimum: 0 });
  expect(schema.required.sort()).toEqual(["data", "method", "model", "output_dir"]);
  expect(schema.additionalProperties).toBe(false);
  const required = { model: "m", method: "lora", data: { train: "t" }, output_dir: "o" };
  expect(resolveTrainingConfig(required).lr).toBe(schema.properties.lr!.default);
});
