/** @file Tenants that come and go with their keys and adapters, while they are used: who is let in, and who no longer is. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Random } from "../../src/base/index.ts";
import type { Actor, Soak } from "./soak-tally.ts";

const COMPLETIONS = "/v1/completions";
/** How long a revoked key may still be let in, ms. */
const MOST_LATE_MS = 1000;
const USERS = 3;

/** What is known of a key while it is used. */
interface KeyUse {
  /** It may be refused from now on. */
  revoking: boolean;
  /** It must be. */
  revokedAt: number;
}

async function newKey(soak: Soak, tenant: string): Promise<{ id: string; secret: string } | undefined> {
  const body = { tenant, label: "guest" };
  const made = await soak.ask("guest's key", "/admin/v1/keys", { body, key: soak.adminKey }, 201);
  if (made?.status !== 201) return undefined;
  const { key, secret } = JSON.parse(made.text) as { key: { id: string }; secret: string };
  return { id: key.id, secret };
}

/** Uses a key until it is refused. */
async function user(soak: Soak, key: string, state: KeyUse, random: Random, model: string): Promise<void> {
  while (!soak.stopped || state.revoking) {
    const body = { model, prompt: [4 + random.integer(8000), 5], max_tokens: 1 + random.integer(6), ignore_eos: true };
    const sent = performance.now();
    const answer = await soak.ask("guest", COMPLETIONS, { body, key }, 200, 401, 429);
    if (answer?.status === 401) {
      if (!state.revoking) soak.fault("a key was refused that nobody had revoked");
      return;
    }
    const late = sent - state.revokedAt;
    if (answer?.status === 200 && late > 0) {
      soak.latestMs = Math.max(soak.latestMs, late);
      if (late > MOST_LATE_MS) {
        soak.fault(`a key was let in ${Math.round(late)} ms after it was revoked`);
        return;
      }
    }
    await sleep(random.uniform() * 300);
  }
}

/** A tenant from its beginning to its end: keys, an adapter, a key that is revoked while it is used, a ban that is lifted. */
export const guest: Actor = async (soak, random, turn, copy) => {
  const admin = soak.adminKey;
  const id = `guest-${copy}-${turn}`;
  const path = `/admin/v1/tenants/${id}`;
  const weight = 0.5 + random.uniform() * 2;
  const tenant = { id, weight, limits: { maxConcurrent: 2 * USERS } };
  await soak.ask("new tenant", "/admin/v1/tenants", { body: tenant, key: admin }, 201);
  const key = await newKey(soak, id);
  const other = await newKey(soak, id);
  if (!key || !other) return;
  const archive = soak.archives[random.integer(soak.archives.length)]!;
  const upload = { method: "PUT", body: archive, contentType: "application/x-tar", key: key.secret } as const;
  await soak.ask("guest's upload", "/v1/adapters/mine", upload, 201);
  const state: KeyUse = { revoking: false, revokedAt: Number.POSITIVE_INFINITY };
  const users = Array.from({ length: USERS }, () => user(soak, key.secret, state, random, "mine"));
  await sleep(500 + random.uniform() * 3000);
  state.revoking = true;
  await soak.ask("guest's key revoked", `/admin/v1/keys/${key.id}`, { method: "DELETE", key: admin });
  state.revokedAt = performance.now();
  await Promise.all(users);
  soak.revoked++;

  const use = { body: { model: "mine", prompt: "Are you there?", max_tokens: 2 }, key: other.secret };
  await soak.ask("guest's other key", COMPLETIONS, use);
  await soak.ask("ban", path, { method: "PATCH", body: { disabled: true }, key: admin });
  await soak.ask("use while banned", COMPLETIONS, use, 401);
  await soak.ask("ban lifted", path, { method: "PATCH", body: { disabled: false }, key: admin });
  await soak.ask("use after a ban", COMPLETIONS, use);
  await soak.ask("tenant with adapters removed", path, { method: "DELETE", key: admin }, 409);
  await soak.ask("guest's removal", "/v1/adapters/mine", { method: "DELETE", key: other.secret });
  await soak.ask("tenant removed", path, { method: "DELETE", key: admin });
  await soak.ask("use without a tenant", COMPLETIONS, use, 401);
  soak.guests++;
};

/** Loads registered adapters into memory and drops them, whoever uses them meanwhile. */
export const mover: Actor = async (soak, random) => {
  const name = soak.shared[random.integer(soak.shared.length)]!;
  const resident = `/admin/v1/adapters/${name}/resident`;
  await soak.ask("into memory", resident, { method: "PUT", key: soak.adminKey });
  await soak.ask("out of memory", resident, { method: "DELETE", key: soak.adminKey }, 200, 409); // pinned
};
