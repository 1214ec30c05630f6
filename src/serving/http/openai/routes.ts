/** @file The routes of OpenAI's API. */
import type { FastifyInstance } from "fastify";
import { jsonSchema } from "../openapi.ts";
import type { Services } from "../services.ts";
import { chatCompletions } from "./chat.ts";
import { completions } from "./completions.ts";
import { getModel, listModels } from "./models.ts";
import { chatSchema, completionSchema } from "./schemas.ts";

export function openaiRoutes(app: FastifyInstance, services: Services): void {
  const tags = ["openai"];
  app.post(
    "/v1/completions",
    { schema: { tags, summary: "Continue a prompt", body: jsonSchema(completionSchema) } },
    (request, reply) => completions(services, request, reply),
  );
  app.post(
    "/v1/chat/completions",
    { schema: { tags, summary: "Answer a conversation", body: jsonSchema(chatSchema) } },
    (request, reply) => chatCompletions(services, request, reply),
  );
  app.get("/v1/models", { schema: { tags, summary: "The backbone, and adapters you may use" } }, (request) =>
    listModels(services, request),
  );
  app.get("/v1/models/*", { schema: { tags, summary: "One of them" } }, (request) => getModel(services, request));
}
