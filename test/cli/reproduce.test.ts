/** @file `milora reproduce` as a command: plans, runs, reports, interruptions and failures. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { milora, root, temporary } from "./milora.ts";

interface Planned {
  readonly cost: { readonly runs: number; readonly cells: number; readonly cellsDone: number; readonly tokens: number };
  readonly cells: readonly { readonly id: string; readonly state: string }[];
  readonly problems: readonly string[];
}

/** The first rows of the bundled tasks: whoever reads all of them is slow. */
function fewRows(): string {
  const directory = temporary();
  for (const task of ["subjects", "authors"]) {
    mkdirSync(join(directory, task));
    for (const split of ["train", "dev", "test"]) {
      const name = join(task, `${split}.jsonl`);
      const lines = readFileSync(join(root, "assets/data", name), "utf8").split("\n");
      writeFileSync(join(directory, name), `${lines.slice(0, 12).join("\n")}\n`);
    }
  }
  return directory;
}

const smoke = (output: string, data: string, ...args: string[]) => {
  const flags = ["--preset", "smoke", "--seeds", "1", "--data-dir", data, "--output", output];
  return ["reproduce", ...args, ...flags];
};

test("plans, runs, and finds all of it done", async () => {
  const [output, data] = [temporary(), fewRows()];
  const plan = JSON.parse((await milora(smoke(output, data, "fig4", "--plan", "--json"))).stdout) as Planned;
  expect(plan.cost).toMatchObject({ runs: 2, cells: 2, cellsDone: 0 });
  expect(plan.cost.tokens).toBeGreaterThan(100);
  expect(existsSync(join(output, "cells"))).toBe(false);

  const { code, stdout } = await milora(smoke(output, data, "fig4", "--json"));
  expect(code).toBe(0);
  const report = JSON.parse(stdout) as { report: string; studies: { name: string; done: number }[] };
  expect(report.studies).toMatchObject([{ name: "fig4", done: 2 }]);
  const html = readFileSync(report.report, "utf8");
  expect(html).toContain('aria-label="subjects: accuracy, percent"');
  expect(html).toContain("adapter.router_input");
  expect(html).not.toContain("<script");
  expect(readFileSync(join(output, "fig4-subjects.svg"), "utf8")).toMatch(
    /^<svg xmlns="http:\/\/www.w3.org\/2000\/svg" /,
  );
  expect(readFileSync(join(output, "fig4.csv"), "utf8").split("\r\n")).toHaveLength(4);
  for (const { id } of plan.cells) expect(existsSync(join(output, "cells", `${id}.json`))).toBe(true);

  const again = await milora(smoke(output, data, "fig4"));
  expect(again.code).toBe(0);
  expect(again.stderr).toBe(""); // nothing was trained or measured
  expect(again.stdout).toContain("Figure 4: load balance: Accuracy");
});

test("Ctrl-C leaves what is finished, and a report of it", async () => {
  const [output, data] = [temporary(), fewRows()];
  const { code, stderr } = await milora(smoke(output, data, "fig4"), { interruptAt: "[1/4] trained" });
  expect(code).toBe(130);
  expect(stderr).toContain("so far: ");
  const plan = JSON.parse((await milora(smoke(output, data, "fig4", "--plan", "--json"))).stdout) as Planned;
  expect(plan.cost.runs).toBe(1);
});

test("speed is measured in processes of their own", async () => {
  const [output, data] = [temporary(), fewRows()];
  expect((await milora(smoke(output, data, "table4"))).code).toBe(0);
  const [head, ...lines] = readFileSync(join(output, "table4.csv"), "utf8").trim().split("\r\n");
  expect(head).toMatch(/^method,beams,speed,/);
  expect(lines.map((line) => line.split(",").slice(0, 2).join(" "))).toEqual(
    ["LoRA", "DoRA", "MOELoRA", "MiLoRA"].flatMap((method) => [`${method} 1`, `${method} 3`]),
  );
  for (const line of lines) expect(Number(line.split(",")[2])).toBeGreaterThan(0);
}, 120_000); // eight processes

test("a table of other backbones without any says how to fill it, everywhere that it would stand", async () => {
  const [output, data] = [temporary(), fewRows()];
  const { code, stdout } = await milora(smoke(output, data, "table7"));
  expect(code).toBe(0);
  const fill = "milora reproduce table7 --backbone DIR";
  expect(stdout).toContain(fill);
  for (const name of ["report.html", "report.md", "table7.md"]) {
    const text = readFileSync(join(output, name), "utf8");
    expect(text, name).toContain(fill);
    expect(text, name).not.toMatch(/\| method|>method</);
  }
});

test("a backbone that is not there fails alone, with exit code 1", async () => {
  const [output, data] = [temporary(), fewRows()];
  const args = smoke(output, data, "table7", "table6", "--backbone", join(output, "none"));
  const { code, stderr, stdout } = await milora(args);
  expect(code).toBe(1);
  expect(stderr).toMatch(/error: MOELoRA · subjects · seed 0 · none failed: .*no such model directory/);
  expect(stdout).toMatch(/^subjects +12 /m);
});

test("unknown tables and presets are refused with the nearest name", async () => {
  const table = await milora(["reproduce", "tabel1", "--plan"]);
  expect(table).toMatchObject({ code: 2, stdout: "" });
  expect(table.stderr).toContain('no table or figure "tabel1", did you mean "table1"?');
  const preset = await milora(["reproduce", "table1", "--preset", "papper", "--plan"]);
  expect(preset.code).toBe(2);
  expect(preset.stderr).toContain('no preset "papper", did you mean "paper"?');
});
