/** @file `milora tenants`: who a server serves, with which weight and limits. */
import { type Command, Option } from "commander";
import { InputError } from "../../base/index.ts";
import { type AdminFlags, administer, SERVER } from "../admin.ts";
import { examples, number } from "../flags.ts";
import { type LimitFlags, limitFlags, limitsOf, limitsText, openAdministration, tenantText, timeText } from "../tenants/flags.ts"; // biome-ignore format: one line
import { print, printJson, table } from "../terminal.ts";

interface Flags extends AdminFlags, LimitFlags {
  readonly name?: string;
  readonly weight?: number;
  readonly json?: boolean;
}

const CREATE = "milora tenants create acme --tokens-per-day 2000000 --max-concurrent 8";
const ID = "the tenant's id: a-z, 0-9, '.', '_', '-'";

export function configure(command: Command): void {
  examples(command, [CREATE, "milora keys create --tenant acme", "milora tenants list --json"]);
  limitFlags(
    settings(administer(command.command("create"), "Make a tenant.", [CREATE, `${CREATE} ${SERVER}`])).argument(
      "<id>",
      ID,
    ),
    false,
  ).action(async (id: string, { name, weight, ...flags }: Flags) => {
    await using administration = await openAdministration(flags, { make: true });
    const limits = limitsOf(flags) as Record<string, number> | undefined;
    const given = {
      id,
      ...(name !== undefined && { name }),
      ...(weight !== undefined && { weight }),
      ...(limits && { limits }),
    };
    const tenant = await administration.createTenant(given);
    if (flags.json) return printJson(tenant);
    print(tenantText(tenant));
    print(`make it a key: milora keys create --tenant ${id}`);
  });
  administer(command.command("list"), "List tenants.", [
    "milora tenants list",
    `milora tenants list --json ${SERVER}`,
  ]).action(async (flags: Flags) => {
    await using administration = await openAdministration(flags);
    const tenants = await administration.listTenants();
    if (flags.json) return printJson(tenants);
    const rows = tenants.map(({ id, name, weight, limits, disabled, createdAt }) => [id, name, String(weight), limitsText(limits), disabled ? "yes" : "no", timeText(createdAt)]); // biome-ignore format: one line
    print(
      rows.length === 0 ? "no tenants" : table(["tenant", "name", "weight", "limits", "disabled", "since (UTC)"], rows),
    );
  });
  const update = "milora tenants update acme --weight 2 --tokens-per-day none";
  limitFlags(
    settings(
      administer(command.command("update"), "Change a tenant; what is not named stays.", [
        update,
        `${update} ${SERVER}`,
      ]),
    ).argument("<id>", ID),
    true,
  ).action(async (id: string, { name, weight, ...flags }: Flags) => {
    const limits = limitsOf(flags);
    const changes = {
      ...(name !== undefined && { name }),
      ...(weight !== undefined && { weight }),
      ...(limits && { limits }),
    };
    if (Object.keys(changes).length === 0)
      throw new InputError("FLAG_INVALID", "update", "needs something to change; see --help");
    await using administration = await openAdministration(flags);
    show(await administration.updateTenant(id, changes), flags);
  });
  for (const disabled of [true, false]) {
    const name = disabled ? "disable" : "enable";
    const description = disabled
      ? "Let none of a tenant's keys in any more; nothing is removed."
      : "Let its keys in again.";
    administer(command.command(name), description, [
      `milora tenants ${name} acme`,
      `milora tenants ${name} acme ${SERVER}`,
    ])
      .argument("<id>", ID)
      .action(async (id: string, flags: Flags) => {
        await using administration = await openAdministration(flags);
        show(await administration.updateTenant(id, { disabled }), flags);
      });
  }
  const remove = "milora tenants remove acme";
  administer(command.command("remove"), "Remove a tenant with its keys, grants and usage. Its adapters must be gone.", [
    remove,
    `${remove} ${SERVER}`,
  ])
    .argument("<id>", ID)
    .action(async (id: string, flags: Flags) => {
      await using administration = await openAdministration(flags);
      await administration.removeTenant(id);
      if (flags.json) printJson({ id, removed: true });
      else print(`${id}: removed`);
    });
}

function settings(command: Command): Command {
  return command
    .addOption(new Option("--name <text>", "what people call it (default: the id)"))
    .addOption(
      new Option("--weight <n>", "share of the machine when it is busy (default: 1)").argParser(number(0.01, 100)),
    );
}

function show(tenant: Parameters<typeof tenantText>[0], { json }: Flags): void {
  if (json) printJson(tenant);
  else print(tenantText(tenant));
}
