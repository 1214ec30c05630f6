/** @file `milora reproduce`: the paper's tables and figures, planned, run as far as they are missing, and reported. */
import { type Command, Option } from "commander";
import { MiloraError } from "../../base/index.ts";
import {
  costOf,
  findPreset,
  findStudies,
  judgingOfPlan,
  loadStudies,
  measurePace,
  openCells,
  openWorld,
  planOf,
  reportOf,
  runPlan,
} from "../../evaluation/index.ts";
import { configureRuntime, type DeviceName, requireDevice } from "../../runtime/index.ts";
import { type PaperSpec, presetOfSpec, RETRY_SECONDS } from "../../serving/index.ts";
import { collect, deviceFlag, examples, integer, jsonFlag, threadsFlag } from "../flags.ts";
import { onInterrupt } from "../interrupt.ts";
import { confirmCost, costText } from "../judge/confirm.ts";
import { addJudgeFlags, type JudgeFlags, judgeOf } from "../judge/flags.ts";
import { follow } from "../reproduce/follow.ts";
import { openQueue, type QueueFlags, reporting, runQueued } from "../reproduce/queue.ts";
import { planJson, planText, resultsText } from "../reproduce/show.ts";
import { writeReports } from "../reproduce/write.ts";
import { databaseFlag } from "../sweeps/flags.ts";
import { note, print, printJson } from "../terminal.ts";

interface Flags extends JudgeFlags, QueueFlags {
  readonly queue?: boolean;
  readonly preset: string;
  readonly model?: string;
  readonly backbone?: readonly string[];
  readonly device?: DeviceName;
  readonly dataDir?: string;
  readonly output?: string;
  readonly seeds?: number;
  readonly plan?: boolean;
  readonly json?: boolean;
}

export async function configure(command: Command): Promise<void> {
  const studies = await loadStudies();
  const list = studies.map(({ name, title }) => `  ${name.padEnd(7)} ${title.replace(/^[^:]*: /, "")}`).join("\n");
  command
    .argument("<names...>", "tables and figures, or all")
    .option("--preset <name>", "paper, small or smoke: how much of everything", "small")
    .option("--model <dir>", "another backbone than the preset's")
    .addOption(new Option("--backbone <dir>", "a backbone for table 7; may be repeated").argParser(collect))
    .option("--data-dir <dir>", "data of the tasks; without it what is bundled, else the Hugging Face hub")
    .option("--output <dir>", "adapters, outputs and reports (default: runs/reproduce-<preset>)")
    .option("--seeds <n>", "seeds instead of the preset's number", integer(1))
    .option("--plan", "only say what would be done, and what it would cost")
    .addOption(deviceFlag())
    .addOption(threadsFlag())
    .addOption(jsonFlag())
    .addHelpText("after", `\nTables and figures:\n${list}`)
    .optionsGroup("Work shared among processes and machines:")
    .option("--queue", "have workers do it, by jobs in a database; without one, processes of this command")
    .addOption(databaseFlag())
    .addOption(new Option("--concurrency <n>", "jobs that are done here at a time").argParser(integer(1)))
    .addOption(new Option("--retries <n>", "attempts after the first before a job is given up").argParser(integer(0)))
    .addOption(
      new Option("--retry-delay <seconds>", "until the second attempt, and twice as long before each further one")
        .argParser(integer(1))
        .default(RETRY_SECONDS),
    )
    .optionsGroup("The model that judges MT-Bench in table 3:");
  examples(addJudgeFlags(command).action(reproduce), [
    "milora reproduce all --plan",
    "milora reproduce table1 fig4 --preset small",
    "milora reproduce all --preset paper --model models/llama-2-7b --data-dir data --output runs/paper",
    "milora reproduce all --queue --database postgres://milora:secret@db:5432/milora --output /shared/small",
    "milora reproduce table3 --judge-url https://api.openai.com/v1 --judge-model gpt-4o --judge-prices 2.5,10",
  ]);
}

/** What is asked for, as other machines may be told. */
function specOf(
  names: readonly string[],
  { preset, model, backbone, device, dataDir, seeds, judgeUrl }: Flags,
): PaperSpec {
  return {
    names: [...names],
    preset: findPreset(preset).name,
    changes: {
      ...(model !== undefined && { model }),
      ...(backbone !== undefined && { backbones: [...backbone] }),
      ...(device !== undefined && { device }),
      ...(dataDir !== undefined && { dataDirectory: dataDir }),
      ...(seeds !== undefined && { seeds }),
      ...(judgeUrl !== undefined && { judged: true }),
    },
  };
}

async function reproduce(names: readonly string[], flags: Flags): Promise<void> {
  const spec = specOf(names, flags);
  const preset = presetOfSpec(spec);
  const judge = judgeOf(flags);
  await findStudies(names); // before anything is opened
  if (flags.device && !flags.queue) requireDevice(flags.device); // that of a queue is its workers'
  if (flags.threads !== undefined) configureRuntime({ threads: flags.threads });
  const output = flags.output ?? `runs/reproduce-${preset.name}`;
  using interrupt = onInterrupt("saving; the same command goes on from here …");
  const { signal } = interrupt;
  await using queue = flags.queue && !flags.plan ? await openQueue(output, flags) : undefined;
  using world = openWorld(preset, output, judge);
  const plan = await planOf(names, preset, world);
  const say = flags.json ? note : print;
  // Of the smallest preset a trial would take as long as the thing itself.
  const measured = openCells(plan).length > 0 && (flags.plan || (preset.name !== "smoke" && !flags.queue));
  const cost = costOf(plan, measured ? await measurePace(plan, world, signal) : undefined);
  const judging = await judgingOfPlan(plan, world, flags.judgePrices);
  const price = judging ? costText(judging, flags.judgePrices, true) : [];
  if (flags.plan) {
    if (flags.json) printJson({ ...planJson(plan, cost), judging: judging ?? null });
    else print([planText(plan, cost), ...price.map((line) => `judge: ${line}`)].join("\n"));
    return;
  }
  say(planText(plan, cost));
  if (judge && judging) {
    const who = `${judge.endpoint.model} at ${judge.endpoint.url}`;
    if (!(await confirmCost(who, price, judging.calls, flags, "nothing was begun", signal))) return;
  }
  say("");
  const { failures } = await runAll();
  const report = reportOf(plan, world.store, failures);
  const page = writeReports(output, report);
  if (flags.json) printJson({ report: page, ...report });
  else print(`\n${resultsText(report)}\n\n${page}`);
  if (failures.length === 0) return;
  const [first] = failures;
  const more = failures.length > 1 ? `, and ${failures.length - 1} more` : "";
  const message = `${first!.label} failed: ${first!.reason}${more}; ${page} has all others, and the same command tries again`;
  throw new MiloraError("CELLS_FAILED", message, { exitCode: 1 });

  async function runAll() {
    using progress = follow(plan);
    try {
      const options = { signal, onEvent: progress.onEvent };
      const report = () => writeReports(output, reportOf(plan, world.store, []));
      if (queue) return await runQueued(plan, world, queue, spec, flags, reporting(options, report));
      return await runPlan(plan, world, options);
    } catch (error) {
      // Interrupted: what is finished is reported all the same.
      if (signal.aborted) note(`so far: ${writeReports(output, reportOf(plan, world.store, []))}`);
      throw error;
    }
  }
}
