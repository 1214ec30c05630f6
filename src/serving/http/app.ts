/** @file The HTTP application: who may ask what, how bodies are read, how errors are answered, what is logged. */
import type { FastifyInstance, FastifyRequest } from "fastify";
import { ServingError } from "../errors.ts";
import { studioRoutes } from "../studio/index.ts";
import { adapterRoutes } from "./adapters.ts";
import { adminRoutes } from "./admin.ts";
import { discardRest, isTooLarge } from "./discard.ts";
import { CLIENT_CLOSED, RequestError } from "./errors.ts";
import { holdsNul, newApp, notFound, prepareError } from "./fastify.ts";
import { openaiRoutes } from "./openai/routes.ts";
import { describeRoutes, pageRoutes } from "./openapi.ts";
import { closeWithConnection } from "./pipelined.ts";
import { requireAdmin, whoAsks } from "./principal.ts";
import { probeRoutes } from "./probes.ts";
import type { Services } from "./services.ts";
import { statusRoutes } from "./status.ts";

/** An application over parts that are running; `listen` and `close` are the caller's. */
export async function createApp(services: Services): Promise<FastifyInstance> {
  const app = await newApp(services.config.http);
  watch(app, services);
  await describeRoutes(app, services);
  await app.register(async (scope) => probeRoutes(scope, services));
  await app.register(async (scope) => pageRoutes(scope, services));
  await app.register(async (scope) => studioRoutes(scope, services));
  await app.register(async (scope) => openaiRoutes(scope, services));
  await app.register(async (scope) => adapterRoutes(scope, services));
  await app.register(
    async (scope) => {
      scope.addHook("onRequest", async ({ principal }) => requireAdmin(principal));
      scope.addHook("preHandler", async ({ body }) => {
        if (!isStream(body) && holdsNul(body)) throw new RequestError("the body holds a text with a NUL character");
      });
      await adminRoutes(scope, services);
      statusRoutes(scope, services);
    },
    { prefix: "/admin/v1" },
  );
  return app;
}

/** Keys, draining, errors, the log and the metrics of every request. */
function watch(app: FastifyInstance, services: Services): void {
  const { state, metrics, history, faults, log } = services;
  const { http } = services.config;
  app.addHook("onRoute", (route) => {
    const { handler } = route;
    route.handler = function (request, reply) {
      const work = handler.call(this, request, reply);
      request.facts.work = work;
      return work;
    };
  });
  app.addHook("onRequest", async (request, reply) => {
    request.facts = {};
    state.inFlight++;
    const started = performance.now();
    closeWithConnection(request.raw, reply.raw);
    reply.raw.once("close", async () => {
      const status = reply.raw.writableFinished ? reply.raw.statusCode : CLIENT_CLOSED;
      const ms = performance.now() - started;
      // A client that left may have work under way that has to be stopped and paid for.
      await Promise.resolve(request.facts.work).catch(() => {});
      state.inFlight--;
      report(request, status, ms);
    });
    reply.header("x-request-id", request.id);
    const { config } = request.routeOptions;
    if (state.draining || state.leaving) reply.header("connection", "close");
    if (config.public) return;
    request.principal = (await whoAsks(request, reply, services)).principal;
    if (request.is404) throw notFound(request);
    if (config.admin) requireAdmin(request.principal);
    if (state.draining && !config.always) throw draining();
  });
  app.setErrorHandler((error, request, reply) => {
    const { status, body } = prepareError(error, request, reply);
    request.facts.code = reply.raw.destroyed ? "CLIENT_CLOSED" : body.error.code;
    if (status >= 500) log.error({ id: request.id, err: error }, "a request failed");
    // The rest of a body that was refused is thrown away: by node where nothing was read of it, of uploads by their
    // reader. Closed as soon as it is answered, the connection would take the answer with it.
    if (isTooLarge(error)) {
      discardRest(request.raw, http.bodyBytes);
      if (!state.draining && !state.leaving) reply.removeHeader("connection");
    }
    if (status === 408) reply.header("connection", "close");
    return reply.status(status).send(body);
  });
  const report = (request: FastifyRequest, status: number, ms: number): void => {
    const { method, id } = request;
    const { work: _, ...facts } = request.facts;
    const route = request.routeOptions.url ?? "none";
    metrics.answered(route, status, status === CLIENT_CLOSED ? "CLIENT_CLOSED" : facts.code);
    // Streams that break off, too, whose status was told before. Who leaves early has not been answered with an error.
    const failure = status === CLIENT_CLOSED || facts.code === "CLIENT_CLOSED" ? undefined : facts.code;
    if (method === "POST" && route.startsWith("/v1/")) history.answered(failure !== undefined);
    if (failure !== undefined) {
      const [tenant, adapter] = [request.principal?.tenant ?? null, facts.adapter ?? null];
      faults.add({
        at: new Date().toISOString(),
        requestId: id,
        method,
        route,
        status,
        code: failure,
        tenant,
        adapter,
      });
    }
    const quiet = request.routeOptions.config.public === true && status < 400;
    const fields = { id, method, route, status, ms: Math.round(ms), tenant: request.principal?.tenant, ...facts };
    log[quiet ? "debug" : "info"](fields, "request");
  };
}

const isStream = (body: unknown): boolean => typeof body === "object" && body !== null && Symbol.asyncIterator in body;

export function draining(): ServingError {
  const message = "the server is shutting down; ask again, another one may answer";
  return new ServingError("DRAINING", 503, message, { retryAfterSeconds: 5 });
}
