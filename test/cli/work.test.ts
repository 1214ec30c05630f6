/** @file Tests of the commands that do the work, end to end on the bundled backbone and data. */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { fixture, milora, temporary, tiny } from "./milora.ts";

const train = (output: string, ...more: string[]) => [
  ...["train", "--model", tiny, "--train", "assets/data/authors/dev.jsonl", "--dev", "0.05", "--method", "milora"],
  ...["--set", "adapter.r=4", "--quick", "--output", output, ...more],
];

/** Generous: processes that train may have to share their cores with other tests. */
const SLOW = { timeout: 240_000 };

test(
  "train --quick, then --resume from an earlier checkpoint, gives the same adapter byte for byte",
  SLOW,
  async () => {
    const output = join(temporary(), "run");
    const { code, stdout, stderr } = await milora(train(output, "--json", "--tensorboard"));
    expect({ code, stderr: stderr.includes("error") }).toEqual({ code: 0, stderr: false });
    expect(JSON.parse(stdout)).toMatchObject({ steps: 4, totalSteps: 4, stoppedBecause: "finished" });
    expect(readdirSync(output).sort()).toEqual([
      "best",
      "checkpoints",
      "config.json",
      "environment.json",
      "metrics.jsonl",
      "report.html",
      "tensorboard",
    ]);
    expect(readdirSync(join(output, "checkpoints")).sort()).toEqual(["step-2", "step-4"]);
    const weights = () => readFileSync(join(output, "checkpoints/step-4/adapter_model.safetensors"));
    const first = weights();

    expect(await milora(train(output))).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("already holds a run"),
    });

    rmSync(join(output, "checkpoints/step-4"), { recursive: true });
    const resumed = await milora(["train", "--resume", "--output", output, "--json"]);
    expect(resumed.code).toBe(0);
    expect(weights().equals(first)).toBe(true);
    const events = () => readdirSync(join(output, "tensorboard")).map((name) => Number(name.split(".").at(-1)));
    expect(events().sort()).toEqual([1, 2]); // the first is empty now
    const report = await milora(["report", output, "--tensorboard", "--json"]);
    expect(JSON.parse(report.stdout)).toEqual({
      report: join(output, "report.html"),
      events: expect.stringMatching(/events\.out\.tfevents\.\d+\.milora\.3$/),
    });
    expect(events().sort()).toEqual([2, 3]);

    const inspected = await milora(["inspect", "--adapter", join(output, "best"), "--json"]);
    const facts = JSON.parse(inspected.stdout) as { method: string; digest: string; activations: unknown[] };
    expect(facts).toMatchObject({ method: "milora", refused: false });
    expect(facts.digest).toMatch(/^[0-9a-f]{64}$/);
    expect(facts.activations).toHaveLength(6);

    const rows = ["--data", "assets/data/authors/dev.jsonl", "--limit", "6"];
    const routed = await milora(["inspect", "--adapter", join(output, "best"), "--model", tiny, "--json", ...rows]);
    const { routing } = JSON.parse(routed.stdout) as {
      routing: { rows: number; expert_shares: number[][]; label_entropy: number };
    };
    expect(routing.rows).toBe(6);
    expect(routing.label_entropy).toBeGreaterThan(0);
    expect(routing.expert_shares).toHaveLength(6);
    for (const shares of routing.expert_shares) expect(shares.reduce((a, b) => a + b)).toBeCloseTo(1, 3);

    const question = "Who wrote this passage?";
    const shown = await milora([
      ...["generate", "--model", tiny, "--adapter", join(output, "best"), "--instruction", question],
      ...["--max-new-tokens", "3", "--route"],
    ]);
    expect(shown.code).toBe(0);
    // Three experts in each of six layers; without colours they are drawn as #.
    expect(shown.stderr.match(/#/g)).toHaveLength(3 * 6);
  },
);

test("Ctrl-C saves, exits with 130, and --resume finishes the run", SLOW, async () => {
  const output = join(temporary(), "run");
  const long = [...train(output), "--set", "max_steps=100000", "--set", "epochs=100000", "--set", "eval_every=100000"];
  const { code, stderr } = await milora(long, { interruptAt: " steps" });
  expect(code).toBe(130);
  expect(stderr).toMatch(/\nerror: interrupted after step (\d+) of 100000; --resume goes on from there\n$/);
  const step = Number(/after step (\d+)/.exec(stderr)![1]);
  expect(readdirSync(join(output, "checkpoints"))).toContain(`step-${step}`);
  expect(readdirSync(output).filter((name) => name.includes("tmp") || name.includes("lock"))).toEqual([]);
  const { code: again, stderr: notes } = await milora(["train", "--resume", "--output", output], {
    interruptAt: " steps",
  });
  expect(again).toBe(130);
  expect(notes).toContain(step > 0 ? `from step ${step}` : "steps");
});

