/** @file POST /studio/v1/explore: what the routers of several adapters do with one prompt, and what they attend to. */
import type { FastifyReply, FastifyRequest } from "fastify";
import { alpacaPrompt } from "../../../training/index.ts";
import { parseRequest } from "../../http/errors.ts";
import { encodePrompt } from "../../http/openai/call.ts";
import type { Services } from "../../http/services.ts";
import type { AdapterRoute, ExploreRequest, ExploreResult, LayerRoute } from "../types.ts";
import { exploreSchema } from "./schemas.ts";
import { tokenTexts } from "./tokens.ts";
import { Visit, type Visited } from "./visit.ts";

export async function explorePrompt(
  services: Services,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<ExploreResult> {
  const body = parseRequest(exploreSchema, request.body);
  const visit = await Visit.begin(services, request, reply, body.adapters);
  const tokens = promptTokens(services, body);
  const visited = await visit.explore([tokens], { attention: true });
  const routes = visited.map((one, i) => routeOf(one, body.adapters[i]!));
  return { tokens: tokenTexts(services.engine.backbone.tokenizer, tokens), routes };
}

function promptTokens(services: Services, { prompt, format }: Pick<ExploreRequest, "prompt" | "format">): number[] {
  if (format === "raw") return encodePrompt(services, prompt, true);
  if (format === "alpaca") return encodePrompt(services, alpacaPrompt(prompt, ""), true);
  const { template, specialTokens } = services.chat;
  encodePrompt(services, "", false); // a backbone without a tokenizer has no template either
  const messages = [{ role: "user", content: prompt }];
  const text = services.engine.backbone.tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, template });
  return encodePrompt(services, text, specialTokens);
}

/** @param adapter as it was asked for */
function routeOf({ record, method, experts, pooler, explored }: Visited, adapter: string): AdapterRoute {
  const { route, attention } = explored[0]!;
  const layers = route.probabilities.map((probabilities, layer): LayerRoute => {
    const chosen = route.experts[layer]!.map((name) => experts.indexOf(name));
    return { probabilities, chosen, attention: attention?.[layer] ?? null };
  });
  return { adapter, digest: record.digest, method, experts, pooler, layers };
}
