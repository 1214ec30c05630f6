/** @file `milora worker`: does jobs of grids that `milora reproduce --queue` has put into a database. */
import { availableParallelism } from "node:os";
import { type Command, Option } from "commander";
import { LEASE_SECONDS, workOn } from "../../serving/index.ts";
import { examples, integer } from "../flags.ts";
import { onInterrupt } from "../interrupt.ts";
import { tellWorker } from "../sweeps/events.ts";
import { databaseFlag, openNamed, type SweepFlags } from "../sweeps/flags.ts";
import { note, printJson } from "../terminal.ts";

interface Flags extends SweepFlags {
  readonly concurrency: number;
  readonly threads?: number;
  readonly lease: number;
  readonly drain?: boolean;
  readonly json?: boolean;
}

export function configure(command: Command): void {
  command
    .addOption(databaseFlag())
    .addOption(
      new Option("--concurrency <n>", "jobs at a time, each in a process of its own").argParser(integer(1)).default(1),
    )
    .addOption(new Option("--threads <n>", "CPU threads of each (default: the cores shared out)").argParser(integer(1)))
    .addOption(
      new Option("--lease <seconds>", "who is silent for so long loses its jobs to other workers")
        .argParser(integer(2))
        .default(LEASE_SECONDS),
    )
    .option("--drain", "end when no job is left")
    .addOption(new Option("--json", "print a line of JSON on stdout for each thing that happens"));
  examples(command.action(worker), [
    "milora worker --database postgres://milora:secret@db:5432/milora",
    "DATABASE_URL=postgres://… milora worker --concurrency 4 --drain",
  ]);
}

/** Cores of one of several processes. */
export const shareOfCores = (slots: number): number => Math.max(1, Math.floor(availableParallelism() / slots));

async function worker({ concurrency, threads, lease, drain, json, ...flags }: Flags): Promise<void> {
  using interrupt = onInterrupt("saving; the jobs are given back …");
  const { signal } = interrupt;
  await using sweeps = await openNamed("milora worker", flags);
  note(`waiting for jobs, ${concurrency} at a time`);
  await workOn(sweeps, {
    ...{ slots: concurrency, threads: threads ?? shareOfCores(concurrency), leaseSeconds: lease },
    ...{ drain, signal, onEvent: json ? printJson : tellWorker },
  });
}
