/** @file MT-Bench at the command line: the bundled model answers, an HTTP server judges; costs, yes, files, Ctrl-C, table 3. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { json, judgeServer } from "../judge-server.ts";
import { milora, temporary, tiny } from "./milora.ts";

const SLOW = { timeout: 120_000 };

/** Five questions of MT-Bench itself, so that references are there: writing, reasoning, math. */
function questions(): string {
  const path = join(temporary(), "questions.jsonl");
  const lines = readFileSync("assets/data/mt_bench/test.jsonl", "utf8").split("\n");
  const chosen = lines.filter((line) => /^\{"question_id": (81|82|101|111|112),/.test(line));
  writeFileSync(path, `${chosen.join("\n")}\n`);
  return path;
}

const answer = (output: string, data: string, ...more: string[]) => {
  const model = ["--model", tiny, "--max-new-tokens", "8"];
  return ["eval", "--tasks", "mt_bench", ...model, "--data", data, "--output", output, ...more];
};

const judged = (url: string, ...more: string[]) => ["--judge-url", url, "--judge-model", "judge-1", ...more];

const KEY = "sk-secret-0123456789";

function environment(): Record<string, string> {
  return { MILORA_CACHE: temporary(), MILORA_JUDGE_KEY: KEY };
}

test("answers first, a judge later: nothing is generated or paid for twice", SLOW, async () => {
  const [output, data, env] = [temporary(), questions(), environment()];
  const server = await judgeServer(({ body }) => {
    const { content } = body.messages[1]!;
    if (content.includes("### User:")) return "Rating: [[4]]";
    return content.includes("travel blog") ? "Nice." : "Rating: [[8]]";
  });
  const first = await milora(answer(output, data), { env });
  expect(first.code).toBe(0);
  const answers = join(output, "mt_bench_answers.jsonl");
  expect(first.stdout).toBe(`${answers}\n`);
  expect(first.stderr).toContain(`milora eval --tasks mt_bench --answers ${answers} --judge-url`);
  const rows = readFileSync(join(output, "rows.jsonl"), "utf8");
  expect(rows.trimEnd().split("\n")).toHaveLength(10);

  // Nobody can be asked here: the cost is told, and nothing else happens.
  const later = ["eval", "--tasks", "mt_bench", "--answers", output, "--data-dir", join(data, "..")];
  mkdirSync(join(data, "../mt_bench"));
  writeFileSync(join(data, "../mt_bench/question.jsonl"), readFileSync(data));
  const asking = await milora([...later, ...judged(server.url, "--judge-prices", "2.5,10")], { env });
  expect(asking.code).toBe(2);
  expect(asking.stderr).toMatch(
    /judge judge-1 at http:\S+: 10 calls\n {2}about [\d,]+ prompt tokens, about 3,000 completion/,
  );
  expect(asking.stderr).toMatch(/error: --yes: is needed .*10 calls.* 0\.0\d, no more than 0\.2\d \(at 2\.5 and 10/);
  expect(server.asked).toHaveLength(0);

  const yes = await milora([...later, ...judged(server.url, "--yes", "--judge-prices", "2.5,10")], { env });
  expect({ code: yes.code, asked: server.asked.length }).toEqual({ code: 0, asked: 10 });
  expect(server.asked[0]).toMatchObject({ path: "POST /v1/chat/completions", authorization: `Bearer ${KEY}` });
  expect(yes.stdout.split("\n").map((line) => line.trimEnd().split(/ {2,}/))).toEqual([
    [`MT-Bench: 5 questions, rated by judge-1`],
    ["", "score", "95 %", "turn 1", "95 %", "turn 2", "95 %"],
    ["writing", "5.33", "4.00–6.00", "8.00", "8.00–8.00", "4.00", "4.00–4.00"],
    ["reasoning", "6.00", "6.00–6.00", "8.00", "8.00–8.00", "4.00", "4.00–4.00"],
    ["math", "6.00", "6.00–6.00", "8.00", "8.00–8.00", "4.00", "4.00–4.00"],
    ["all", "5.78", "5.14–6.00", "8.00", "8.00–8.00", "4.00", "4.00–4.00"],
    [""],
  ]);
  expect(yes.stderr).toContain("judged with 10 calls: 1,000 prompt tokens, 200 completion tokens");
  expect(yes.stderr).toContain("warning: 1 of 10 judgements have no verdict and are left out of all means");

  // The first command with the judge: kept answers, kept judgements, and files beside the answers.
  const whole = await milora([...answer(output, data), ...judged(server.url), "--json"], { env });
  expect({ code: whole.code, asked: server.asked.length }).toEqual({ code: 0, asked: 10 });
  expect(readFileSync(join(output, "rows.jsonl"), "utf8")).toBe(rows);
  const result = JSON.parse(whole.stdout) as object;
  expect(result).toMatchObject({
    model: tiny,
    protocol: "fastchat",
    template: "chat",
    decoding: { writing: { temperature: 0.7, topK: 50, seed: 1234 }, math: { temperature: 0 } },
    overlap: { skipped: expect.stringContaining("no training rows") },
    judge: { url: server.url, model: "judge-1", temperature: 0, mode: "single", baseline: null },
    spent: { calls: 0 },
    scores: { overall: { judged: 9, unjudged: 1 }, turns: [{ turn: 1 }, { turn: 2 }] },
    judgments: { length: 10 },
  });
  const lines = readFileSync(join(output, "mt_bench_single_judgments.jsonl"), "utf8").trimEnd().split("\n");
  expect(lines.map((line) => JSON.parse(line) as object)).toContainEqual({
    question_id: 111,
    model: tiny,
    judge: ["judge-1", "single-math-v1"],
    user_prompt: expect.stringContaining("[The Start of Reference Answer]"),
    judgment: "Rating: [[8]]",
    score: 8,
    turn: 1,
    tstamp: expect.any(Number),
  });
  expect(lines.map((line) => (JSON.parse(line) as { score: number }).score)).toContain(-1);
  for (const name of ["mt_bench_single_judgments.jsonl", "mt_bench_single_results.json", "mt_bench_answers.jsonl"]) {
    expect(readFileSync(join(output, name), "utf8")).not.toContain(KEY);
  }
});

test("a comparison with other answers, in both orders", SLOW, async () => {
  const [output, data, env] = [temporary(), questions(), environment()];
  const baseline = join(temporary(), "other.jsonl");
  const row = (id: number) =>
    JSON.stringify({ question_id: id, model_id: "other", choices: [{ index: 0, turns: ["The best.", "The best."] }] });
  writeFileSync(baseline, `${[81, 82, 101, 111].map(row).join("\n")}\n`);
  const server = await judgeServer(({ body }) => {
    const { content } = body.messages[1]!;
    const part = content.slice(content.lastIndexOf("The Start of Assistant B"));
    return part.includes("The best.") ? "[[B]]" : "[[A]]";
  });
  const args = [...answer(output, data, "--judge-baseline", baseline), ...judged(server.url, "--yes")];
  const lacking = await milora(args, { env });
  expect(lacking).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("no answers to the 2 turns of question 112"),
  });
  expect(existsSync(join(output, "rows.jsonl"))).toBe(false); // said before anything was answered

  writeFileSync(baseline, `${[81, 82, 101, 111, 112].map(row).join("\n")}\n`);
  const { code, stdout } = await milora(args, { env });
  expect(code).toBe(0);
  expect(server.asked).toHaveLength(20);
  expect(stdout).toContain("MT-Bench: 5 questions, against other, compared in both orders by judge-1");
  expect(stdout.trimEnd().split("\n").at(-1)!.split(/ {2,}/)).toEqual([
    ..."all,0,0,10,0.0,0.0–0.0,0.0,0.0–0.0,0.0,0.0–0.0".split(","),
  ]);
  const [line] = readFileSync(join(output, "mt_bench_pair_judgments.jsonl"), "utf8").split("\n");
  expect(JSON.parse(line!)).toMatchObject({
    model_1: tiny,
    model_2: "other",
    g1_winner: "model_2",
    g2_winner: "model_2",
  });
});

