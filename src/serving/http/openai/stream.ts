/** @file Sends the pieces of an answer as events, and an error that comes in their middle as the last of them. */
import type { FastifyReply, FastifyRequest } from "fastify";
import { MiloraError } from "../../../base/index.ts";
import { answerOf } from "../errors.ts";
import type { Services } from "../services.ts";
import { EventStream, StreamClosedError } from "../sse.ts";

/**
 * An error before the first piece is thrown, to be answered with its status.
 * @param pieces JSON objects, in OpenAI's form
 */
export async function sendStream(
  services: Services,
  request: FastifyRequest,
  reply: FastifyReply,
  pieces: AsyncGenerator<object>,
): Promise<FastifyReply> {
  const { facts, id } = request;
  facts.stream = true;
  const stream = new EventStream(reply, services.config.http.stallSeconds * 1000);
  try {
    for await (const piece of pieces) await stream.send(piece);
    await stream.send("[DONE]");
  } catch (error) {
    if (!stream.begun) throw error;
    if (error instanceof StreamClosedError || reply.raw.destroyed) facts.code = "CLIENT_CLOSED";
    else {
      const { status, body } = answerOf(error, id);
      facts.code = body.error.code;
      const known = error instanceof MiloraError && status < 500;
      services.log[known ? "warn" : "error"]({ id, err: error }, "an answer broke off");
      await stream.send(body).catch(() => {});
    }
  }
  stream.end();
  return reply;
}
