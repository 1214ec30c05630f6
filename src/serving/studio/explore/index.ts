/** @file The routing explorer: routes of a prompt, and Figure 2 of a data set, for whoever may use the adapters. */
import type { FastifyInstance } from "fastify";
import { jsonSchema } from "../../http/openapi.ts";
import type { Services } from "../../http/services.ts";
import { exploreData } from "./figure.ts";
import { explorePrompt } from "./prompt.ts";
import { listRouted } from "./routed.ts";
import { namedData } from "./rows.ts";
import { exploreDataSchema, exploreSchema } from "./schemas.ts";

export function exploreRoutes(app: FastifyInstance, services: Services): void {
  const tags = ["studio"];
  app.post(
    "/studio/v1/explore",
    { schema: { tags, summary: "What adapters' routers do with a prompt", body: jsonSchema(exploreSchema) } },
    (request, reply) => explorePrompt(services, request, reply),
  );
  app.get("/studio/v1/explore", { schema: { tags, summary: "Adapters that route, and that you may use" } }, (request) =>
    listRouted(services, request),
  );
  app.get("/studio/v1/data", { schema: { tags, summary: "Data sets that can be routed by name" } }, async () => ({
    data: await namedData(),
  }));
  app.post(
    "/studio/v1/explore/data",
    {
      schema: { tags, summary: "How often each expert is active over a data set", body: jsonSchema(exploreDataSchema) },
    },
    (request, reply) => exploreData(services, request, reply),
  );
}