test("Ctrl-C while judging keeps what is judged", SLOW, async () => {
  const [output, data, env] = [temporary(), questions(), environment()];
  let patient = true;
  const server = await judgeServer((_, n) => (n === 3 && patient ? json(503, {}, { "retry-after": "500" }) : "[[6]]"));
  const args = [...answer(output, data), ...judged(server.url, "--yes", "--judge-concurrency", "1")];
  const stopped = await milora(args, { env, interruptAt: "again in 500.0 s" });
  expect(stopped.code).toBe(130);
  expect(stopped.stderr).toContain("the same command goes on from here");
  expect(server.asked).toHaveLength(4);
  patient = false;
  const { code, stderr } = await milora(args, { env });
  expect(code).toBe(0);
  expect(stderr).toContain("10 judgements, 3 of them known: 7 calls");
  expect(server.asked).toHaveLength(4 + 7);
});

test("what goes wrong is one line that says what to do", SLOW, async () => {
  const [output, data, env] = [temporary(), questions(), environment()];
  const server = await judgeServer(() => json(401, { error: { message: `bad key ${KEY}` } }));
  const refused = await milora([...answer(output, data), ...judged(server.url, "--yes")], { env });
  expect(refused.code).toBe(2);
  expect(refused.stderr).toMatch(/error: http:\S+: HTTP 401: bad key …; the key is not accepted: set MILORA_JUDGE_KEY/);
  expect(refused.stderr + refused.stdout).not.toContain(KEY);
  const flags = async (...args: string[]) => (await milora(args, { env })).stderr;
  expect(await flags("eval", "--tasks", "mt_bench", "--answers", output)).toMatch(
    /needs --judge-url and --judge-model/,
  );
  expect(await flags(...answer(output, data), "--judge-model", "x")).toMatch(/--judge-model: needs the other one/);
  expect(await flags(...answer(output, data, "--num-fewshot", "1"))).toMatch(/asked without shots/);
  expect(await flags(...answer(output, data, "--protocol", "lm-eval"))).toMatch(/only under fastchat/);
  expect(await flags("eval", "--model", tiny, "--tasks", "arc_easy", "--greedy")).toMatch(
    /--greedy: is for conversations/,
  );
  expect(await flags("eval", "--model", tiny, "--data", data, "--yes")).toMatch(/--yes: needs --tasks/);
  expect(await flags(...answer(output, data), "--answers", output)).toMatch(/cannot be used with/);
});

