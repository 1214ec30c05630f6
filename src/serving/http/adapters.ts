/** @file Adapters over HTTP: what there is, uploads, and the two routes of vLLM. */
import { realpath } from "node:fs/promises";
import { isAbsolute, join, sep } from "node:path";
import multipart from "@fastify/multipart";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { InputError, MiloraError, reasonOf } from "../../base/index.ts";
import { type AdapterRecord, type Installed, type Presence, qualified } from "../adapters/index.ts";
import { ServingError } from "../errors.ts";
import { adapterPage, pageFields } from "./adapter-page.ts";
import { parseRequest, RequestError } from "./errors.ts";
import { jsonSchema } from "./openapi.ts";
import type { Services } from "./services.ts";

const loraName = z
  .string()
  .min(1)
  .regex(/^[^\0]*$/, "holds a NUL character");

const loadSchema = z.object({
  lora_name: loraName.describe("name of the adapter, for all tenants"),
  lora_path: z.string().min(1).describe("its directory, below one of the server's adapterDirectories"),
  load_inplace: z.boolean().default(false).describe("replace an adapter of this name"),
});

const listQuery = z.object({
  own: z.literal("1").optional().describe("1: only your own"),
  name: z.string().optional().describe("only those of exactly this name"),
  ...pageFields,
});

const unloadSchema = z.object({ lora_name: loraName.describe("name of the adapter") });

/** Content types of an archive as the body. */
export const ARCHIVES = [
  "application/x-tar",
  "application/tar",
  "application/gzip",
  "application/x-gzip",
  "application/octet-stream",
];

/** Its tenant `admin` owns nothing: what an admin's key installs is for all. */
const ownerOf = ({ principal }: FastifyRequest): string | null =>
  principal.role === "admin" && principal.keyId !== "open" ? null : principal.tenant;

const nameOf = ({ params }: FastifyRequest): string => (params as { name: string }).name;

export async function adapterRoutes(app: FastifyInstance, services: Services): Promise<void> {
  const { registry, store } = services;
  const tags = ["adapters"];
  const admin = { config: { admin: true } };

  app.get(
    "/v1/adapters",
    { schema: { tags, summary: "Adapters you may use, with what is in memory", querystring: jsonSchema(listQuery) } },
    async (request) => {
      const { own, name, ...asked } = parseRequest(listQuery, request.query);
      const { tenant } = request.principal;
      const { rows, ...page } = await adapterPage(services, asked, {
        usableBy: tenant,
        owner: own ? tenant : undefined,
        name,
      });
      return { object: "list", data: rows.map((record) => shown(record)), ...page };
    },
  );
  app.get("/v1/adapters/*", { schema: { tags, summary: "One of them" } }, async (request) => {
    const model = (request.params as { "*": string })["*"];
    const record = await registry.resolve(request.principal, model);
    if (!record) throw new InputError("MODEL_NOT_FOUND", "the adapter", "does not exist, or is not yours to use");
    return shown(registry.presenceOf(record));
  });
  app.delete("/v1/adapters/:name", { schema: { tags, summary: "Remove an adapter of yours" } }, async (request) => {
    const { record, inFlight } = await registry.remove(ownerOf(request), nameOf(request));
    return { id: qualified(record), object: "adapter", deleted: true, in_flight: inFlight };
  });
  for (const method of ["PUT", "DELETE"] as const) {
    const summary = method === "PUT" ? "Load an adapter and keep it in memory" : "Let it be evicted again";
    app.route({
      ...{ method, url: "/v1/adapters/:name/pin", ...admin, schema: { tags, summary } },
      handler: async (request) => {
        const record = await registry.resolve(request.principal, nameOf(request));
        if (!record) throw new RequestError("the backbone is always in memory");
        await (method === "PUT" ? registry.pin(record) : registry.unpin(record));
        return { id: qualified(record), object: "adapter", pinned: method === "PUT" };
      },
    });
  }
  await app.register(async (scope) => uploadRoutes(scope, services, tags));

  // vLLM answers these two with plain text.
  app.post(
    "/v1/load_lora_adapter",
    {
      ...admin,
      schema: { tags, summary: "Install an adapter of a directory (as in vLLM)", body: jsonSchema(loadSchema) },
    },
    async (request, reply) => {
      const { lora_name: name, lora_path: path, load_inplace } = parseRequest(loadSchema, request.body);
      const directory = await within(path, services.config.adapterDirectories);
      if (!load_inplace && (await store.adapters.get(null, name))) {
        throw new MiloraError(
          "ADAPTER_EXISTS",
          `the adapter '${name}' is there already; unload it, or send load_inplace`,
        );
      }
      const record = await registry.install(directory, { owner: null, name });
      await registry.load(record);
      return reply.type("text/plain").send(`Success: LoRA adapter '${name}' added successfully.`);
    },
  );
  app.post(
    "/v1/unload_lora_adapter",
    { ...admin, schema: { tags, summary: "Remove an adapter (as in vLLM)", body: jsonSchema(unloadSchema) } },
    async (request, reply) => {
      const { lora_name: name } = parseRequest(unloadSchema, request.body);
      await registry.remove(null, name);
      return reply.type("text/plain").send(`Success: LoRA adapter '${name}' removed successfully.`);
    },
  );
}

