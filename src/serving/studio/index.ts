/** @file The studio within a server: its pages, its session, and what its pages ask for. */
import type { FastifyInstance } from "fastify";
import { requireAdmin } from "../http/principal.ts";
import type { Services } from "../http/services.ts";
import { exploreRoutes } from "./explore/index.ts";
import { studioPages } from "./pages.ts";
import { RunLibrary, runRoutes } from "./runs/index.ts";
import { sessionRoutes } from "./session-routes.ts";
import { SweepWatch, sweepRoutes } from "./sweeps/index.ts";

export async function studioRoutes(app: FastifyInstance, services: Services): Promise<void> {
  await app.register(async (scope) => studioPages(scope, "/docs"));
  await app.register(async (scope) => sessionRoutes(scope, services));
  await app.register(async (scope) => exploreRoutes(scope, services));
  await app.register(async (scope) => {
    scope.addHook("onRequest", async ({ principal }) => requireAdmin(principal));
    const { runs, database } = services.config;
    const library = runs.length > 0 ? new RunLibrary(runs) : undefined;
    if (library) await runRoutes(scope, library);
    if (database !== undefined) await sweepRoutes(scope, new SweepWatch(database, library));
  });
}
