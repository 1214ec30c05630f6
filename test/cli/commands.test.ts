/** @file Holds every `milora …` in the documents and the help to the command line as it is. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { buildProgram, COMMAND_NAMES } from "../../src/cli/program.ts";
import { milora, root } from "./milora.ts";

/** Command lines of milora in ```sh blocks, as argument lists. */
function commandsOf(markdown: string): string[][] {
  const blocks = [...markdown.matchAll(/^```sh[^\n]*\n(.*?)^```/gms)].map((match) => match[1]!);
  const joined = blocks.map((block) =>
    block.replace(/\\\n/g, " ").replace(/"[^"]*"/g, (quoted) => quoted.replaceAll("\n", " ")),
  );
  return joined.flatMap((block) => block.split("\n")).flatMap(miloraArguments);
}

/** The arguments of each milora call in one line of shell: quotes, pipes, redirections and comments are understood. */
function miloraArguments(line: string): string[][] {
  const words = [...line.matchAll(/"((?:[^"\\]|\\.)*)"|'([^']*)'|(#.*$)|([^\s"']+)/g)]
    .filter((match) => match[3] === undefined)
    .map((match) => match[1] ?? match[2] ?? match[4]!);
  const calls: string[][] = [[]];
  let redirected = false; // the next word is a file's name
  for (const word of words) {
    if (["|", "&&", ";"].includes(word)) calls.push([]);
    else if (!redirected && !/^(\d?>>?|<)$/.test(word)) calls.at(-1)!.push(word);
    redirected = /^(\d?>>?|<)$/.test(word);
  }
  return calls.flatMap((call) => {
    const at = call.findIndex((word) => word === "milora" || word.endsWith("dist/cli/main.js"));
    return at >= 0 && at <= 1 ? [call.slice(at + 1)] : [];
  });
}

/** Parses with the command's action taken out. */
async function parses(argv: readonly string[]): Promise<void> {
  const program = await buildProgram(argv);
  const silence = { writeErr: () => {}, writeOut: () => {} };
  program.configureOutput(silence);
  for (const command of program.commands.flatMap((command) => [command, ...command.commands])) {
    command.configureOutput(silence).action(() => {});
  }
  await program.parseAsync(argv, { from: "user" });
}

test("command lines are found and wrong ones are noticed", async () => {
  const markdown =
    '```sh\nnpm ci\nmilora demo > out.txt # all\nprintf "a b" | npx milora generate --model x --prompt "c \\"d\\"" \\\n  --json\n```';
  expect(commandsOf(markdown)).toEqual([["demo"], ["generate", "--model", "x", "--prompt", 'c \\"d\\"', "--json"]]);
  await expect(parses(["demo", "--nonsense"])).rejects.toThrow("unknown option '--nonsense'");
  await expect(parses(["eval", "--data", "x"])).rejects.toThrow("needs --model");
});

const documents = [
  "README.md",
  "CONTRIBUTING.md",
  "examples/README.md",
  ...markdownIn("docs"),
  ...markdownIn("docs/guides"),
];

function markdownIn(folder: string): string[] {
  return readdirSync(join(root, folder))
    .filter((file) => file.endsWith(".md"))
    .map((file) => `${folder}/${file}`);
}

test("every command in the documents parses", async () => {
  for (const document of documents) {
    for (const argv of commandsOf(readFileSync(join(root, document), "utf8"))) {
      await expect(parses(argv), `${document}: milora ${argv.join(" ")}`).resolves.toBeUndefined();
    }
  }
});

/** Command lines between words: `milora x --flag`. What only names a command need not have all that it takes. */
function inlineCommandsOf(markdown: string): string[][] {
  const prose = markdown.replaceAll(/^```.*?^```/gms, "");
  return [...prose.matchAll(/`((?:npx )?milora [^`]+)`/g)].flatMap(([, line]) =>
    miloraArguments(line!.replaceAll("\n", " ")),
  );
}

/** A command that is not whole is right as far as it goes; `--help`, and NAME for any name, are no mistakes. */
const UNFINISHED = /missing required argument|argument missing|needs --|needs an? |\(outputHelp\)|argument 'NAME' is/;

test("every command that prose names is there, with its flags", async () => {
  let found = 0;
  const wrong: string[] = [];
  for (const document of [...documents, "CHANGELOG.md"]) {
    for (const argv of inlineCommandsOf(readFileSync(join(root, document), "utf8"))) {
      found++;
      const problem = await parses(argv).then(() => undefined, String);
      if (problem && !UNFINISHED.test(problem)) wrong.push(`${document}: milora ${argv.join(" ")}: ${problem}`);
    }
  }
  expect(wrong).toEqual([]);
  expect(found).toBeGreaterThan(50);
  expect(inlineCommandsOf("a `milora serve\n--port 1` and `miloras`")).toEqual([["serve", "--port", "1"]]);
});

test.each(COMMAND_NAMES)("docs/cli.md names every flag of %s", async (name) => {
  const sections = readFileSync(join(root, "docs/cli.md"), "utf8").split(/^## /m);
  const section = sections.filter((text) => new RegExp(`^.*milora ${name}\\b`).test(text)).join("");
  const program = await buildProgram([name]);
  const command = program.commands.find((command) => command.name() === name)!;
  const flags = [command, ...command.commands].flatMap(({ options }) => options.filter(({ hidden }) => !hidden));
  // `--json` is every command's; the judge's flags are told of once, at eval.
  const general = name === "reproduce" ? /^--(json|judge-.*)$/ : /^--json$/;
  const missing = flags.filter(({ long }) => !general.test(long!) && !new RegExp(`${long}\\b(?!-)`).test(section));
  expect(missing.map(({ long }) => long)).toEqual([]);
});

test("README.md and docs/cli.md show commands", () => {
  for (const document of ["README.md", "docs/cli.md"]) {
    expect(commandsOf(readFileSync(join(root, document), "utf8")).length).toBeGreaterThan(2);
  }
});

test.each(COMMAND_NAMES)("the examples in the help of %s parse", async (name) => {
  const { stdout } = await milora([name, "--help"]);
  const lines = [...stdout.replace(/\\\n/g, " ").matchAll(/^ {2}\$ (.+)$/gm)].flatMap((match) =>
    miloraArguments(match[1]!),
  );
  expect(lines.length).toBeGreaterThan(0);
  for (const argv of lines) await parses(argv);
});

test("README.md's library example is part of examples/train-and-generate.ts", () => {
  const block = /^```ts\n(.*?)^```/ms.exec(readFileSync(join(root, "README.md"), "utf8"))?.[1];
  expect(block).toBeDefined();
  const example = readFileSync(join(root, "examples/train-and-generate.ts"), "utf8")
    .split("\n")
    .map((line) => line.trim());
  const lines = block!
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line && !line.startsWith("//"));
  expect(lines.filter((line) => !example.includes(line))).toEqual([]);
});
