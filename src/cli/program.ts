/** @file The command line as a whole: which commands there are, how errors become one line and an exit code. */
import { Command, CommanderError } from "commander";
import { MiloraError, reasonOf, version } from "../base/index.ts";
import { checkNeeded } from "./flags.ts";
import { oneLine, paint } from "./terminal.ts";

/** What a file in commands/ exports. */
export interface CommandModule {
  /** Adds flags, help and action to the command. */
  configure(command: Command): void | Promise<void>;
}

/** In the order of the help. A command's file is loaded only when it is called, so that `--help` is quick. */
const COMMANDS: Record<string, { summary: string; load(): Promise<CommandModule> }> = {
  demo: {
    summary: "train two tenants' adapters on the bundled model and compare bare, LoRA and MiLoRA",
    load: () => import("./commands/demo.ts"),
  },
  train: { summary: "fine-tune an adapter", load: () => import("./commands/train.ts") },
  config: {
    summary: "check a training config, or print the schema of all of them",
    load: () => import("./commands/config.ts"),
  },
  generate: { summary: "write a continuation or an answer", load: () => import("./commands/generate.ts") },
  serve: {
    summary: "answer many tenants' requests over HTTP, each under its own adapter",
    load: () => import("./commands/serve.ts"),
  },
  studio: {
    summary: "show training runs, grids and reproductions in the browser",
    load: () => import("./commands/studio.ts"),
  },
  bench: {
    summary: "measure what this machine takes for a server's work",
    load: () => import("./commands/bench.ts"),
  },
  plan: {
    summary: "tell what servers would do under some traffic, and how many it takes",
    load: () => import("./commands/plan.ts"),
  },
  tenants: {
    summary: "make, list, change and remove the tenants of a server",
    load: () => import("./commands/tenants.ts"),
  },
  keys: {
    summary: "make, list and revoke keys of tenants and administrators",
    load: () => import("./commands/keys.ts"),
  },
  database: {
    summary: "move a server's database between a directory and PostgreSQL",
    load: () => import("./commands/database.ts"),
  },
  usage: { summary: "show how many requests and tokens were used", load: () => import("./commands/usage.ts") },
  eval: { summary: "measure accuracy and perplexity on labelled rows", load: () => import("./commands/eval.ts") },
  reproduce: {
    summary: "run the paper's tables and figures and set our numbers beside its own",
    load: () => import("./commands/reproduce.ts"),
  },
  sweep: {
    summary: "train and measure grids of settings, here or on many machines",
    load: () => import("./commands/sweep.ts"),
  },
  worker: { summary: "do jobs of grids on this machine", load: () => import("./commands/worker.ts") },
  inspect: { summary: "show what an adapter holds, or count parameters", load: () => import("./commands/inspect.ts") },
  methods: {
    summary: "list the methods and count their parameters",
    load: () => import("./commands/methods.ts"),
  },
  adapters: {
    summary: "merge adapters into their backbone, export them, install them for a server",
    load: () => import("./commands/adapters.ts"),
  },
  model: {
    summary: "fetch, look at and prepare models",
    load: () => import("./commands/model.ts"),
  },
  report: { summary: "draw a training run as one page", load: () => import("./commands/report.ts") },
  logits: {
    summary: "print logits, log-probabilities and routes of tokens",
    load: () => import("./commands/logits.ts"),
  },
};

export const COMMAND_NAMES: readonly string[] = Object.keys(COMMANDS);

/**
 * Runs one command line.
 *
 * @param argv without `node` and the script
 * @returns the exit code: 0, 1 unexpected failure, 2 bad input, 130 interrupted
 */
export async function run(argv: readonly string[]): Promise<number> {
  try {
    await (await buildProgram(argv)).parseAsync(argv, { from: "user" });
    return 0;
  } catch (error) {
    return report(error);
  }
}

/** The program for one command line, ready to parse it. */
export async function buildProgram(argv: readonly string[]): Promise<Command> {
  const program = new Command("milora")
    .description("Mixtures of LoRA experts chosen by the prompt: train, use, measure and inspect adapters.")
    .version(version, "-V, --version")
    .exitOverride()
    .configureOutput({
      outputError: (text, write) =>
        write(`${oneLine(text).replace(/^error:/, paint("red", "error:", process.stderr))}\n`),
      getOutHasColors: () => false,
      getErrHasColors: () => false,
    })
    .hook("preAction", (_, command) => checkNeeded(command))
    .addHelpText("after", "\nFirst steps:\n  $ milora demo\n  $ milora train --help");
  for (const [name, { summary, load }] of Object.entries(COMMANDS)) {
    const command = program
      .command(name)
      .summary(summary)
      .description(`${summary[0]!.toUpperCase()}${summary.slice(1)}.`);
    if (argv.slice(0, 2).includes(name)) await (await load()).configure(command); // `milora train …` and `milora help train`
  }
  return program;
}

function report(thrown: unknown): number {
  // Disposing may fail in the wake of an error; the first one is what the user must hear of.
  const error = thrown instanceof Error && "suppressed" in thrown ? thrown.suppressed : thrown;
  if (error instanceof CommanderError) {
    // Commander has already printed its line. 0: help or version was asked for.
    return error.exitCode === 0 ? 0 : 2;
  }
  const known = error instanceof MiloraError;
  const message = known ? error.message : `${reasonOf(error)} (unexpected; MILORA_DEBUG=1 shows where)`;
  process.stderr.write(`${paint("red", "error:", process.stderr)} ${oneLine(message)}\n`);
  if (process.env.MILORA_DEBUG && error instanceof Error) process.stderr.write(`${error.stack}\n`);
  return known ? error.exitCode : 1;
}