async function uploadRoutes(app: FastifyInstance, { registry }: Services, tags: string[]): Promise<void> {
  // Sizes are the registry's to check, as the archive is unpacked.
  await app.register(multipart, {
    limits: { files: 1, fields: 8, fieldSize: 1024, fileSize: Number.MAX_SAFE_INTEGER },
  });
  app.addContentTypeParser(ARCHIVES, (_, payload, done) => done(null, payload));
  const summary = "Install an adapter: a .tar or .tar.gz as the body, or as the file of a form";
  app.route({
    ...{
      method: ["POST", "PUT"],
      url: "/v1/adapters/:name",
      schema: { tags, summary, consumes: [...ARCHIVES, "multipart/form-data"] },
    },
    handler: async (request, reply) => {
      const archive = await archiveOf(request);
      const installed = await registry.install({ archive }, { owner: ownerOf(request), name: nameOf(request) });
      return reply.status(201).send(shownInstalled(installed));
    },
  });
}

async function archiveOf(request: FastifyRequest): Promise<AsyncIterable<Uint8Array>> {
  if (!request.isMultipart()) {
    if (request.body === undefined || request.body === null)
      throw new RequestError("the body must be a .tar or .tar.gz");
    return request.body as AsyncIterable<Uint8Array>;
  }
  const part = await request.file().catch((cause: unknown) => {
    throw new RequestError(`the form cannot be read: ${reasonOf(cause)}`);
  });
  if (!part) throw new RequestError("the form has no file");
  return part.file as AsyncIterable<Uint8Array>;
}

/** @throws ServingError FORBIDDEN for whatever does not lie below one of `roots`, links resolved */
async function within(path: string, roots: readonly string[]): Promise<{ directory: string; within: string }> {
  for (const root of roots) {
    const candidate = isAbsolute(path) ? path : join(root, path);
    try {
      const [real, top] = await Promise.all([realpath(candidate), realpath(root)]);
      if (real.startsWith(top.endsWith(sep) ? top : top + sep)) return { directory: real, within: top };
    } catch {
      // Not there, or not to be read: said in the same words as what lies elsewhere.
    }
  }
  const where = roots.length
    ? "no directory below those that this server reads adapters from"
    : "this server reads no directories";
  throw new ServingError(
    "FORBIDDEN",
    403,
    `lora_path: ${where} (adapterDirectories); upload it to /v1/adapters/NAME instead`,
  );
}

function shown(record: AdapterRecord & Partial<Presence>): object {
  return {
    ...{ id: qualified(record), object: "adapter", owner: record.owner, name: record.name, digest: record.digest },
    ...{ method: record.method, rank: record.rank, bytes: record.bytes },
    created: Math.floor(record.createdAt.getTime() / 1000),
    pinned: record.pinned,
    ...(record.resident !== undefined && {
      ...{ resident: record.resident, resident_bytes: record.residentBytes, in_flight: record.inFlight },
      last_used: record.lastUsed ? Math.floor(record.lastUsed.getTime() / 1000) : null,
      ...(record.corrupt && { corrupt: true }),
    }),
  };
}

function shownInstalled({ parameters, tensors, replaced, skipped, ...record }: Installed): object {
  return { ...shown(record), parameters, tensors, replaced: replaced ?? null, skipped };
}
