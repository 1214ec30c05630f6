/** @file `milora usage`: requests and tokens by tenant, key, adapter, day and hour. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { sum } from "../../base/index.ts";
import type { UsageColumn, UsageRow } from "../../serving/index.ts";
import { type AdminFlags, administer, SERVER } from "../admin.ts";
import { openAdministration, time } from "../tenants/flags.ts";
import { grouped, print, printJson, table } from "../terminal.ts";

interface Flags extends AdminFlags {
  readonly tenant?: string;
  readonly adapter?: string;
  readonly from?: Date;
  readonly to?: Date;
  readonly by: UsageColumn[];
  readonly json?: boolean;
}

const COLUMNS: readonly UsageColumn[] = ["tenant", "key", "adapter", "day", "hour"];

export function configure(command: Command): void {
  administer(command, "Show requests and tokens, summed.", [
    "milora usage",
    "milora usage --tenant acme --by day,adapter --from 2026-03-01 --to 2026-04-01",
    `milora usage --by tenant --json ${SERVER}`,
  ])
    .addOption(new Option("--tenant <id>", "only this tenant's"))
    .addOption(new Option("--adapter <name>", "only this adapter's, as requests name it"))
    .addOption(new Option("--from <time>", "hours that begin then or later, e.g. 2026-03-01").argParser(time))
    .addOption(new Option("--to <time>", "hours that begin before").argParser(time))
    .addOption(
      new Option("--by <columns>", `what to tell apart: ${COLUMNS.join(", ")}`)
        .argParser(columns)
        .default(["tenant", "adapter"], "tenant,adapter"),
    )
    .action(async (flags: Flags) => {
      await using administration = await openAdministration(flags);
      const { tenant, adapter, from, to, by } = flags;
      const rows = await administration.usage({ tenant, adapter, from, to, by });
      if (flags.json) return printJson(rows);
      if (rows.length === 0) return print("nothing was used");
      const header = [
        ...by.map((column) => (column === "hour" || column === "day" ? `${column} (UTC)` : column)),
        "requests",
        "prompt tokens",
        "completion tokens",
      ];
      print(
        table(header, [
          ...rows.map((row) => rowOf(row, by)),
          ...(by.length > 0 && rows.length > 1 ? [totalOf(rows, by)] : []),
        ]),
      );
    });
}

function columns(text: string): UsageColumn[] {
  const names = text.split(",").map((name) => name.trim());
  if (!names.every((name) => (COLUMNS as readonly string[]).includes(name))) {
    throw new InvalidArgumentError(`It must be some of ${COLUMNS.join(", ")}, separated by commas.`);
  }
  return [...new Set(names)] as UsageColumn[];
}

function rowOf(row: UsageRow, by: readonly UsageColumn[]): string[] {
  const shown = by.map((column) => (column === "adapter" && row.adapter === "" ? "(backbone)" : row[column]!));
  return [...shown, grouped(row.requests), grouped(row.promptTokens), grouped(row.completionTokens)];
}

function totalOf(rows: readonly UsageRow[], by: readonly UsageColumn[]): string[] {
  const total = (count: "requests" | "promptTokens" | "completionTokens") =>
    grouped(sum(rows.map((row) => row[count])));
  return [
    ...by.map((_, i) => (i === 0 ? "all" : "")),
    total("requests"),
    total("promptTokens"),
    total("completionTokens"),
  ];
}