test("inspect knows an adapter's backbone by its tensors, or takes the one it is told", async () => {
  const adapter = fixture("milora/default");
  const alone = await milora(["inspect", "--adapter", adapter, "--json"]);
  const told = await milora(["inspect", "--adapter", adapter, "--model", fixture("backbones/llama-gqa"), "--json"]);
  expect(alone.code).toBe(0);
  expect(JSON.parse(alone.stdout)).toEqual(JSON.parse(told.stdout));
});

test("inspect counts parameters as the paper does", async () => {
  const count = async (...more: string[]) => {
    const { stdout } = await milora(["inspect", "--shape", "llama-2-7b", "--json", ...more]);
    return (
      JSON.parse(stdout) as { parameters: { tunable: Record<string, number>; activated: Record<string, number> } }
    ).parameters;
  };
  expect((await count("--method", "lora")).tunable).toEqual({ lora: 79_953_920, total: 79_953_920 });
  const { tunable, activated } = await count("--method", "milora", "--set", "top_k=1");
  expect(tunable).toMatchObject({ experts: 79_953_920, routers: 917_504, poolers: 131_072, activations: 384 });
  expect(activated.experts! + activated.routers!).toBe(16_384_000); // the paper's 16.4 M
});

test("generate reads stdin, samples by seed, stops, and gives JSON", async () => {
  const args = ["generate", "--model", tiny, "--max-new-tokens", "12", "--json"];
  const run = async (...more: string[]) => {
    const { code, stdout } = await milora([...args, ...more], { input: "The cell membrane\n" });
    expect(code).toBe(0);
    return JSON.parse(stdout) as { tokens: number[]; text: string; logprobs: number[]; finishReason: string };
  };
  const greedy = await run();
  expect(greedy.tokens.length).toBe(greedy.logprobs.length);
  expect(await run("--prompt", "The cell membrane")).toMatchObject({ tokens: greedy.tokens });
  const [seven, again, eight] = [
    await run("--temperature", "1", "--seed", "7"),
    await run("--temperature", "1", "--seed", "7"),
    await run("--temperature", "1", "--seed", "8"),
  ];
  expect(seven.tokens).toEqual(again.tokens);
  expect(seven.tokens).not.toEqual(eight.tokens);
  const word = greedy.text.trim().split(/\s+/)[1]!;
  const stopped = await run("--stop", word);
  expect(stopped.finishReason).toBe("stop");
  expect(stopped.text).not.toContain(word);
});

test("generate streams text and nothing else to stdout", async () => {
  const args = ["generate", "--model", tiny, "--prompt", "The cell membrane", "--max-new-tokens", "12"];
  const [plain, json] = [await milora(args), await milora([...args, "--json"])];
  expect(plain).toEqual({ code: 0, stderr: "", stdout: `${(JSON.parse(json.stdout) as { text: string }).text}\n` });
});

test("eval gives accuracy with its interval, every row, and perplexity", SLOW, async () => {
  const output = join(temporary(), "result.json");
  const args = ["eval", "--model", tiny, "--data", "assets/data/subjects/test.jsonl", "--limit", "4", "--json"];
  const accuracy = await milora([...args, "--max-new-tokens", "8", "--output", output]);
  expect(accuracy.code).toBe(0);
  const result = JSON.parse(accuracy.stdout) as { accuracy: { total: number; interval: number[] }; rows: unknown[] };
  expect(result).toMatchObject({
    protocol: "hu2023",
    accuracy: { total: 4 },
    extraction: { kind: "labels" },
    decoding: { beams: 1, maxNewTokens: 8 },
  });
  expect(result.rows).toHaveLength(4);
  expect(JSON.parse(readFileSync(output, "utf8"))).toEqual(result);
  const perplexity = await milora([...args, "--metric", "perplexity"]);
  const { perplexity: value, tokens } = JSON.parse(perplexity.stdout) as { perplexity: number; tokens: number };
  expect(value).toBeGreaterThan(1);
  expect(tokens).toBeGreaterThan(4 * 5);
});

