/** @file What a server does now, did lately, and failed at: for who operates it. */
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { ServerErrorEntry, ServerHistory, ServerStatus } from "../studio/types.ts";
import { parseRequest } from "./errors.ts";
import { HISTORY_SECONDS } from "./history.ts";
import { jsonSchema } from "./openapi.ts";
import type { Services } from "./services.ts";

const historyQuery = z.strictObject({
  seconds: z.coerce
    .number()
    .int()
    .min(1)
    .max(HISTORY_SECONDS)
    .default(900)
    .describe("how far back; fewer points where the server has not run that long"),
});

/** To be registered below /admin/v1, where everybody else has been refused. */
export function statusRoutes(app: FastifyInstance, services: Services): void {
  const { history, faults } = services;
  const tags = ["admin"];
  const always = { config: { always: true } };
  app.get(
    "/status",
    { ...always, schema: { tags, summary: "What runs and waits now, memory, and who has requests under way" } },
    async (): Promise<ServerStatus> => statusOf(services),
  );
  app.get(
    "/history",
    {
      ...always,
      schema: { tags, summary: "The last minutes, a point a second", querystring: jsonSchema(historyQuery) },
    },
    async ({ query }): Promise<ServerHistory> => history.read(parseRequest(historyQuery, query).seconds),
  );
  app.get(
    "/errors",
    { ...always, schema: { tags, summary: "The last answers with an error, newest first" } },
    async (): Promise<{ errors: readonly ServerErrorEntry[] }> => ({ errors: faults.list() }),
  );
}

function statusOf({ startedAt, state, scheduler, engine, registry }: Services): ServerStatus {
  const { waiting, running, rows, adapters, kvTokens, tenants } = scheduler.stats();
  const { maxBatch, maxWaiting } = scheduler.limits;
  const { resident, residentBytes } = registry.stats;
  return {
    uptimeSeconds: Math.max(0, Math.floor(Date.now() / 1000) - startedAt),
    draining: state.draining || state.leaving,
    ...{ waiting, running, rows, adapters, kvTokens, kvBytes: engine.kvBytes },
    ...{ residentAdapters: resident, residentBytes, residentLimitBytes: registry.limits.maxResidentBytes },
    prefixCacheBytes: engine.prefixCache?.bytes ?? 0,
    rssBytes: process.memoryUsage.rss(),
    limits: { maxBatch, maxWaiting },
    tenants: [...tenants]
      .map(([tenant, { waiting, running }]) => ({ tenant, waiting, running }))
      .sort((a, b) => (a.tenant < b.tenant ? -1 : 1)),
  };
}
