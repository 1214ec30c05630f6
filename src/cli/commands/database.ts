/** @file `milora database move`: a server's database from its directory to a PostgreSQL, and back. */
import { type Command, Option } from "commander";
import { InputError } from "../../base/index.ts";
import type { MovePlace } from "../../serving/index.ts";
import { examples, jsonFlag } from "../flags.ts";
import { grouped, note, print, printJson, table } from "../terminal.ts";

interface Flags {
  readonly from?: string;
  readonly to?: string;
  readonly json?: boolean;
}

const ENVIRONMENT = "the environment's DATABASE_URL";

export function configure(command: Command): void {
  const lines = ["milora database move --from milora-data", "milora database move --to milora-data --json"];
  examples(command, lines);
  examples(
    command
      .command("move")
      .description(
        "Move tenants, keys, usage and the names of adapters, all or nothing, while no server runs. The target has to be empty.",
      )
      .addOption(new Option("--from <place>", `data directory, or URL of a PostgreSQL (default: ${ENVIRONMENT})`))
      .addOption(new Option("--to <place>", `data directory, or URL of a PostgreSQL (default: ${ENVIRONMENT})`))
      .addOption(jsonFlag())
      .action(move),
    lines,
  );
}

async function move(flags: Flags): Promise<void> {
  const { moveDatabase } = await import("../../serving/index.ts");
  const [from, to] = placesOf(flags);
  const { rows, digest, kept, missing } = await moveDatabase(from, to);
  if (flags.json) return printJson({ rows, digest, kept, missing });
  print(table(["table", "rows"], Object.entries(rows).map(([name, count]) => [name, grouped(count)]))); // biome-ignore format: one line
  print(`\nall is there, and the same: ${digest}`);
  if (kept !== undefined) {
    print(`the directory's own database is kept as ${kept}; start servers with DATABASE_URL, and --data as before`);
  }
  if ("directory" in to) {
    print(`start the server with --data ${to.directory}, and without DATABASE_URL`);
    if (missing.length > 0) {
      const shown = missing.length > 8 ? [...missing.slice(0, 8), `and ${missing.length - 8} more`] : missing;
      note(`files of adapters that have to be copied to ${to.directory}/adapters first: ${shown.join(", ")}`);
    }
  }
}

/** One of them may be left to the environment. @throws InputError FLAG_INVALID */
function placesOf({ from, to }: Flags): [from: MovePlace, to: MovePlace] {
  const url = process.env.DATABASE_URL || undefined;
  const problems: string[] = [];
  if (from === undefined && to === undefined) problems.push("needs --from or --to, or both");
  else if ((from === undefined || to === undefined) && url === undefined) {
    problems.push(`needs ${from === undefined ? "--from" : "--to"}, or DATABASE_URL`);
  }
  if (problems.length > 0) throw new InputError("FLAG_INVALID", "milora database move", problems);
  return [placeOf((from ?? url)!), placeOf((to ?? url)!)];
}

/** What looks like a URL is one; whether of a PostgreSQL is checked where it is opened. */
function placeOf(text: string): MovePlace {
  return /^[a-z]+:\/\//i.test(text) ? { url: text } : { directory: text };
}
