/** @file Tests of help, flags and the shape of errors at the command line. */
import { describe, expect, test } from "vitest";
import { COMMAND_NAMES } from "../../src/cli/program.ts";
import { milora, tiny } from "./milora.ts";

test("--help and --version", async () => {
  const help = await milora(["--help"]);
  expect(help.code).toBe(0);
  for (const name of COMMAND_NAMES) expect(help.stdout).toMatch(new RegExp(`^  ${name} `, "m"));
  expect(await milora(["--version"])).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) });
});

test.each(COMMAND_NAMES)("milora %s --help has examples and --json", async (name) => {
  const { code, stdout, stderr } = await milora([name, "--help"]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toContain(`Usage: milora ${name} `);
  expect(stdout).toContain("--json");
  expect(stdout).toMatch(/Examples:\n {2}\$ milora /);
});

test("milora train --help documents every setting", async () => {
  const { stdout } = await milora(["train", "--help"]);
  for (const line of ["  lr [0.0001]", '  data.template ["alpaca"]', "  patience [10]"]) expect(stdout).toContain(line);
});

test("no command shows the help and is an error", async () => {
  const { code, stderr } = await milora([]);
  expect(code).toBe(2);
  expect(stderr).toContain("Usage: milora");
});

describe("what is not understood is one line on stderr, exit code 2", () => {
  test.each([
    [["trian"], "error: unknown command 'trian' (Did you mean train?)"],
    [["eval", "--modle", tiny], "error: unknown option '--modle' (Did you mean --model?)"],
    [["generate", "--prompt", "x"], "error: generate: needs --model"],
    [["generate", "--model"], "error: option '--model <dir>' argument missing"],
    [
      ["generate", "--model", tiny, "surplus"],
      "error: too many arguments for 'generate'. Expected 0 arguments but got 1.",
    ],
    [
      ["generate", "--model", tiny, "--prompt", "a", "--chat", "b"],
      "error: option '--prompt <text>' cannot be used with option '--chat <text>'",
    ],
    [
      ["eval", "--model", tiny, "--data", "x", "--beams", "1.5"],
      "error: option '--beams <n>' argument '1.5' is invalid. It must be a whole number of at least 1.",
    ],
    [
      ["generate", "--model", tiny, "--top-p", "2"],
      "error: option '--top-p <p>' argument '2' is invalid. It must be a number of at least 0 and at most 1.",
    ],
    [
      ["logits", "--model", tiny, "--tokens", "1,x"],
      "error: option '--tokens <ids>' argument '1,x' is invalid. It must be token ids separated by commas, e.g. 1,5,77.",
    ],
    [
      ["eval", "--model", tiny, "--data", "x", "--metric", "f1"],
      "error: option '--metric <name>' argument 'f1' is invalid. Allowed choices are accuracy, perplexity.",
    ],
    [["eval", "--json"], "error: eval: needs --model, --data"],
    [["inspect"], "error: inspect: needs --adapter, --shape or --model"],
    [["inspect", "--shape", "llama-2-7b", "--method", "lorra"], "error: "],
    [["inspect", "--adapter", "x", "--data", "y"], "error: --data: needs --adapter and --model"],
    [["train", "--method", "lora"], "error: train: needs --model, --train, --output"],
    [["generate", "--model", tiny, "--prompt", ""], "error: prompt: is empty"],
    [
      ["generate", "--model", tiny, "--prompt", "a", "--route"],
      "error: --route: needs an --adapter of a method that routes, such as milora",
    ],
  ])("milora %j", async (args, line) => {
    const { code, stdout, stderr } = await milora(args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr.startsWith(line)).toBe(true);
    expect(stderr.trimEnd()).not.toContain("\n");
  });
});

test("MILORA_DEBUG=1 adds the stack, and only then", async () => {
  const args = ["logits", "--model", "no/such/model", "--tokens", "1"];
  expect((await milora(args)).stderr).not.toMatch(/^ +at /m);
  expect((await milora(args, { env: { MILORA_DEBUG: "1" } })).stderr).toMatch(/^ +at /m);
});
