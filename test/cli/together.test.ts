/** @file `milora train` with several configs or seeds: directories, results, Ctrl-C, resumption and errors. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { milora, temporary, tiny } from "./milora.ts";

const flags = (...more: string[]) => [
  ...["train", "--model", tiny, "--train", "assets/data/authors/dev.jsonl", "--dev", "0.05"],
  ...["--set", "adapter.r=4", "--quick", ...more],
];

/** Generous: processes that train may have to share their cores with other tests. */
const SLOW = { timeout: 240_000 };

test(
  "--seeds trains each into a directory of its own; --json lists the results; Ctrl-C and --resume",
  SLOW,
  async () => {
    const output = join(temporary(), "seeds");
    const seeds = ["--method", "lora", "--seeds", "0,3", "--output", output];
    const { code, stderr } = await milora(flags(...seeds, "--set", "max_steps=100000", "--set", "epochs=100000"), {
      interruptAt: "seed-3: ",
    });
    expect(code).toBe(130);
    expect(stderr).toMatch(
      /\nerror: interrupted seed-0 after step (\d+) of 100000, seed-3 after step \1 of 100000; --resume goes on from there\n$/,
    );
    expect(readdirSync(output).sort()).toEqual(["seed-0", "seed-3"]);

    const fresh = join(temporary(), "seeds");
    const done = await milora(flags("--method", "lora", "--seeds", "0,3", "--output", fresh, "--json"));
    expect(done.code).toBe(0);
    expect(JSON.parse(done.stdout)).toMatchObject([
      { directory: join(fresh, "seed-0"), steps: 4, stoppedBecause: "finished" },
      { directory: join(fresh, "seed-3"), steps: 4, stoppedBecause: "finished" },
    ]);
    for (const seed of [0, 3]) {
      const run = join(fresh, `seed-${seed}`);
      expect(readdirSync(run)).toContain("report.html");
      expect(JSON.parse(readFileSync(join(run, "config.json"), "utf8"))).toMatchObject({ seed, output_dir: run });
    }
    const again = await milora(["train", "--resume", "--seeds", "0,3", "--output", fresh]);
    expect(again.code).toBe(0);
    expect(again.stdout).toContain("seed-3: finished after 4 of 4 steps");
  },
);

test("several configs below one --output; one that fails is told at the end, the others are done", SLOW, async () => {
  const directory = temporary();
  const files = ["good", "bad"].map((name) => join(directory, `${name}.yaml`));
  writeFileSync(files[0]!, "method: lora\n");
  writeFileSync(files[1]!, "method: milora\nlr: 1.0e+30\nwarmup_ratio: 0\n");
  const output = join(directory, "both");
  const configs = files.flatMap((file) => ["--config", file]);
  const { code, stdout, stderr } = await milora(flags(...configs, "--output", output, "--json"));
  expect(code).toBe(1);
  expect(JSON.parse(stdout)).toMatchObject([
    { directory: join(output, "good"), steps: 4 },
    { directory: join(output, "bad"), error: { code: "TRAINING_NOT_FINITE" } },
  ]);
  expect(stderr).toMatch(/error: 1 of 2 runs failed: bad: step \d: .* is (NaN|Infinity|-Infinity)/);

  const same = ["--config", files[0]!, "--config", files[0]!, "--output", join(directory, "same")];
  const refused = await milora(flags(...same));
  expect(refused.code).toBe(2);
  expect(refused.stderr).toMatch(/config 2: output_dir .* is that of config 1, too/);
  expect(existsSync(join(directory, "same"))).toBe(false);

  const seeds = await milora(flags("--method", "lora", "--seeds", "1,x", "--output", join(directory, "x")));
  expect(seeds.code).toBe(2);
  expect(seeds.stderr).toContain("whole numbers separated by commas");
});
