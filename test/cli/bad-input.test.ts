/** @file Tests that bad input of every kind ends in one line, exit code 2, and nothing written. */
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { availableDevices } from "../../src/runtime/index.ts";
import { fixture, milora, temporary, tiny } from "./milora.ts";

const gqa = fixture("backbones/llama-gqa");
const allModules = fixture("lora/all-modules");
const tinyRows = join(import.meta.dirname, "../../assets/data/subjects/dev.jsonl");

/** A copy of a directory, changed by `change`. */
function changed(source: string, change: (directory: string) => void): string {
  const copy = join(temporary(), "copy");
  cpSync(source, copy, { recursive: true });
  change(copy);
  return copy;
}

function edited(source: string, file: string, edit: (value: Record<string, unknown>) => void): string {
  return changed(source, (directory) => {
    const value = JSON.parse(readFileSync(join(directory, file), "utf8")) as Record<string, unknown>;
    edit(value);
    writeFileSync(join(directory, file), JSON.stringify(value));
  });
}

/** Runs it, and returns the one line of its error. */
async function refused(args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await milora(args);
  expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  expect(stderr).toMatch(/^error: [^\n]+\n$/);
  return stderr;
}

const logits = (model: string, adapter?: string) => [
  ...["logits", "--model", model, "--tokens", "1,5,7"],
  ...(adapter ? ["--adapter", adapter] : []),
];

test.skipIf(availableDevices().includes("cuda"))("a device that is not here, before anything is read", async () => {
  const cuda = ["--device", "cuda", "--model", "nowhere"];
  const commands = [
    ["generate", "--prompt", "x", ...cuda],
    ["logits", "--tokens", "1,2", ...cuda],
    ["eval", "--data", tinyRows, ...cuda],
    ["train", "--train", tinyRows, "--method", "lora", "--output", join(temporary(), "run"), ...cuda],
    ["serve", "--data", temporary(), ...cuda],
    ["reproduce", "fig4", "--output", temporary(), ...cuda],
  ];
  for (const args of commands)
    expect(await refused(args)).toMatch(/^error: cuda cannot be used here: it needs an NVIDIA/);
});

describe("a backbone", () => {
  test("whose directory does not exist, or is no model", async () => {
    expect(await refused(logits("no/such/model"))).toContain("no/such/model");
    expect(await refused(logits(temporary()))).toContain("config.json");
  });

  test("without its weights", async () => {
    const model = changed(gqa, (directory) => rmSync(join(directory, "model.safetensors")));
    expect(await refused(logits(model))).toContain("safetensors");
  });

  test("with one shard missing", async () => {
    const shard = "model-00002-of-00003.safetensors";
    const model = changed(fixture("backbones/llama-untied"), (directory) => rmSync(join(directory, shard)));
    expect(await refused(logits(model))).toContain(shard);
  });

  test.each<[string, (bytes: Buffer) => Buffer]>([
    ["truncated", (bytes) => bytes.subarray(0, bytes.length - 100)],
    ["cut inside the header", (bytes) => bytes.subarray(0, 20)],
    ["empty", () => Buffer.alloc(0)],
    ["a header of 2⁵⁶ bytes", (bytes) => Buffer.concat([Buffer.from([0, 0, 0, 0, 0, 0, 0, 1]), bytes.subarray(8)])],
    ["no safetensors file at all", () => Buffer.from("This is a text file, not a checkpoint.")],
  ])("whose weights are %s", async (_, damage) => {
    const model = changed(gqa, (directory) => {
      const path = join(directory, "model.safetensors");
      writeFileSync(path, damage(readFileSync(path)));
    });
    expect(await refused(logits(model))).toContain("model.safetensors");
  });

  test("whose config is no JSON, lacks fields, or is of a family that is not there", async () => {
    const broken = changed(gqa, (directory) => writeFileSync(join(directory, "config.json"), "{"));
    expect(await refused(logits(broken))).toContain("config.json");
    const lacking = edited(gqa, "config.json", (config) => {
      delete config.hidden_size;
      delete config.num_hidden_layers;
    });
    expect(await refused(logits(lacking))).toMatch(/hidden_size.*num_hidden_layers|num_hidden_layers.*hidden_size/);
    const unknown = edited(gqa, "config.json", (config) => {
      config.architectures = ["MambaForCausalLM"];
    });
    expect(await refused(logits(unknown))).toContain("MambaForCausalLM");
  });

  test("whose config does not fit its weights", async () => {
    const model = edited(gqa, "config.json", (config) => {
      config.intermediate_size = 48;
    });
    expect(await refused(logits(model))).toContain("48");
  });
});

describe("an adapter", () => {
  test("of another backbone names every misfit", async () => {
    const line = await refused(logits(fixture("backbones/llama-headdim"), allModules));
    expect(line).toMatch(/problems/);
    expect(line).toContain("q_proj.lora_B.weight");
  });

  test("without weights, without config, of an unknown method", async () => {
    expect(await refused(logits(gqa, temporary()))).toContain("adapter_config.json");
    const empty = changed(allModules, (directory) => rmSync(join(directory, "adapter_model.safetensors")));
    expect(await refused(logits(gqa, empty))).toContain("adapter_model.safetensors");
    const unknown = edited(allModules, "adapter_config.json", (config) => {
      config.peft_type = "VERA";
    });
    expect(await refused(logits(gqa, unknown))).toContain("VERA");
  });

  test("whose rank is another than its tensors'", async () => {
    const adapter = edited(allModules, "adapter_config.json", (config) => {
      config.r = 3;
    });
    expect(await refused(logits(gqa, adapter))).toContain("lora_A.weight");
    const { code, stdout, stderr } = await milora(["inspect", "--adapter", adapter, "--json"]);
    expect(code).toBe(2);
    expect(JSON.parse(stdout)).toMatchObject({ refused: true, code: "ADAPTER_MISMATCH" });
    expect((JSON.parse(stdout) as { problems: string[] }).problems.length).toBe(2 * 7 * 3);
    expect(stderr).toMatch(/^error: [^\n]+\n$/);
  });
});

