/** @file `milora eval`: a model's score on tasks, on labelled rows of a file, or perplexity. */
import { type Command, Option } from "commander";
import { InputError } from "../../base/index.ts";
import { PROTOCOLS } from "../../evaluation/index.ts";
import { CONVERSATION_FLAGS, type EvalFlags, flagNames } from "../eval/flags.ts";
import {
  adapterFlag,
  deviceFlag,
  examples,
  integer,
  jsonFlag,
  modelFlag,
  needed,
  threadsFlag,
  weightsFlag,
} from "../flags.ts";
import { addJudgeFlags } from "../judge/flags.ts";

export function configure(command: Command): void {
  const tasksOf = (command: Command) => command.getOptionValue("tasks") as string | undefined;
  const data = new Option(
    "--data <file>",
    "rows with instruction, output and answer; or with --tasks, the rows of that task",
  );
  command
    .addOption(modelFlag((command) => tasksOf(command) !== "list" && command.getOptionValue("answers") === undefined))
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
    .option(
      "--template <name|file>",
      "how a row becomes a prompt: alpaca (default), chat, none, or a Jinja file; for conversations see docs/evaluation.md",
    )
    .option("--train <files...>", "training rows to look for the questions in (default: those of the adapter's run)")
    .option("--no-overlap", "do not look for the questions in training rows")
    .option("--output <path>", "tasks: a directory for results and rows, which goes on where it was; --data: a file")
    .addOption(weightsFlag())
    .addOption(threadsFlag())
    .addOption(deviceFlag())
    .addOption(jsonFlag())
    .optionsGroup("Conversations (mt_bench), and the model that judges them:")
    .option("--greedy", "always the likeliest tokens, instead of FastChat's temperatures")
    .addOption(
      new Option(
        "--answers <path>",
        "judge these answers, an output directory or FastChat's file, and no model",
      ).conflicts(["model", "adapter", "data"]),
    )
    .option("--judge-baseline <path>", "compare with these answers, in both orders, instead of rating")
    .option("--judge-references <file>", "reference answers to questions of your own, in FastChat's form");
  examples(addJudgeFlags(command).action(evaluate), [
    "milora eval --tasks list",
    "milora eval --model assets/tiny-llama --tasks arc_easy,piqa --protocol lm-eval --data-dir assets/data/samples",
    "milora eval --model DIR --adapter runs/boolq/best --tasks boolq --beams 3 --output runs/boolq/eval",
    "milora eval --model assets/tiny-llama --adapter runs/demo/subjects-milora/best --data assets/data/subjects/test.jsonl",
    "milora eval --model DIR --data rows.jsonl --beams 3 --limit 100 --json",
    "milora eval --model DIR --adapter runs/a/best --tasks mt_bench --output runs/a/mt_bench",
    "milora eval --tasks mt_bench --answers runs/a/mt_bench --judge-url https://api.openai.com/v1 --judge-model gpt-4o --judge-prices 2.5,10",
    "milora eval --tasks mt_bench --answers runs/a/mt_bench --judge-baseline runs/b/mt_bench --judge-url http://localhost:8000/v1 --judge-model NAME --yes",
  ]);
}

async function evaluate(flags: EvalFlags): Promise<void> {
  if (flags.tasks !== undefined) {
    const { evaluateTasks } = await import("../eval/tasks.ts");
    await evaluateTasks(flags, flags.tasks);
    return;
  }
  const forTasks = flagNames(flags, ["protocol", "dataDir", "numFewshot", ...CONVERSATION_FLAGS]);
  if (forTasks.length) throw new InputError("FLAG_INVALID", forTasks.join(", "), "needs --tasks");
  const { evaluateRows } = await import("../eval/rows.ts");
  await evaluateRows(flags, flags.data!);
}
