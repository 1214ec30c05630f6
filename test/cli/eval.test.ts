/** @file `milora eval --tasks` as a child process: the list, the table, the files, going on, what is refused. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { expect, test } from "vitest";
import { milora, root, temporary, tiny } from "./milora.ts";

const SLOW = { timeout: 120_000 };
const samples = "assets/data/samples";
const base = ["eval", "--model", tiny, "--data-dir", samples];

test("the tasks are listed without any model", async () => {
  const { code, stdout } = await milora(["eval", "--tasks", "list"]);
  expect(code).toBe(0);
  const lines = stdout.trimEnd().split("\n");
  expect(lines).toHaveLength(1 + 12);
  expect(stdout).toMatch(/^arc_easy +hu2023, lm-eval +CC BY-SA 4.0 /m);
  expect(stdout).toMatch(/^mmlu +lm-eval +MIT +57 tasks/m);
  const json = JSON.parse((await milora(["eval", "--tasks", "list", "--json"])).stdout) as { tasks: unknown[] };
  expect(json.tasks).toHaveLength(94);
  expect(json.tasks).toContainEqual(
    expect.objectContaining({ task: "mmlu_anatomy", groups: ["mmlu", "mmlu_stem"], source: "hf:cais/mmlu:anatomy" }),
  );
});

test("tasks of both kinds: the table, our files and the harness's, and no work twice", SLOW, async () => {
  const output = join(temporary(), "eval");
  const args = [...base, "--tasks", "piqa,mmlu_philosophy,gsm8k", "--protocol", "lm-eval", "--limit", "4"];
  const own = [...args, "--max-new-tokens", "8", "--output", output];
  const { code, stdout, stderr } = await milora(own);
  expect(code).toBe(0);
  expect(stderr).toContain(`written to ${output}`);
  const lines = stdout.trimEnd().split("\n");
  expect(
    lines.slice(2).map((line) =>
      line
        .split("|")
        .map((cell) => cell.trim())
        .slice(1, 6),
    ),
  ).toEqual([
    ["mmlu", "", "none", "", "acc"],
    ["- mmlu_humanities", "", "none", "", "acc"],
    ["- mmlu_philosophy", "1", "none", "5", "acc"],
    ["piqa", "1", "none", "0", "acc"],
    ["", "", "none", "0", "acc_norm"],
    ["gsm8k", "3", "strict-match", "5", "exact_match"],
    ["", "", "flexible-extract", "5", "exact_match"],
  ]);
  const files = readdirSync(output);
  expect(files.filter((name) => /^results_.*\.json$/.test(name))).toHaveLength(1);
  const sampleFiles = files.filter((name) => /^samples_(piqa|mmlu_philosophy|gsm8k)_.*\.jsonl$/.test(name));
  expect(sampleFiles).toHaveLength(3);
  const gsm8k = readFileSync(join(output, sampleFiles.find((name) => name.includes("gsm8k"))!), "utf8");
  expect(gsm8k.trimEnd().split("\n")).toHaveLength(2 * 4); // each row under each filter
  const result = JSON.parse(readFileSync(join(output, "results.json"), "utf8")) as { tasks: object[] };
  expect(result.tasks[1]).toMatchObject({
    task: "mmlu_philosophy",
    protocol: "lm-eval",
    rows: 4,
    data: { rows: 6 },
    metrics: [{ metric: "acc", bootstrap: [expect.any(Number), expect.any(Number)] }],
  });
  const rows = readFileSync(join(output, "rows.jsonl"), "utf8");
  expect(rows.trimEnd().split("\n")).toHaveLength(3 * 4);

  const again = await milora([...own, "--json"]);
  expect(readFileSync(join(output, "rows.jsonl"), "utf8")).toBe(rows);
  const json = JSON.parse(again.stdout) as { tasks: { metrics: unknown; samples: unknown[] }[] };
  expect(json.tasks.map(({ metrics }) => metrics)).toEqual(
    result.tasks.map((task) => (task as { metrics: unknown }).metrics),
  );
  expect(json.tasks[0]!.samples).toHaveLength(4);
});

test("questions that were trained on are told of, unless that is turned off", SLOW, async () => {
  const directory = temporary();
  const train = join(directory, "train.jsonl");
  const test = readFileSync("assets/data/subjects/test.jsonl", "utf8").split("\n");
  writeFileSync(train, `${test.slice(0, 2).join("\n")}\n`);
  const args = ["eval", "--model", tiny, "--max-new-tokens", "2", "--limit", "3"];
  const named = await milora([...args, "--tasks", "subjects", "--train", train]);
  expect(named.code).toBe(0);
  expect(named.stderr).toMatch(/warning: subjects: 2 of 3 rows share 13 words in a row with the training rows/);
  const rows = await milora([...args, "--data", "assets/data/subjects/test.jsonl", "--train", train, "--json"]);
  expect(JSON.parse(rows.stdout)).toMatchObject({ overlap: { rows: [0, 1], training: [train], words: 13 } });
  const off = await milora([...args, "--tasks", "subjects", "--train", train, "--no-overlap", "--json"]);
  expect(off.stderr).toBe("");
  expect(JSON.parse(off.stdout)).toMatchObject({ tasks: [{ overlap: { skipped: "turned off" } }] });
});

test("what cannot be measured is refused before the model is loaded", async () => {
  const directory = temporary();
  mkdirSync(join(directory, "piqa"));
  writeFileSync(join(directory, "piqa/validation.jsonl"), '{"goal": "x"}\n');
  const cases: [string[], RegExp][] = [
    [["--tasks", "arc_esay"], /^error: --tasks .*no task "arc_esay", did you mean "arc_easy"\?/],
    [["--tasks", "bbh_snarks"], /^error: --protocol: "bbh_snarks" is not defined under hu2023, only under lm-eval/],
    [
      ["--tasks", "piqa", "--data-dir", directory],
      /^error: .*validation\.jsonl.*row 1: needs "goal", "sol1" and "sol2"/,
    ],
    [["--tasks", "arc_easy", "--data-dir", directory], /^error: .*has no "test" rows of arc_easy; looked for arc_easy/],
    [["--tasks", "boolq", "--protocol", "lm-eval", "--data-dir", samples], /^error: .*no "passage"/],
    [["--tasks", "piqa,boolq", "--data", "x"], /^error: --data: holds rows of one task, --tasks names 2/],
    [["--tasks", ","], /^error: --tasks: names no task/],
    [["--data", "x", "--num-fewshot", "2"], /^error: --num-fewshot: needs --tasks/],
  ];
  for (const [flags, message] of cases) {
    const { code, stderr, stdout } = await milora(["eval", "--model", "no-such-model", ...flags]);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(message);
    expect(stderr.trimEnd()).not.toContain("\n");
  }
});

test("Ctrl-C keeps what there is; the same command goes on", SLOW, async () => {
  const output = join(temporary(), "eval");
  const names = ["date_understanding", "navigate", "snarks"].map((name) => `bbh_${name}`).join(",");
  const args = [...base, "--tasks", names, "--protocol", "lm-eval", "--batch-size", "1", "--output", output];
  const command = [...args, "--max-new-tokens", "500"];
  const child = spawn(process.execPath, [join(root, "dist/cli/main.js"), ...command], { cwd: root });
  let stderr = "";
  child.stderr.on("data", (text: Buffer) => {
    stderr += text.toString();
  });
  while (!existsSync(join(output, "rows.jsonl")) && child.exitCode === null) await setTimeout(20);
  child.kill("SIGINT");
  const [code] = (await once(child, "exit")) as [number];
  expect(code).toBe(130);
  expect(stderr).toMatch(/the same command goes on from here .*\nerror: interrupted\n$/);
  const kept = readFileSync(join(output, "rows.jsonl"), "utf8");
  const again = await milora(command);
  expect(again.code).toBe(0);
  const rows = readFileSync(join(output, "rows.jsonl"), "utf8");
  expect(rows.startsWith(kept)).toBe(true);
  expect(rows.trimEnd().split("\n")).toHaveLength(6);
});
