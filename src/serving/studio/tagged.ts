/** @file Answers with a tag of what is in them. */
import { createHash } from "node:crypto";
import type { FastifyReply, FastifyRequest } from "fastify";

/** A page asks again and again; where nothing has changed it is told no more than that. */
export function sendTagged(request: FastifyRequest, reply: FastifyReply, body: unknown): FastifyReply {
  const text = JSON.stringify(body);
  const tag = `"${createHash("sha256").update(text).digest("base64url").slice(0, 22)}"`;
  reply.header("etag", tag).header("cache-control", "private, no-cache");
  const known = request.headers["if-none-match"]?.split(/, */).some((held) => held.replace(/^W\//, "") === tag);
  return known ? reply.status(304).send() : reply.type("application/json; charset=utf-8").send(text);
}
