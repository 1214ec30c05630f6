/** @file `milora sweep`: grids of trainings and evaluations: run, started for workers, how they stand, what they gave. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Command, Option } from "commander";
import { InputError, MiloraError } from "../../base/index.ts";
import { gridResults, readIndex } from "../../evaluation/index.ts";
import { RETRIES, RETRY_SECONDS, type SweepFacts, type Sweeps } from "../../serving/index.ts";
import { examples, integer, jsonFlag, needed, threadsFlag } from "../flags.ts";
import { databaseFlag, findNamed, type SweepFlags } from "../sweeps/flags.ts";
import { type GridFlags, resultsAt, runGridFile, show } from "../sweeps/grid.ts";
import { cellsText, paceText, sweepText, workersText } from "../sweeps/show.ts";
import { print, printJson } from "../terminal.ts";

interface Flags extends SweepFlags {
  readonly json?: boolean;
}

const NAME = "its id, the beginning of it, or its directory";

export function configure(command: Command): void {
  examples(command, [
    "milora sweep run grid.yaml --output runs/grid",
    "milora sweep start grid.yaml --output /shared/grid --database postgres://milora:secret@db:5432/milora",
    "milora sweep status",
    "milora sweep results /shared/grid --json",
    "milora sweep retry 3f2a",
  ]);
  const run = command.command("run").argument("<grid>", "YAML or JSON file");
  gridFlags(run, "Train and measure a grid in this process, and go on where it was left.")
    .addOption(new Option("--concurrency <n>", "instead in so many processes of this command").argParser(integer(1)))
    .action((file: string, flags: GridFlags) => runGridFile(file, flags, false));
  examples(run, [
    "milora sweep run grid.yaml --output runs/grid --plan",
    "milora sweep run grid.yaml --output runs/grid",
  ]);
  const start = command.command("start").argument("<grid>", "YAML or JSON file");
  gridFlags(start, "Put a grid into a database, from which workers take its jobs.")
    .addOption(databaseFlag())
    .option("--wait", "wait for workers to finish it, then show the results")
    .addOption(new Option("--concurrency <n>", "wait, and do so many jobs here at a time").argParser(integer(1)))
    .addOption(new Option("--retries <n>", "attempts after the first before a job is given up").argParser(integer(0)))
    .addOption(
      new Option("--retry-delay <seconds>", "until the second attempt, and twice as long before each further one")
        .argParser(integer(1))
        .default(RETRY_SECONDS),
    )
    .action((file: string, flags: GridFlags) => runGridFile(file, flags, true));
  examples(start, ["milora sweep start grid.yaml --output /shared/grid --wait"]);
  const status = command.command("status").argument("[sweep]", `${NAME} (default: all)`);
  add(
    status,
    "Show what is finished, running, waiting and failed, and which workers are there; of one sweep, each cell.",
    "milora sweep status",
  ).action(async (name: string | undefined, flags: Flags) => {
    const hint = "; milora sweep results DIR and milora studio show what was done without one";
    await using sweeps = await findNamed("milora sweep status", flags, hint);
    const which = name === undefined ? await sweeps.list() : [await find(sweeps, name)];
    const all = [];
    for (const sweep of which) all.push({ ...(await sweeps.status(sweep)), pace: await sweeps.pace(sweep.id) });
    const workers = await sweeps.workers();
    const cells = name === undefined ? undefined : (await sweeps.cells(which[0]!.id)).cells;
    if (flags.json) return printJson({ sweeps: all, workers, ...(cells && { cells }) });
    if (all.length === 0) print("no sweeps; milora sweep start makes one, and milora reproduce --queue\n");
    for (const one of all) print(`${sweepText(one)}${paceText(one.pace)}\n`);
    if (cells) print(`${cellsText(cells)}\n`);
    print(workersText(workers));
  });
  const results = command.command("results").argument("<sweep>", `${NAME}; a directory that is here needs no database`);
  add(results, "Show what a grid gave so far, as one table.", "milora sweep results runs/grid").action(
    async (name: string, flags: Flags) => {
      if (existsSync(join(name, "grid.json"))) return show(resultsAt(name), name, flags.json);
      await using sweeps = await findNamed(name, flags, ": it is no directory of a grid");
      const { id, directory } = await find(sweeps, name);
      const records = new Map((await sweeps.records(id)).map(({ record }) => [record.id, record]));
      const failures = (await sweeps.dead(id)).map(({ label, code, reason }) => ({ label, code, reason }));
      show(
        gridResults(readIndex(directory), (cell) => records.get(cell), failures),
        directory,
        flags.json,
      );
    },
  );
  const retry = command.command("retry").argument("<sweep>", NAME);
  add(retry, "Try again what was given up.", "milora sweep retry /shared/paper")
    .option("--retries <n>", "attempts after the first before a job is given up", integer(0), RETRIES)
    .action(async (name: string, { retries, ...flags }: Flags & { readonly retries: number }) => {
      await using sweeps = await findNamed("milora sweep", flags);
      const { id } = await find(sweeps, name);
      const jobs = await sweeps.retry(id, retries);
      if (flags.json) printJson({ id, jobs });
      else print(jobs === 0 ? "nothing has failed" : `${jobs} ${jobs === 1 ? "job waits" : "jobs wait"} again`);
    });
  const remove = command.command("remove").argument("<sweep>", NAME);
  add(
    remove,
    "Take a sweep out of the database; workers leave it. Its directory stays as it is.",
    "milora sweep remove /shared/paper",
  ).action(async (name: string, flags: Flags) => {
    await using sweeps = await findNamed("milora sweep", flags);
    const { id } = await find(sweeps, name);
    await sweeps.remove(id);
    if (flags.json) printJson({ id, removed: true });
    else print(`${id}: removed`);
  });
}

function gridFlags(command: Command, description: string): Command {
  return command
    .description(description)
    .addOption(needed(new Option("--output <dir>", "adapters, outputs and results")))
    .option("--plan", "only say what would be done")
    .addOption(threadsFlag())
    .addOption(jsonFlag());
}

function add(command: Command, description: string, example: string): Command {
  return examples(command.description(description).addOption(databaseFlag()).addOption(jsonFlag()), [example]);
}

async function find(sweeps: Sweeps, name: string): Promise<SweepFacts> {
  const all = await sweeps.list();
  const whole = name.replace(/\/+$/, "");
  const meant = all.filter(
    ({ id, directory }) => id.startsWith(name) || directory === whole || directory.endsWith(`/${whole}`),
  );
  if (meant.length === 1) return meant[0]!;
  const known = all.map(({ id, directory }) => `${id} (${directory})`).join(", ") || "none";
  if (meant.length > 1) throw new InputError("FLAG_INVALID", "milora sweep", `${name} is more than one of ${known}`);
  throw new MiloraError("SWEEP_NOT_FOUND", `no sweep ${JSON.stringify(name)}; there are ${known}`);
}
