/** @file `milora keys`: secrets that let tenants, and administrators, into a server. */
import { type Command, Option } from "commander";
import { InputError } from "../../base/index.ts";
import type { Key } from "../../serving/index.ts";
import { type AdminFlags, administer, SERVER } from "../admin.ts";
import { examples } from "../flags.ts";
import { expiry, openAdministration, timeText } from "../tenants/flags.ts";
import { note, print, printJson, table } from "../terminal.ts";

interface Flags extends AdminFlags {
  readonly tenant?: string;
  readonly admin?: boolean;
  readonly label?: string;
  readonly expires?: Date;
  readonly json?: boolean;
}

const CREATE = "milora keys create --tenant acme --label website --expires 90d";

export function configure(command: Command): void {
  examples(command, [
    "milora keys create --admin",
    CREATE,
    "milora keys list --tenant acme --json",
    "milora keys revoke key_0123456789abcdef",
  ]);
  administer(command.command("create"), "Make a key. Its secret is printed now and never again.", [
    "milora keys create --admin",
    CREATE,
    `${CREATE} ${SERVER}`,
  ])
    .addOption(new Option("--tenant <id>", "whose key it is"))
    .addOption(new Option("--admin", "a key of the role admin, which opens the admin API").conflicts("tenant"))
    .addOption(new Option("--label <text>", "what it is for, to tell it from others"))
    .addOption(new Option("--expires <when>", "30m, 12h, 90d, or a time (default: never)").argParser(expiry))
    .action(async ({ tenant, admin, label, expires, ...flags }: Flags) => {
      if (tenant === undefined && !admin)
        throw new InputError("FLAG_INVALID", "create", "needs --tenant ID or --admin");
      await using administration = await openAdministration(flags, { make: true });
      const { key, secret } = await administration.createKey({ tenant, label, expiresAt: expires });
      if (flags.json) return printJson({ ...key, secret });
      print(secret);
      note(
        `${key.id}, of ${whose(key)}, expires: ${key.expiresAt ? timeText(key.expiresAt) : "never"}; the secret is shown only this once`,
      );
    });
  administer(command.command("list"), "List keys, without their secrets.", [
    "milora keys list",
    `milora keys list --tenant acme --json ${SERVER}`,
  ])
    .addOption(new Option("--tenant <id>", "only its keys; admin: those of administrators"))
    .action(async (flags: Flags) => {
      await using administration = await openAdministration(flags);
      const keys = await administration.listKeys(flags.tenant);
      if (flags.json) return printJson(keys);
      print(
        keys.length === 0
          ? "no keys"
          : table(
              ["key", "of", "begins with", "label", "state", "made (UTC)", "expires", "last used"],
              keys.map(rowOf),
            ),
      );
    });
  const revoke = "milora keys revoke key_0123456789abcdef";
  administer(command.command("revoke"), "Let nobody in with a key any more, at once.", [revoke, `${revoke} ${SERVER}`])
    .argument("<id>", "the key's id, as `milora keys list` shows it")
    .action(async (id: string, flags: Flags) => {
      await using administration = await openAdministration(flags);
      const key = await administration.revokeKey(id);
      if (flags.json) printJson(key);
      else print(`${id}, of ${whose(key)}: revoked`);
    });
}

const whose = ({ role, tenant }: Key): string => (role === "admin" ? "an administrator" : tenant);

function rowOf(key: Key): string[] {
  const expired = key.expiresAt !== null && key.expiresAt.getTime() <= Date.now();
  const state = key.revokedAt ? "revoked" : expired ? "expired" : "valid";
  const times = [key.createdAt, key.expiresAt, key.lastUsedAt].map(timeText);
  return [key.id, key.tenant, key.prefix, key.label || "–", state, ...times];
}