test("table 3 with a judge; without one its cells are left out", SLOW, async () => {
  const [output, data, env] = [temporary(), temporary(), environment()];
  for (const task of ["subjects", "authors"]) {
    mkdirSync(join(data, task));
    for (const split of ["train", "dev", "test"]) {
      const lines = readFileSync(join("assets/data", task, `${split}.jsonl`), "utf8").split("\n");
      writeFileSync(join(data, task, `${split}.jsonl`), `${lines.slice(0, 8).join("\n")}\n`);
    }
  }
  mkdirSync(join(data, "mmlu_anatomy"));
  for (const split of ["dev", "test"]) {
    writeFileSync(
      join(data, `mmlu_anatomy/${split}.jsonl`),
      readFileSync(`assets/data/samples/mmlu_anatomy/${split}.jsonl`),
    );
  }
  const server = await judgeServer(() => "Rating: [[3]]");
  const args = ["reproduce", "table3", "--preset", "smoke", "--seeds", "1", "--data-dir", data, "--output", output];
  const plan = JSON.parse(
    (await milora([...args, "--plan", "--json", ...judged(server.url)], { env })).stdout,
  ) as object;
  expect(plan).toMatchObject({ judging: { calls: 16 }, cost: { cells: 4 } });
  const unasked = await milora([...args, ...judged(server.url)], { env });
  expect(unasked).toMatchObject({ code: 2, stderr: expect.stringMatching(/--yes: .*16 calls.*nothing was begun/) });
  const { code, stdout, stderr } = await milora([...args, ...judged(server.url, "--yes")], { env });
  expect({ code, asked: server.asked.length }).toEqual({ code: 0, asked: 16 });
  expect(stderr).toMatch(/MiLoRA .* → MT-Bench: 3\.00/);
  expect(stdout).toMatch(/MiLoRA +3\.00 +7\.21/);
  expect(readFileSync(join(output, "report.md"), "utf8")).toContain("mean rating from 1 to 10 by judge-1");
  const again = await milora([...args, ...judged(server.url)], { env });
  expect({ code: again.code, asked: server.asked.length }).toEqual({ code: 0, asked: 16 });
  const without = await milora(args, { env });
  expect(without).toMatchObject({ code: 0, stdout: expect.not.stringContaining("MT-Bench") });
});
