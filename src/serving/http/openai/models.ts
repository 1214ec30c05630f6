/** @file GET /v1/models: the backbone, and the adapters that the caller may use. */
import type { FastifyRequest } from "fastify";
import { type AdapterRecord, qualified } from "../../adapters/index.ts";
import type { Services } from "../services.ts";

interface Model {
  readonly id: string;
  readonly object: "model";
  readonly created: number;
  readonly owned_by: string;
  /** The backbone, of an adapter. */
  readonly parent: string | null;
  readonly root: string;
  readonly max_model_len?: number;
  readonly x_milora?: { readonly digest: string; readonly method: string; readonly rank: number | null };
}

export async function listModels(services: Services, request: FastifyRequest): Promise<object> {
  const { tenant } = request.principal;
  const adapters = await services.registry.list({ tenant });
  return { object: "list", data: [baseModel(services), ...adapters.map((record) => model(services, tenant, record))] };
}

/** @throws InputError MODEL_NOT_FOUND */
export async function getModel(services: Services, request: FastifyRequest): Promise<Model> {
  const id = (request.params as { "*": string })["*"];
  const record = await services.registry.resolve(request.principal, id);
  return record ? model(services, request.principal.tenant, record) : baseModel(services);
}

function baseModel(services: Services): Model {
  const { base, startedAt } = services;
  return {
    ...{ id: base, object: "model", created: startedAt, owned_by: "milora", parent: null, root: base },
    max_model_len: contextOf(services),
  };
}

/** The most tokens of a prompt with its answer. */
export function contextOf({ engine, config }: Services): number {
  const { maxPositions } = engine.backbone.config;
  return Math.min(config.context ?? maxPositions, maxPositions);
}

/** An adapter under the name by which the caller asks for it. */
function model({ base }: Services, tenant: string, record: AdapterRecord): Model {
  const { owner, name, digest, method, rank, createdAt } = record;
  const id = owner === tenant ? name : qualified(record);
  const created = Math.floor(createdAt.getTime() / 1000);
  const owned_by = owner ?? "shared";
  return { id, object: "model", created, owned_by, parent: base, root: id, x_milora: { digest, method, rank } };
}
