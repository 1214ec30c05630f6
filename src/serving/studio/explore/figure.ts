/** @file POST /studio/v1/explore/data: Figure 2 of any data set, with its progress, as lines of JSON. */
import type { FastifyReply, FastifyRequest } from "fastify";
import { MiloraError } from "../../../base/index.ts";
import { RoutingTally } from "../../../training/index.ts";
import { answerOf, parseRequest } from "../../http/errors.ts";
import { encodePrompt } from "../../http/openai/call.ts";
import type { Services } from "../../http/services.ts";
import { EventStream, LINES, StreamClosedError } from "../../http/sse.ts";
import type { ExploreDataLine, ExploreDataResult } from "../types.ts";
import { followed } from "./followed.ts";
import { type DataPrompt, readPrompts } from "./rows.ts";
import { exploreDataSchema } from "./schemas.ts";
import { Visit, type Visited } from "./visit.ts";

/** Errors before the first line are answered with their status, later ones are a line of their own. */
export async function exploreData(services: Services, request: FastifyRequest, reply: FastifyReply): Promise<unknown> {
  const body = parseRequest(exploreDataSchema, request.body);
  const visit = await Visit.begin(services, request, reply, [body.adapter]);
  encodePrompt(services, "", false); // prompts need a tokenizer
  const { backbone } = services.engine;
  const context = services.engine.contextOf();
  const prompts = await readPrompts(body, backbone.tokenizer, { context, signal: visit.signal });
  const stream = new EventStream(reply, services.config.http.stallSeconds * 1000, LINES);
  const send = (line: ExploreDataLine): Promise<void> => stream.send(line);
  request.facts.stream = true;
  const tokens = prompts.map((prompt) => prompt.tokens);
  try {
    const steps = followed<ExploreDataLine, Visited[]>((tell) =>
      visit.explore(tokens, { onProgress: (done, total) => tell({ done, total }) }),
    );
    let step = await steps.next();
    for (; !step.done; step = await steps.next()) await send(step.value);
    await send({ result: figureOf(prompts, step.value[0]!) });
  } catch (error) {
    if (!stream.begun) throw error;
    await tellFailure(services, request, reply, error, send);
  }
  stream.end();
  return reply;
}

async function tellFailure(
  { log }: Services,
  { facts, id }: FastifyRequest,
  { raw }: FastifyReply,
  error: unknown,
  send: (line: ExploreDataLine) => Promise<void>,
): Promise<void> {
  if (error instanceof StreamClosedError || raw.destroyed) {
    facts.code = "CLIENT_CLOSED";
    return;
  }
  const { status, body } = answerOf(error, id);
  const { code, message } = body.error;
  facts.code = code;
  const known = error instanceof MiloraError && status < 500;
  log[known ? "warn" : "error"]({ id, err: error }, "an exploration broke off");
  await send({ error: { code, message } }).catch(() => {});
}

function figureOf(prompts: readonly DataPrompt[], { experts, explored }: Visited): ExploreDataResult {
  const tally = new RoutingTally(experts);
  const layers = explored[0]!.route.experts.length;
  const active = Array.from({ length: layers }, () => new Array<number>(experts.length).fill(0));
  for (const [i, { route }] of explored.entries()) {
    const gates = route.experts.flatMap((chosen) => experts.map((name) => (chosen.includes(name) ? 1 : 0)));
    tally.add(prompts[i]!.answer ?? "", gates, route.probabilities.flat());
    for (const [layer, chosen] of route.experts.entries()) {
      for (const name of chosen) active[layer]![experts.indexOf(name)]! += 1 / explored.length;
    }
  }
  const metrics = tally.metrics()!;
  const answered = prompts.some(({ answer }) => answer !== undefined);
  return {
    rows: explored.length,
    experts,
    active,
    entropy: metrics.entropy,
    routes: metrics.routes,
    information: answered ? metrics.mutual_information : [],
    informationByChance: answered ? metrics.mutual_information_by_chance : [],
    labelEntropy: answered ? metrics.label_entropy : 0,
  };
}
