/** @file `milora adapters install`, `list`, `remove`, `grant`, `revoke`, `pin` and `unpin`: the adapters of a server. */
import { type Command, Option } from "commander";
import type { AdapterRecord, Presence } from "../../serving/index.ts";
import { type AdminFlags, administer, SERVER } from "../admin.ts";
import { needed } from "../flags.ts";
import { grouped, print, printJson, table } from "../terminal.ts";
import type { InstalledAdapters } from "./installed.ts";
import { parseQualified, type QualifiedName, shown } from "./name.ts";

interface Flags extends AdminFlags {
  readonly name: string;
  readonly tenant?: string;
  readonly model?: string;
  readonly adapterStore?: string;
  readonly to: string;
  readonly from: string;
  readonly json?: boolean;
}

export const INSTALL = "milora adapters install runs/subjects/best --name subjects --model assets/tiny-llama";
const ADAPTER = "<name>";
const EXPLAINED = "NAME of an adapter for everybody, TENANT/NAME of a tenant's";

export function configureInstalled(command: Command): void {
  administer(
    command.command("install <source>"),
    "Install an adapter for a server: a directory, a .tar or a .tar.gz.",
    [INSTALL, `milora adapters install adapter.tar.gz --name summaries --tenant ann ${SERVER}`],
  )
    .addOption(needed(new Option("--name <name>", "what requests call it; an adapter of this name is replaced")))
    .addOption(new Option("--tenant <tenant>", "whose it is (default: everybody's)"))
    .addOption(
      new Option("--model <dir>", "with --data: backbone that it was trained on (default: the one named last time)"),
    )
    .addOption(
      new Option(
        "--adapter-store <url>",
        "s3://BUCKET/PREFIX that has the files (default: where the servers have them)",
      ),
    )
    .action(async (source: string, flags: Flags) => {
      await using adapters = await openInstalled(flags, { make: true });
      const installed = await adapters.install(source, { owner: flags.tenant ?? null, name: flags.name }, flags.model);
      if (flags.json) return printJson(installed);
      const { method, parameters, bytes, digest, replaced } = installed;
      print(
        `${shown(installed)}: ${method}, ${grouped(parameters)} parameters, ${grouped(bytes)} bytes, digest ${digest}`,
      );
      if (replaced !== undefined) print(replaced === digest ? "it was there already" : `it replaces ${replaced}`);
      if (installed.skipped.length > 0) print(`not taken: ${installed.skipped.join(", ")}`);
    });
  administer(command.command("list"), "List installed adapters.", [
    "milora adapters list",
    `milora adapters list --tenant ann ${SERVER}`,
  ])
    .addOption(new Option("--tenant <tenant>", "those that this tenant may use (default: all)"))
    .action(async (flags: Flags) => {
      await using adapters = await openInstalled(flags);
      const list = await adapters.list(flags.tenant);
      if (flags.json) printJson(list);
      else print(list.length === 0 ? "no adapters" : table(HEADER, list.map(rowOf)));
    });
  change(command, "remove", "Remove an adapter; requests under way end with it.", [], async (adapters, adapter) => {
    const { inFlight } = await adapters.remove(adapter);
    return { said: `removed${inFlight ? `; ${inFlight} requests still use it` : ""}`, inFlight };
  });
  const to = new Option("--to <tenant>", "the tenant that may use it");
  change(
    command,
    "grant",
    "Let another tenant use an adapter, as TENANT/NAME.",
    ["--to bob"],
    async (adapters, adapter, flags) => {
      await adapters.grant(adapter, flags.to, true);
      return { said: `granted to ${flags.to}` };
    },
  ).addOption(needed(to));
  change(command, "revoke", "Take a grant back.", ["--from bob"], async (adapters, adapter, flags) => {
    await adapters.grant(adapter, flags.from, false);
    return { said: `no longer granted to ${flags.from}` };
  }).addOption(needed(new Option("--from <tenant>", "the tenant that may use it no longer")));
  change(command, "pin", "Keep an adapter in memory, from the server's start on.", [], async (adapters, adapter) => {
    await adapters.pin(adapter, true);
    return { said: "pinned" };
  });
  change(command, "unpin", "Let an adapter be evicted again.", [], async (adapters, adapter) => {
    await adapters.pin(adapter, false);
    return { said: "no longer pinned" };
  });
}

/** A subcommand that does one thing to one adapter. */
function change(
  command: Command,
  name: string,
  description: string,
  more: readonly string[],
  act: (
    adapters: InstalledAdapters,
    adapter: QualifiedName,
    flags: Flags,
  ) => Promise<{ said: string; inFlight?: number }>,
): Command {
  const line = ["milora adapters", name, "ann/summaries", ...more].join(" ");
  return administer(command.command(name), description, [line, `${line} ${SERVER}`])
    .argument(ADAPTER, EXPLAINED)
    .action(async (text: string, flags: Flags) => {
      const adapter = parseQualified(text);
      await using adapters = await openInstalled(flags);
      const { said, ...result } = await act(adapters, adapter, flags);
      if (flags.json) printJson({ ...adapter, ...result });
      else print(`${text}: ${said}`);
    });
}

/** The server's parts are loaded for who uses them, not for `--help`. @param make a store where there is none */
async function openInstalled(
  flags: AdminFlags & { readonly adapterStore?: string },
  { make = false } = {},
): Promise<InstalledAdapters> {
  return (await import("./installed.ts")).openInstalled(flags, make);
}

const HEADER = ["name", "method", "rank", "bytes", "pinned", "in memory", "in flight", "digest"];

function rowOf(adapter: AdapterRecord & Partial<Presence>): string[] {
  const { method, rank, bytes, pinned, resident, inFlight, corrupt, digest } = adapter;
  return [
    ...[shown(adapter), method, rank === null ? "–" : String(rank), grouped(bytes), pinned ? "yes" : "no"],
    corrupt ? "damaged" : resident === undefined ? "–" : resident ? "yes" : "no",
    ...[inFlight === undefined ? "–" : String(inFlight), digest.slice(0, 12)],
  ];
}
