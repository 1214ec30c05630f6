/** @file `milora sweep`: how grids on a database stand; trying again what failed; taking them out. */
import type { Command } from "commander";
import { InputError, MiloraError } from "../../base/index.ts";
import { RETRIES, type SweepFacts, type Sweeps } from "../../serving/index.ts";
import { examples, integer, jsonFlag } from "../flags.ts";
import { databaseFlag, openNamed, type SweepFlags } from "../sweeps/flags.ts";
import { sweepText, workersText } from "../sweeps/show.ts";
import { print, printJson } from "../terminal.ts";

interface Flags extends SweepFlags {
  readonly json?: boolean;
}

const NAME = "its id, the beginning of it, or its directory";

export function configure(command: Command): void {
  examples(command, ["milora sweep status", "milora sweep status runs/paper --json", "milora sweep retry 3f2a"]);
  const status = command.command("status").argument("[sweep]", `${NAME} (default: all)`);
  add(
    status,
    "Show what is finished, running, waiting and failed, and which workers are there.",
    "milora sweep status",
  ).action(async (name: string | undefined, flags: Flags) => {
    await using sweeps = await openNamed("milora sweep", flags);
    const which = name === undefined ? await sweeps.list() : [await find(sweeps, name)];
    const all = [];
    for (const sweep of which) all.push(await sweeps.status(sweep));
    const workers = await sweeps.workers();
    if (flags.json) return printJson({ sweeps: all, workers });
    if (all.length === 0) print("no sweeps; milora reproduce --queue makes one\n");
    for (const one of all) print(`${sweepText(one)}\n`);
    print(workersText(workers));
  });
  const retry = command.command("retry").argument("<sweep>", NAME);
  add(retry, "Try again what was given up.", "milora sweep retry runs/paper")
    .option("--retries <n>", "attempts after the first before a job is given up", integer(0), RETRIES)
    .action(async (name: string, { retries, ...flags }: Flags & { readonly retries: number }) => {
      await using sweeps = await openNamed("milora sweep", flags);
      const { id } = await find(sweeps, name);
      const jobs = await sweeps.retry(id, retries);
      if (flags.json) printJson({ id, jobs });
      else print(jobs === 0 ? "nothing has failed" : `${jobs} ${jobs === 1 ? "job waits" : "jobs wait"} again`);
    });
  const remove = command.command("remove").argument("<sweep>", NAME);
  add(
    remove,
    "Take a sweep out of the database; workers leave it. Its directory stays as it is.",
    "milora sweep remove runs/paper",
  ).action(async (name: string, flags: Flags) => {
    await using sweeps = await openNamed("milora sweep", flags);
    const { id } = await find(sweeps, name);
    await sweeps.remove(id);
    if (flags.json) printJson({ id, removed: true });
    else print(`${id}: removed`);
  });
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