test("demo --quick --json leaves adapters that load, and every answer", SLOW, async () => {
  const output = join(temporary(), "demo");
  const { code, stdout } = await milora(["demo", "--quick", "--json", "--output", output]);
  expect(code).toBe(0);
  expect(stdout.trimEnd()).not.toContain("\n");
  const report = JSON.parse(stdout) as { tenants: { answers: Record<string, { rows: unknown[] }> }[]; speed: object };
  expect(report).toMatchObject({ quick: true, tenants: [{ tenant: "A" }, { tenant: "B" }] });
  expect(Object.keys(report.speed)).toEqual(["bare", "lora", "milora"]);
  for (const { answers } of report.tenants) {
    expect(Object.keys(answers)).toEqual(["bare", "lora", "milora"]);
    for (const { rows } of Object.values(answers)) expect(rows).toHaveLength(4);
  }
  expect(JSON.parse(readFileSync(join(output, "results.json"), "utf8"))).toEqual(report);
  for (const name of ["subjects-lora", "subjects-milora", "authors-lora", "authors-milora"]) {
    expect(existsSync(join(output, name, "best/adapter_model.safetensors"))).toBe(true);
  }
});

test("a config file and flags make one config; the flags win", SLOW, async () => {
  const directory = temporary();
  const config = join(directory, "config.json");
  const data = { train: "assets/data/authors/dev.jsonl", dev: 0 };
  writeFileSync(config, JSON.stringify({ model: tiny, method: "lora", lr: 0.5, data, adapter: { r: 2 } }));
  const output = join(directory, "run");
  const args = [
    "train",
    "--config",
    config,
    "--quick",
    "--set",
    "max_steps=1",
    "--set",
    "lr=0.001",
    "--output",
    output,
  ];
  expect((await milora(args)).code).toBe(0);
  expect(JSON.parse(readFileSync(join(output, "config.json"), "utf8"))).toMatchObject({
    lr: 0.001,
    max_steps: 1,
    batch_size: 4,
    adapter: { r: 2, peft_type: "LORA" },
    data: { dev: 0, template: "alpaca" },
  });
});

test("config check reads a committed config; flags, --set and null win over it and over a preset", SLOW, async () => {
  const checked = await milora(["config", "check", "configs/demo-authors-milora.yaml", "--json"]);
  expect(checked.code).toBe(0);
  expect(JSON.parse(checked.stdout)).toMatchObject({ valid: true, notes: [], config: { method: "milora", lr: 0.003 } });
  const schema = await milora(["config", "schema"]);
  expect(JSON.parse(schema.stdout)).toMatchObject({ type: "object", properties: { lr: { default: 0.0001 } } });

  const output = join(temporary(), "run");
  const { code } = await milora([
    ...["train", "--config", "configs/demo-authors-milora.yaml", "--preset", "paper", "--quick", "--output", output],
    ...["--train", "assets/data/authors/dev.jsonl", "--set", "warmup_ratio=null", "--set", "max_steps=1"],
    ...["--set", "adapter.target_modules=[q_proj, v_proj]", "--set", "adapter.top_k=1", "--set", "betas=[.8, .9]"],
  ]);
  expect(code).toBe(0);
  expect(JSON.parse(readFileSync(join(output, "config.json"), "utf8"))).toMatchObject({
    ...{ epochs: 2, batch_size: 4, lr: 0.003, warmup_ratio: 0.06, patience: 10, betas: [0.8, 0.9], max_steps: 1 },
    adapter: { r: 16, top_k: 1, target_modules: ["q_proj", "v_proj"], router_input: "raw" },
  });
});

test("the paper's batches follow the rows of all sources together", SLOW, async () => {
  const directory = temporary();
  const paths = [6000, 4000].map((count, part) => {
    const path = join(directory, `part-${part}.jsonl`);
    const rows = Array.from({ length: count }, (_, i) => JSON.stringify({ prompt: `${part} ${i}:`, completion: "a" }));
    writeFileSync(path, rows.join("\n"));
    return path;
  });
  const batches = async (name: string, train: unknown) => {
    const config = join(directory, `${name}.json`);
    const data = { train, dev: 0, template: "none" };
    const adapter = { r: 2, target_modules: ["q_proj"] };
    writeFileSync(config, JSON.stringify({ model: tiny, method: "lora", adapter, data, max_steps: 1 }));
    const output = join(directory, name);
    const { code, stderr } = await milora(["train", "--preset", "paper", "--config", config, "--output", output]);
    expect([code, stderr]).toEqual([0, expect.anything()]);
    return JSON.parse(readFileSync(join(output, "config.json"), "utf8")).batch_size;
  };
  expect(await batches("list", [paths[0], { path: paths[1], name: "more" }])).toBe(128);
  expect(await batches("pattern", join(directory, "part-*.jsonl"))).toBe(128);
  expect(await batches("one", [paths[0]])).toBe(16);
});
