/** @file Admin routes: tenants, keys, grants, quotas, usage, and the adapters of all. Only keys of the role admin get here. */
import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { InputError } from "../../base/index.ts";
import type { AdapterRecord, AdapterRegistry } from "../adapters/index.ts";
import {
  keyLabelSchema,
  newTenantSchema,
  type Store,
  tenantChangesSchema,
  USAGE_COLUMNS,
  type UsageColumn,
} from "../store/index.ts";
import { adapterPage, pageFields } from "./adapter-page.ts";
import { ARCHIVES } from "./adapters.ts";
import { parseRequest, RequestError } from "./errors.ts";
import { jsonSchema } from "./openapi.ts";

interface AdminParts {
  readonly store: Store;
  readonly registry: AdapterRegistry;
}

const time = z.iso
  .datetime({ offset: true })
  .or(z.iso.date())
  .transform((text) => new Date(text));

const newKeySchema = z
  .strictObject({
    tenant: z.string().optional().describe("whose key it is"),
    admin: z.literal(true).optional().describe("instead of tenant: a key of the role admin"),
    label: keyLabelSchema.optional().describe("what it is for, to tell it from others"),
    expiresAt: time.nullish().describe("ISO 8601; without it the key does not expire"),
  })
  .refine(({ tenant, admin }) => (tenant === undefined) !== (admin === undefined), "needs either tenant or admin");

const keysQuery = z.strictObject({ tenant: z.string().optional().describe("only its keys; `admin`: administrators'") });
const grantsQuery = z.strictObject({ owner: z.string().optional().describe("only of this tenant's adapters") });
const ownerQuery = z.strictObject({ tenant: z.string().optional().describe("whose it is; without it everybody's") });
const flag = z.enum(["0", "1"]).transform((text) => text === "1");
const listQuery = z.strictObject({
  tenant: z.string().optional().describe("what this tenant may use; without it all"),
  owner: z.string().optional().describe("only this tenant's own"),
  shared: flag.optional().describe("1: only everybody's"),
  name: z.string().optional().describe("only those of exactly this name"),
  resident: flag.optional().describe("1: only those in memory"),
  ...pageFields,
});
const usageQuery = z.strictObject({
  tenant: z.string().optional(),
  adapter: z.string().optional().describe("as requests name it; empty: the backbone"),
  from: time.optional().describe("ISO 8601; hours that begin then or later"),
  to: time.optional().describe("ISO 8601; hours that begin before"),
  by: z
    .string()
    .transform((text) => text.split(",").filter((column) => column !== ""))
    .pipe(z.array(z.enum(USAGE_COLUMNS)))
    .optional()
    .describe(`what to tell apart, of ${USAGE_COLUMNS.join(", ")}; default tenant,adapter`),
});

const parameter = ({ params }: FastifyRequest, name: string): string => (params as Record<string, string>)[name]!;

/** A description for the document. */
function described(summary: string, parts: { body?: z.ZodType; query?: z.ZodType; consumes?: string[] } = {}) {
  const { body, query, consumes } = parts;
  return {
    schema: {
      ...{ tags: ["admin"], summary },
      ...(body && { body: jsonSchema(body) }),
      ...(query && { querystring: jsonSchema(query) }),
      ...(consumes && { consumes }),
    },
  };
}

/** To be registered below /admin/v1, where everybody else has been refused. */
export async function adminRoutes(app: FastifyInstance, parts: AdminParts): Promise<void> {
  tenantRoutes(app, parts);
  keyRoutes(app, parts);
  await app.register(async (scope) => installedRoutes(scope, parts));
}

function tenantRoutes(app: FastifyInstance, { store }: AdminParts): void {
  const { tenants } = store;
  app.get("/tenants", described("Tenants"), async () => ({ tenants: await tenants.list() }));
  app.post("/tenants", described("Make a tenant", { body: newTenantSchema }), async ({ body }, reply) =>
    reply.status(201).send(await tenants.create(parseRequest(newTenantSchema, body))),
  );
  app.get("/tenants/:id", described("A tenant"), (request) => tenants.get(parameter(request, "id")));
  const change = "Change a tenant; limits that are not named stay, null takes one away";
  app.patch("/tenants/:id", described(change, { body: tenantChangesSchema }), (request) =>
    tenants.update(parameter(request, "id"), parseRequest(tenantChangesSchema, request.body)),
  );
  app.delete("/tenants/:id", described("Remove a tenant with its keys, grants and usage"), async (request) => {
    const id = parameter(request, "id");
    await tenants.remove(id);
    return { id, removed: true };
  });
  app.get("/tenants/:id/quotas", described("Limits of a tenant and where it stands"), async (request) => {
    const { id, limits } = await tenants.get(parameter(request, "id"));
    return { id, limits, ...(await store.quotaState(id)) };
  });
  const sums = "Requests and tokens, summed; from the last second on";
  app.get("/usage", described(sums, { query: usageQuery }), async ({ query }) => {
    const { by, ...rest } = parseRequest(usageQuery, query);
    return { usage: await store.usage.report({ ...rest, ...(by && { by: by as UsageColumn[] }) }) };
  });
}

