/** @file `milora studio`: runs in the browser, without a backbone. */
import type { Command } from "commander";
import { createLog, RunStudio } from "../../serving/index.ts";
import { examples, integer, jsonFlag } from "../flags.ts";
import { untilTold } from "../interrupt.ts";
import { databaseFlag, databaseUrl, type SweepFlags } from "../sweeps/flags.ts";
import { note, paint, print, printJson } from "../terminal.ts";

interface Flags extends SweepFlags {
  readonly host: string;
  readonly port: number;
  readonly json?: boolean;
}

export function configure(command: Command): void {
  examples(
    command
      .argument("[folders...]", "folders of runs and of what milora reproduce has written (default: runs)")
      .option("--host <address>", "loopback address to listen on", "127.0.0.1")
      .option("--port <n>", "port to listen on, 0 for a free one", integer(0), 8001)
      .addOption(databaseFlag())
      .addOption(jsonFlag())
      .action(studio),
    ["milora studio", "milora studio runs experiments --port 0 --json"],
  );
}

async function studio(given: readonly string[], { host, port, json, ...flags }: Flags): Promise<void> {
  const folders = given.length > 0 ? given : ["runs"];
  // The environment may name another program's database.
  const known = /^postgres(ql)?:/.test(databaseUrl(flags) ?? "") ? databaseUrl(flags) : undefined;
  const [database, log] = [flags.database ?? known, createLog({ logLevel: "warn" })];
  await using studio = await RunStudio.start({ folders, database, host, port, log });
  const url = `${studio.url}/studio/`;
  if (json) printJson({ url, pid: process.pid, folders });
  else print(`${paint("bold", url)}  shows ${folders.join(", ")}`);
  if (process.stdout.isTTY) note(paint("dim", "Ctrl-C ends it", process.stderr));
  await untilTold();
}
