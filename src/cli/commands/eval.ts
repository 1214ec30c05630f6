/** @file `milora eval`: a model's score on tasks, on labelled rows of a file, or perplexity. */
import { type Command, Option } from "commander";
import { InputError } from "../../base/index.ts";
import { PROTOCOLS } from "../../evaluation/index.ts";
import type { EvalFlags } from "../eval/flags.ts";
import {
  adapterFlag,
  examples,
  integer,
  jsonFlag,
  modelFlag,
  needed,
  templateFlag,
  threadsFlag,
  weightsFlag,
} from "../flags.ts";

export function configure(command: Command): void {
  const tasksOf = (command: Command) => command.getOptionValue("tasks") as string | undefined;
  const data = new Option(
    "--data <file>",
    "rows with instruction, output and answer; or with --tasks, the rows of that task",
  );
  examples(
    command
      .addOption(modelFlag((command) => tasksOf(command) !== "list"))
      .addOption(adapterFlag())
      .option("--tasks <names>", "tasks or groups, separated by commas; list shows them all")
      .addOption(new Option("--protocol <name>", "how tasks are asked and marked; default hu2023").choices(PROTOCOLS))
      .addOption(needed(data, (command) => tasksOf(command) === undefined))
      .option("--data-dir <dir>", "directory with the tasks' data; default what is bundled, else the Hugging Face hub")
      .option("--num-fewshot <n>", "solved questions in front (default: the task's own number)", integer(0))
      .option("--limit <n>", "only the first n rows of each task", integer(1))
      .option("--beams <n>", "beams of the search; 1 is greedy, the paper uses 3", integer(1), 1)
      .option("--max-new-tokens <n>", "longest answer (default: the task's own; 32 for --data)", integer(1))
      .option("--batch-size <n>", "sequences that are answered together (default: 8)", integer(1))
      .option("--seed <n>", "of drawing shots, and of the bootstrap", integer(0), 1234)
      .addOption(
        new Option("--metric <name>", "of --data: accuracy of generated answers, or perplexity of the outputs")
          .choices(["accuracy", "perplexity"])
          .default("accuracy"),
      )
      .addOption(templateFlag())
      .option("--train <files...>", "training rows to look for the questions in (default: those of the adapter's run)")
      .option("--no-overlap", "do not look for the questions in training rows")
      .option("--output <path>", "tasks: a directory for results and rows, which goes on where it was; --data: a file")
      .addOption(weightsFlag())
      .addOption(threadsFlag())
      .addOption(jsonFlag())
      .action(evaluate),
    [
      "milora eval --tasks list",
      "milora eval --model assets/tiny-llama --tasks arc_easy,piqa --protocol lm-eval --data-dir assets/data/samples",
      "milora eval --model DIR --adapter runs/boolq/best --tasks boolq --beams 3 --output runs/boolq/eval",
      "milora eval --model assets/tiny-llama --adapter runs/demo/subjects-milora/best --data assets/data/subjects/test.jsonl",
      "milora eval --model DIR --data rows.jsonl --beams 3 --limit 100 --json",
    ],
  );
}

async function evaluate(flags: EvalFlags): Promise<void> {
  if (flags.tasks !== undefined) {
    const { evaluateTasks } = await import("../eval/tasks.ts");
    await evaluateTasks(flags, flags.tasks);
    return;
  }
  const forTasks = (["protocol", "dataDir", "numFewshot"] as const).filter((name) => flags[name] !== undefined);
  if (forTasks.length) {
    const names = forTasks.map((name) => `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`);
    throw new InputError("FLAG_INVALID", names.join(", "), "needs --tasks");
  }
  const { evaluateRows } = await import("../eval/rows.ts");
  await evaluateRows(flags, flags.data!);
}