function keyRoutes(app: FastifyInstance, { store }: AdminParts): void {
  const { keys } = store;
  app.get("/keys", described("Keys, without their secrets", { query: keysQuery }), async ({ query }) => ({
    keys: await keys.list(parseRequest(keysQuery, query).tenant),
  }));
  const make = "Make a key; its secret is in the answer and nowhere else";
  app.post("/keys", described(make, { body: newKeySchema }), async ({ body }, reply) => {
    const { tenant, label, expiresAt } = parseRequest(newKeySchema, body);
    const whose = tenant === undefined ? ({ admin: true } as const) : { tenant };
    const created = await keys.create(whose, { ...(label !== undefined && { label }), expiresAt });
    return reply.status(201).header("cache-control", "no-store").send(created);
  });
  app.delete("/keys/:id", described("Revoke a key, at once"), (request) => keys.revoke(parameter(request, "id")));
  app.get("/grants", described("Adapters that tenants let others use", { query: grantsQuery }), async ({ query }) => ({
    grants: await store.grants.list(parseRequest(grantsQuery, query).owner),
  }));
}

function installedRoutes(app: FastifyInstance, { store, registry }: AdminParts): void {
  const ownerOf = ({ query }: FastifyRequest): string | null => parseRequest(ownerQuery, query).tenant ?? null;
  const granterOf = (request: FastifyRequest): string => {
    const owner = ownerOf(request);
    if (owner !== null) return owner;
    throw new RequestError("needs ?tenant=: everybody's adapters need no grants");
  };
  const nameOf = (request: FastifyRequest): string => parameter(request, "name");
  const options = { query: ownerQuery };
  const installed = async (request: FastifyRequest): Promise<AdapterRecord> => {
    const record = await store.adapters.get(ownerOf(request), nameOf(request));
    if (!record) throw new InputError("ADAPTER_NOT_FOUND", "the adapter", "is not there");
    return record;
  };

  app.get("/adapters", described("Adapters of all tenants", { query: listQuery }), async ({ query }) => {
    const { tenant, owner, shared, name, resident, ...asked } = parseRequest(listQuery, query);
    if (tenant !== undefined) await store.tenants.get(tenant);
    const which = { usableBy: tenant, owner: shared ? null : owner, name };
    const { rows, ...page } = await adapterPage({ store, registry }, asked, which, resident);
    return { adapters: rows, ...page };
  });
  // Sizes are the registry's to check, as the archive is unpacked.
  app.addContentTypeParser(ARCHIVES, (_, payload, done) => done(null, payload));
  const install = "Install an adapter: a .tar or .tar.gz as the body";
  app.put("/adapters/:name", described(install, { ...options, consumes: ARCHIVES }), async (request, reply) => {
    const { body } = request;
    if (typeof body !== "object" || body === null || !(Symbol.asyncIterator in body)) {
      throw new RequestError("needs a .tar or .tar.gz as its body");
    }
    const owner = ownerOf(request);
    if (owner !== null) await store.tenants.get(owner); // before anything is read
    const source = { archive: body as AsyncIterable<Uint8Array> };
    return reply.status(201).send(await registry.install(source, { owner, name: nameOf(request) }));
  });
  app.delete("/adapters/:name", described("Remove an adapter", options), (request) =>
    registry.remove(ownerOf(request), nameOf(request)),
  );
  for (const method of ["PUT", "DELETE"] as const) {
    const put = method === "PUT";
    app.route({
      ...{ method, url: "/adapters/:name/pin" },
      ...described(put ? "Load an adapter and keep it in memory" : "Let it be evicted again", options),
      handler: async (request) => {
        const record = await installed(request);
        await (put ? registry.pin(record) : registry.unpin(record));
        return { owner: record.owner, name: record.name, pinned: put };
      },
    });
    app.route({
      ...{ method, url: "/adapters/:name/resident" },
      ...described(
        put ? "Load an adapter into memory" : "Drop it from memory; the next request loads it again",
        options,
      ),
      handler: async (request) => {
        const record = await installed(request);
        const { owner, name } = record;
        if (put) await registry.load(record);
        const { inFlight } = put ? { inFlight: 0 } : await registry.unload(record);
        return { owner, name, resident: put || inFlight > 0, inFlight };
      },
    });
    app.route({
      ...{ method, url: "/adapters/:name/grants/:to" },
      ...described(put ? "Let a tenant use another's adapter" : "Take a grant back", options),
      handler: async (request) => {
        const [owner, name, to] = [granterOf(request), nameOf(request), parameter(request, "to")];
        if (put) return store.grants.grant(owner, name, to);
        await store.grants.revoke(owner, name, to);
        return { owner, name, tenant: to, removed: true };
      },
    });
  }
}
