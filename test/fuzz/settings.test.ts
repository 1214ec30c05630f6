/** @file Damaged settings: config.json, tokenizer.json, adapter_config.json and index files, and models made of them. */
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Adapter } from "../../src/methods/index.ts";
import { Backbone, parametersOf, readBackboneConfig, sitesOf, Tokenizer } from "../../src/models/index.ts";
import { damageJson, hold, jsonDamage, scratch, settings, Tally, TIMEOUT } from "./support.ts";

const directory = scratch();
const damages = fc.array(jsonDamage, { minLength: 1, maxLength: 3 });

/** A copy of a fixture whose file `name` is damaged anew for each case. */
async function fuzz(source: string, name: string, runs: number, read: (directory: string) => unknown): Promise<void> {
  const tally = new Tally();
  const copy = join(directory.path, "copy");
  rmSync(copy, { recursive: true, force: true });
  cpSync(source, copy, { recursive: true });
  const text = readFileSync(join(source, name), "utf8");
  await fc.assert(
    fc.asyncProperty(damages, async (list) => {
      writeFileSync(join(copy, name), damageJson(text, list));
      await tally.check(() => read(copy));
    }),
    settings(runs),
  );
  tally.conclude();
}

function readConfig(path: string): void {
  const config = readBackboneConfig(path);
  for (const key of ["hiddenSize", "numLayers", "numHeads", "headDim", "vocabSize", "maxPositions"] as const) {
    hold(Number.isSafeInteger(config[key]) && config[key] > 0, `${key} ${config[key]}`);
  }
  hold(Number.isFinite(config.ropeTheta) && config.rmsNormEps > 0, "numbers are finite");
  // What is made of it has sizes, and is listed in no time.
  for (const { path, inFeatures, outFeatures } of sitesOf(config)) hold(inFeatures * outFeatures > 0, path);
  for (const { name, shape } of parametersOf(config)) hold(shape.every((size) => size > 0), `${name} [${shape.join()}]`); // biome-ignore format: one line
}

const loadModel = async (path: string): Promise<void> => {
  using backbone = await Backbone.load(path);
  expect(backbone.digest).toMatch(/^[0-9a-f]{64}$/);
};

const BACKBONES = "test/fixtures/backbones";

test.each(["llama-gqa", "llama-rope500k"])(
  "config.json of %s",
  async (name) => {
    await fuzz(`${BACKBONES}/${name}`, "config.json", 1000, readConfig);
  },
  TIMEOUT,
);

test.each([
  { max_position_embeddings: 2 ** 24, head_dim: 4096 },
  { rope_parameters: { rope_theta: 10000, rope_type: "linear", factor: 1e6 } },
  { rope_parameters: { rope_theta: 10000, rope_type: "linear", factor: 1e300 } },
  { rope_parameters: { rope_theta: 10000, rope_type: "yarn", factor: 1e9, original_max_position_embeddings: 4096 } },
])("positions beyond all measure are refused before there are tables of them: %j", (fields) => {
  const copy = join(directory.path, "positions");
  cpSync(`${BACKBONES}/llama-gqa`, copy, { recursive: true });
  const path = join(copy, "config.json");
  writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, "utf8")) as object), ...fields }));
  expect(() => readBackboneConfig(copy)).toThrow(/max_position_embeddings: .* more than can be held/);
});

test(
  "a model whose config.json is damaged",
  async () => {
    await fuzz(`${BACKBONES}/llama-tied`, "config.json", 250, loadModel);
  },
  TIMEOUT,
);

test(
  "generation_config.json",
  async () => {
    await fuzz(`${BACKBONES}/llama-gqa`, "generation_config.json", 400, readConfig);
  },
  TIMEOUT,
);

test(
  "model.safetensors.index.json",
  async () => {
    await fuzz(`${BACKBONES}/llama-untied`, "model.safetensors.index.json", 300, loadModel);
  },
  TIMEOUT,
);

const lengthOf = (tokenizer: Tokenizer): number => {
  const ids = tokenizer.encode("Hello, wörld 12!\n ");
  expect(ids.every((id) => Number.isInteger(id) && id >= 0)).toBe(true);
  expect(typeof tokenizer.decode(ids)).toBe("string");
  return ids.length;
};

test.each([
  ["tokenizer.json", 300],
  ["tokenizer_config.json", 200],
])(
  "%s of sentencepiece",
  async (name, runs) => {
    await fuzz("test/fixtures/sentencepiece", name, runs, (path) => lengthOf(Tokenizer.load(path)));
  },
  TIMEOUT,
);

const backbone = readBackboneConfig(`${BACKBONES}/llama-gqa`);

test.each([
  ["adalora", "pruned"],
  ["bitfit", "projected"],
  ["dora", "patterns"],
  ["full", "gqa"],
  ["ia3", "regex"],
  ["iapt", "default"],
  ["learned-adapter", "placed"],
  ["lora", "patterns"],
  ["lora", "regex"],
  ["milora", "default"],
  ["milora", "dora"],
  ["moelora", "default"],
  ["p-tuning-v2", "mlp"],
  ["parallel-adapter", "gelu-scaled"],
  ["ssp", "found"],
])(
  "adapter_config.json of %s, %s",
  async (method, name) => {
    await fuzz(`test/fixtures/${method}/${name}`, "adapter_config.json", 120, (path) => {
      using adapter = Adapter.load(path, backbone);
      expect(adapter.digest).toMatch(/^[0-9a-f]{64}$/);
    });
  },
  TIMEOUT,
);
