/** @file What the commands about tenants, keys and usage do: in a data directory, or by a running server. */
import {
  type CreatedKey,
  type Key,
  type NewTenant,
  openStore,
  type Store,
  type Tenant,
  type TenantChanges,
  type UsageQuery,
  type UsageRow,
} from "../../serving/index.ts";
import { AdminClient, type AdminFlags, locationOf, openThere } from "../admin.ts";

export interface NewKeyFlags {
  /** Undefined: a key of the role admin. */
  readonly tenant: string | undefined;
  readonly label: string | undefined;
  readonly expiresAt: Date | undefined;
}

/** The commands' way to tenants, wherever they are. */
export interface Administration extends AsyncDisposable {
  createTenant(tenant: NewTenant): Promise<Tenant>;
  listTenants(): Promise<readonly Tenant[]>;
  updateTenant(id: string, changes: TenantChanges): Promise<Tenant>;
  removeTenant(id: string): Promise<void>;
  createKey(key: NewKeyFlags): Promise<CreatedKey>;
  listKeys(tenant: string | undefined): Promise<readonly Key[]>;
  revokeKey(id: string): Promise<Key>;
  usage(query: UsageQuery): Promise<readonly UsageRow[]>;
}

/** @param make a store where there is none */
export async function openAdministration(flags: AdminFlags, make: boolean): Promise<Administration> {
  if (flags.server !== undefined) return new Remote(new AdminClient(flags.server));
  if (!make) return new Local(await openThere(flags));
  const { directory, url } = locationOf(flags);
  return new Local(await openStore(url === undefined ? { directory } : { url }));
}

/** A data directory that no server has open, or a database. */
class Local implements Administration {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  createTenant(tenant: NewTenant): Promise<Tenant> {
    return this.#store.tenants.create(tenant);
  }

  listTenants(): Promise<Tenant[]> {
    return this.#store.tenants.list();
  }

  updateTenant(id: string, changes: TenantChanges): Promise<Tenant> {
    return this.#store.tenants.update(id, changes);
  }

  removeTenant(id: string): Promise<void> {
    return this.#store.tenants.remove(id);
  }

  createKey({ tenant, label, expiresAt }: NewKeyFlags): Promise<CreatedKey> {
    const whose = tenant === undefined ? ({ admin: true } as const) : { tenant };
    return this.#store.keys.create(whose, { ...(label !== undefined && { label }), expiresAt });
  }

  listKeys(tenant: string | undefined): Promise<Key[]> {
    return this.#store.keys.list(tenant);
  }

  revokeKey(id: string): Promise<Key> {
    return this.#store.keys.revoke(id);
  }

  usage(query: UsageQuery): Promise<UsageRow[]> {
    return this.#store.usage.report(query);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]();
  }
}

/** A running server; times arrive as text and are made times again. */
class Remote implements Administration {
  readonly #client: AdminClient;

  constructor(client: AdminClient) {
    this.#client = client;
  }

  async createTenant(tenant: NewTenant): Promise<Tenant> {
    return tenantOf(await this.#client.call("POST", ["tenants"], { json: tenant }));
  }

  async listTenants(): Promise<Tenant[]> {
    return ((await this.#client.call("GET", ["tenants"])) as { tenants: unknown[] }).tenants.map(tenantOf);
  }

  async updateTenant(id: string, changes: TenantChanges): Promise<Tenant> {
    return tenantOf(await this.#client.call("PATCH", ["tenants", id], { json: changes }));
  }

  async removeTenant(id: string): Promise<void> {
    await this.#client.call("DELETE", ["tenants", id]);
  }

  async createKey({ tenant, label, expiresAt }: NewKeyFlags): Promise<CreatedKey> {
    const whose = tenant === undefined ? { admin: true } : { tenant };
    const answer = (await this.#client.call("POST", ["keys"], { json: { ...whose, label, expiresAt } })) as CreatedKey;
    return { key: keyOf(answer.key), secret: answer.secret };
  }

  async listKeys(tenant: string | undefined): Promise<Key[]> {
    const answer = await this.#client.call("GET", ["keys"], { query: { tenant } });
    return (answer as { keys: unknown[] }).keys.map(keyOf);
  }

  async revokeKey(id: string): Promise<Key> {
    return keyOf(await this.#client.call("DELETE", ["keys", id]));
  }

  async usage({ tenant, adapter, from, to, by }: UsageQuery): Promise<UsageRow[]> {
    const query = { tenant, adapter, from: from?.toISOString(), to: to?.toISOString(), by: by?.join(",") };
    return ((await this.#client.call("GET", ["usage"], { query })) as { usage: UsageRow[] }).usage;
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

const timeOf = (value: unknown): Date | null => (value === null ? null : new Date(String(value)));

function tenantOf(value: unknown): Tenant {
  const tenant = value as Tenant;
  return { ...tenant, createdAt: timeOf(tenant.createdAt)! };
}

function keyOf(value: unknown): Key {
  const key = value as Key;
  return {
    ...key,
    createdAt: timeOf(key.createdAt)!,
    expiresAt: timeOf(key.expiresAt),
    revokedAt: timeOf(key.revokedAt),
    lastUsedAt: timeOf(key.lastUsedAt),
  };
}