describe("tokens and prompts", () => {
  test("outside the vocabulary", async () => {
    expect(await refused(["logits", "--model", gqa, "--tokens", "1,96"])).toContain("96");
  });

  test("longer than the context", async () => {
    const tokens = Array.from({ length: 1025 }, () => "5").join(",");
    expect(await refused(["logits", "--model", tiny, "--tokens", tokens])).toContain("1025");
    const prompt = "The cell membrane. ".repeat(400);
    expect(await refused(["generate", "--model", tiny, "--prompt", prompt])).toContain("1024");
  });

  test("of a model without a tokenizer", async () => {
    expect(await refused(["generate", "--model", gqa, "--prompt", "Hello"])).toContain("tokenizer");
  });
});

describe("rows and settings", () => {
  const train = (data: string, output: string, ...more: string[]) => [
    ...["train", "--model", tiny, "--train", data, "--method", "milora", "--output", output, "--quick", ...more],
  ];

  /** A data file in a directory of its own. */
  function rows(text: string): string {
    const path = join(temporary(), "rows.jsonl");
    writeFileSync(path, text);
    return path;
  }

  test("without the needed fields: each row is named and no run is begun", async () => {
    const output = join(temporary(), "run");
    const data = rows('{"instruction":"a","output":"b"}\n{"instruction":"a"}\n{"question":"a"}\nnot json\n');
    const line = await refused(train(data, output));
    for (const row of ["row 2", "row 3", "row 4"]) expect(line).toContain(row);
    expect(line).not.toContain("row 1");
    expect(existsSync(output)).toBe(false);
  });

  test("without answers cannot be evaluated", async () => {
    const data = rows('{"instruction":"a","output":"b","answer":"c"}\n{"instruction":"a","output":"b"}\n');
    const line = await refused(["eval", "--model", tiny, "--data", data]);
    expect(line).toContain('row 2: missing "answer"');
  });

  test("a missing file, an unknown setting with the nearest name, a value out of range, an unknown method", async () => {
    const output = join(temporary(), "run");
    const data = rows('{"instruction":"a","output":"b"}\n');
    expect(await refused(train("no/such.jsonl", output))).toContain("no/such.jsonl");
    expect(await refused(train(data, output, "--set", "batchsize=4"))).toContain('did you mean "batch_size"');
    expect(await refused(train(data, output, "--set", "lr=-1", "--set", "epochs=none"))).toMatch(
      /lr.*epochs|epochs.*lr/,
    );
    expect(await refused(train(data, output, "--method", "lorra"))).toContain("lorra");
    expect(await refused(train(data, output, "--set", "adapter.top_k=9"))).toContain("top_k");
    expect(existsSync(output)).toBe(false);
  });

  test("resuming what is not there", async () => {
    const output = join(temporary(), "run");
    expect(await refused(["train", "--resume", "--output", output])).toContain(output);
    expect(existsSync(output)).toBe(false);
  });

  test("an output file in a place that cannot be written leaves nothing behind", async () => {
    const directory = temporary();
    writeFileSync(join(directory, "file"), "");
    const data = rows('{"instruction":"a","output":"b","answer":"b"}\n');
    const { code, stderr } = await milora([
      "eval",
      "--model",
      tiny,
      "--data",
      data,
      "--output",
      join(directory, "file", "x.json"),
    ]);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/error: [^\n]+\n$/);
    expect(readdirSync(directory)).toEqual(["file"]);
  });
});

describe("a training config", () => {
  const written = (name: string, text: string) => {
    const path = join(temporary(), name);
    writeFileSync(path, text);
    return path;
  };

  test("lists what is wrong with it, the method's settings too", async () => {
    const base =
      "model: assets/tiny-llama\nmethod: milora\ndata: {train: assets/data/authors/dev.jsonl}\noutput_dir: /none\n";
    const path = written("run.yaml", `${base}bach_size: 4\n`);
    for (const args of [
      ["config", "check", path],
      ["train", "--config", path],
    ]) {
      expect(await refused(args)).toContain('run.yaml: unknown key "bach_size", did you mean "batch_size"?');
    }
    const setting = written("run.yaml", `${base}adapter: {topk: 1}\n`);
    for (const args of [
      ["config", "check", setting],
      ["train", "--config", setting],
    ]) {
      expect(await refused(args)).toContain('unknown key "topk" of milora, did you mean "top_k"?');
    }
    expect(await refused(["config", "check", written("run.yaml", `${base}adapter: {top_k: 8}\n`)])).toContain("top_k");
    expect(await refused(["config", "check", written("run.yaml", "lr: [1\n")])).toMatch(/line \d/);
    expect(await refused(["config", "check"])).toContain("needs a file");
  });
});
