/** @file /healthz, /readyz and /metrics: what load balancers and Prometheus ask. */
import type { FastifyInstance } from "fastify";
import { requireAdmin } from "./principal.ts";
import type { Services } from "./services.ts";

export function probeRoutes(app: FastifyInstance, { state, metrics, scheduler, store, open }: Services): void {
  const probe = { config: { public: true, always: true } };
  const schema = { tags: ["operation"], security: [] };
  app.get("/healthz", { ...probe, schema: { ...schema, summary: "The process lives" } }, async () => ({
    status: "ok",
  }));
  app.get("/health", { ...probe, schema: { ...schema, hide: true } }, async () => ({ status: "ok" }));
  app.get(
    "/readyz",
    { ...probe, schema: { ...schema, summary: "503 while the server drains, or its database is away" } },
    async (_, reply) => {
      if (state.draining || state.leaving)
        return reply.status(503).header("retry-after", 5).send({ status: "draining" });
      if (!store.reachable) return reply.status(503).header("retry-after", 1).send({ status: "database" });
      const { waiting, running } = scheduler.stats();
      return { status: "ready", waiting, running };
    },
  );
  // Names of tenants and adapters are nobody else's business.
  const guarded = { config: { always: true } };
  app.get(
    "/metrics",
    { ...guarded, schema: { tags: ["operation"], summary: "Prometheus metrics; needs an admin key" } },
    async (request, reply) => {
      if (request.principal !== open) requireAdmin(request.principal);
      return reply.type(metrics.registry.contentType).send(await metrics.registry.metrics());
    },
  );
}
