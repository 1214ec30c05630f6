/** @file Damaged files that milora itself has written, or is told things by: prepared weights, checkpoints, grids, reports, profiles, settings. */
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { test } from "vitest";
import { parseWith } from "../../src/base/index.ts";
import { gridSchema, readGrid, readIndex, writeIndex, writeRecord } from "../../src/evaluation/index.ts";
import { Backbone, Tokenizer } from "../../src/models/index.ts";
import { writePrepared } from "../../src/models/prepared.ts";
import { costsOf } from "../../src/serving/capacity/profile.ts";
import { roundProfile } from "../../src/serving/capacity/testing.ts";
import { parseServerConfig, readProfile, trafficSchema } from "../../src/serving/index.ts";
import { RunLibrary } from "../../src/serving/studio/runs/index.ts";
import { readCheckpointState, readConfigFile } from "../../src/training/index.ts";
import { byteDamage, damageBytes, damageJson, hold, jsonDamage, scratch, settings, Tally, TIMEOUT } from "./support.ts";

const directory = scratch();
const damages = <T>(one: fc.Arbitrary<T>) => fc.array(one, { minLength: 1, maxLength: 3 });

/** One of several files is damaged, JSON in its values, what is none in its bytes; the others are what they were. */
async function fuzz(files: Readonly<Record<string, string>>, runs: number, read: () => unknown): Promise<void> {
  const tally = new Tally();
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  }
  const damaged = fc.constantFrom(...Object.entries(files)).chain(([path, text]) => {
    const content = /^[[{]/.test(text)
      ? damages(jsonDamage).map((list): string | Buffer => damageJson(text, list))
      : damages(byteDamage).map((list): string | Buffer => damageBytes(Buffer.from(text), list));
    return fc.record({ path: fc.constant(path), content });
  });
  await fc.assert(
    fc.asyncProperty(damaged, async ({ path, content }) => {
      writeFileSync(path, content);
      await tally.check(read);
      writeFileSync(path, files[path]!);
    }),
    settings(runs),
  );
  tally.conclude();
}

const sample = (path: string): string => readFileSync(path, "utf8");

test(
  "vocab.json, merges.txt and the files that older versions wrote beside them",
  async () => {
    const at = (name: string) => join(directory.path, "gpt2", name);
    const { tokens, merges } = JSON.parse(sample("test/fixtures/tokenizers/families.json")).bases.bytes as {
      tokens: string[];
      merges: [string, string][];
    };
    const files = {
      "vocab.json": JSON.stringify(Object.fromEntries([...tokens, "<|end|>"].map((token, id) => [token, id]))),
      "merges.txt": `#version: 0.2\n${merges.map((pair) => pair.join(" ")).join("\n")}\n`,
      "added_tokens.json": JSON.stringify({ "<|end|>": tokens.length, "<new>": tokens.length + 1 }),
      "special_tokens_map.json": JSON.stringify({ eos_token: { content: "<|end|>" }, bos_token: "<|end|>" }),
      "chat_template.json": JSON.stringify({ chat_template: "{{ messages[0].content }}" }),
    };
    const placed = Object.fromEntries(Object.entries(files).map(([name, text]) => [at(name), text]));
    await fuzz(placed, 150, () => {
      const tokenizer = Tokenizer.load(at(""));
      const ids = tokenizer.encode("Hello, wörld 12!\n <new><|end|>");
      hold(ids.every((id) => Number.isInteger(id) && id >= 0), ids.join()); // biome-ignore format: one line
      hold(typeof tokenizer.decode(ids) === "string", "a text");
    });
  },
  TIMEOUT,
);

test(
  "prepared weights with a damaged header",
  async () => {
    const tally = new Tally();
    const model = join(directory.path, "prepared");
    cpSync("test/fixtures/backbones/llama-tied/config.json", join(model, "config.json"));
    const path = join(model, "prepared.safetensors");
    using backbone = await Backbone.load("test/fixtures/backbones/llama-tied");
    await writePrepared(path, backbone);
    const bytes = readFileSync(path);
    const end = 8 + Number(bytes.readBigUInt64LE(0));
    const [header, data] = [bytes.toString("utf8", 8, end).trimEnd(), bytes.subarray(end)];
    const pads = fc.constantFrom("", " ", "  ", "aligned");
    await fc.assert(
      fc.asyncProperty(fc.array(jsonDamage, { maxLength: 3 }), pads, async (list, pad) => {
        const damaged = Buffer.from(damageJson(header, list));
        const length = Math.ceil((8 + damaged.length) / 64) * 64 - 8;
        const filled = Buffer.alloc(pad === "aligned" ? length : damaged.length + pad.length, " ");
        damaged.copy(filled);
        const size = Buffer.alloc(8);
        size.writeBigUInt64LE(BigInt(filled.length));
        writeFileSync(path, Buffer.concat([size, filled, data]));
        await tally.check(async () => {
          using loaded = await Backbone.load(model);
          for (const [name, tensor] of loaded.initializers()) {
            const { length, BYTES_PER_ELEMENT: width } = tensor.data;
            hold(length === tensor.shape.reduce((a, b) => a * b, 1), name);
            hold(Number(tensor.address % BigInt(width)) === 0, `${name} lies where numbers can be read`);
          }
        });
      }),
      settings(150),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test(
  "state of a checkpoint",
  async () => {
    const state = {
      ...{ format: 1, step: 4, stage_start: 0, updates: { weights: 3, activation: 1 } },
      ...{ best: { step: 2, dev_loss: 1.5, dev_perplexity: 4.5 }, evaluations_without_improvement: 1 },
      ...{ last_evaluation: 4, metrics_bytes: 900, seconds: 3.5, identity: { method: '"lora"', seed: "0" } },
      ...{ identity_digest: "a".repeat(64), sums: { "adapter_model.safetensors": "b".repeat(64) } },
    };
    await fuzz({ [join(directory.path, "step-4/state.json")]: JSON.stringify(state) }, 200, () => {
      const { step, best } = readCheckpointState(join(directory.path, "step-4"));
      hold(Number.isSafeInteger(step) && step >= 0 && (best === null || best.step >= 0), "counts");
    });
  },
  TIMEOUT,
);

const grid = {
  train: { model: "assets/tiny-llama", data: { train: "rows.jsonl" }, epochs: 1 },
  axes: { method: ["lora", "milora"], "adapter.r": [2, 4] },
  evaluate: [{ data: "test.jsonl" }, { name: "ppl", data: "p.jsonl", metric: "perplexity", limit: 3 }],
};

test(
  "grids that somebody has written",
  async () => {
    const path = join(directory.path, "given.json");
    await fuzz({ [path]: JSON.stringify(grid) }, 200, () => {
      const { axes, evaluate } = readGrid(path);
      hold(Object.values(axes).every(({ length }) => length > 0) && evaluate.length > 0, "something to do");
    });
  },
  TIMEOUT,
);

test(
  "grids and reports of folders that the studio shows",
  async () => {
    const folder = join(directory.path, "folder");
    const at = (name: string) => join(folder, name);
    mkdirSync(at("grid/cells"), { recursive: true });
    const points = [2, 4].map((r, i) => ({ settings: { "adapter.r": r }, run: `run${i}`, cells: [`a${i}`, `b${i}`] }));
    writeIndex(at("grid"), { grid: gridSchema.parse(grid), points });
    const about = { kind: "x", label: "x", seconds: 1, amount: 1, machine: "m", made: "now" };
    writeRecord(at("grid"), { ...about, id: "run0", value: { steps: 2, devPerplexity: 7.25 } });
    writeRecord(at("grid"), {
      ...about,
      id: "a0",
      value: { metric: "accuracy", value: 0.5, interval: [0, 1], rows: 2 },
    });
    const report = JSON.parse(sample("docs/results/results.json")) as { studies: unknown[] };
    const files = {
      ...Object.fromEntries(["grid/grid.json", "grid/cells/run0.json", "grid/cells/a0.json"].map((name) => [at(name), sample(at(name))])), // biome-ignore format: one line
      [at("grid/results.json")]: JSON.stringify({ failures: [{ label: "a", code: "X", reason: "y" }] }),
      [at("paper/results.json")]: JSON.stringify({ ...report, studies: report.studies.slice(0, 2) }),
    };
    await fuzz(files, 100, async () => {
      using library = new RunLibrary([folder]);
      const lists = [await library.grids(), await library.reproductions()];
      hold(lists.every((list) => list.length <= 1), "no more than there are"); // biome-ignore format: one line
      JSON.stringify([lists, await library.grid("grid"), await library.reproduction("paper")]);
      readIndex(at("grid"));
    });
  },
  TIMEOUT,
);

test(
  "profiles of machines, and the traffic that is planned for",
  async () => {
    const at = (name: string) => join(directory.path, name);
    const traffic = {
      ...{ tenants: 20, zipf: 1, weights: [{ share: 0.1, weight: 2 }], requestsPerSecond: 3, arrivals: "even" },
      ...{ prompt: { min: 4, max: 40 }, answer: { median: 20, p95: 60, max: 90 }, deadlineSeconds: 9, seconds: 30 },
      ...{ limits: { maxWaiting: 4 }, target: { firstTokenP95Ms: 800 } },
    };
    const files = {
      [at("profile.json")]: JSON.stringify(roundProfile()),
      [at("traffic.json")]: JSON.stringify(traffic),
    };
    await fuzz(files, 200, () => {
      const profile = readProfile(at("profile.json"));
      for (const method of profile.methods) {
        const ms = costsOf(profile, method).read({ tokens: 50, prompts: 1, adapters: 1 });
        hold(Number.isFinite(ms), `${method.name}: ${ms} ms`);
      }
      const { seconds } = parseWith(trafficSchema, readConfigFile(at("traffic.json")), "traffic.json");
      hold(seconds > 0, "it lasts");
    });
  },
  TIMEOUT,
);

test(
  "settings of a server",
  async () => {
    const path = join(directory.path, "serve.json");
    const config = {
      ...{ model: "assets/tiny-llama", data: "data", host: "127.0.0.1", port: 8000, auth: "required", context: 64 },
      ...{
        adapters: { red: "adapters/red" },
        runs: ["runs"],
        chatTemplate: "alpaca",
        residency: { maxBytes: 1 << 20 },
      },
      ...{ http: { bodyBytes: 1 << 20, maxTokens: 4 }, limits: { maxWaiting: 4 } },
    };
    await fuzz({ [path]: JSON.stringify(config) }, 200, () => {
      const { port } = parseServerConfig(
        readConfigFile(path) as object as Parameters<typeof parseServerConfig>[0],
        path,
      );
      hold(Number.isInteger(port) && port >= 0, `port ${port}`);
    });
  },
  TIMEOUT,
);
