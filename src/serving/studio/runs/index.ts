/** @file Routes of runs and reproductions; to be registered where everybody but administrators is refused. */
import { createHash } from "node:crypto";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import { parseRequest } from "../../http/errors.ts";
import type { RunLibrary } from "./library.ts";

export { RunLibrary } from "./library.ts";

/** Most points of an answer. */
const MOST_POINTS = 2000;

const points = z.coerce.number().int().min(2).max(MOST_POINTS).optional();
const step = z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER).optional();
const seriesQuery = z
  .strictObject({ from: step, to: step, points })
  .refine(({ from = 0, to = Number.MAX_SAFE_INTEGER }) => from <= to, "from lies after to")
  .transform(({ from, to, points }) => ({
    ...(from !== undefined && { from }),
    ...(to !== undefined && { to }),
    ...(points !== undefined && { points }),
  }));
const expertsQuery = z.strictObject({ points });
const noQuery = z.strictObject({});

/** A page asks again and again; where nothing has changed it is told no more than that. */
function send(request: FastifyRequest, reply: FastifyReply, body: unknown): FastifyReply {
  const text = JSON.stringify(body);
  const tag = `"${createHash("sha256").update(text).digest("base64url").slice(0, 22)}"`;
  reply.header("etag", tag).header("cache-control", "private, no-cache");
  const known = request.headers["if-none-match"]?.split(/, */).some((held) => held.replace(/^W\//, "") === tag);
  return known ? reply.status(304).send() : reply.type("application/json; charset=utf-8").send(text);
}

export async function runRoutes(app: FastifyInstance, library: RunLibrary): Promise<void> {
  app.addHook("onClose", async () => library[Symbol.dispose]());
  const get = (path: string, answer: (id: string, query: unknown) => Promise<unknown>): void => {
    app.get(`/studio/v1${path}`, { schema: { hide: true } }, async (request, reply) =>
      send(request, reply, await answer((request.params as { id?: string }).id ?? "", request.query)),
    );
  };
  const plain = (work: (id: string) => Promise<unknown>) => (id: string, query: unknown) => {
    parseRequest(noQuery, query);
    return work(id);
  };
  get(
    "/runs",
    plain(async () => ({ runs: await library.list() })),
  );
  get(
    "/runs/:id",
    plain((id) => library.detail(id)),
  );
  get("/runs/:id/series", (id, query) => library.series(id, parseRequest(seriesQuery, query)));
  get("/runs/:id/experts", (id, query) => library.experts(id, parseRequest(expertsQuery, query).points));
  get(
    "/runs/:id/activations",
    plain((id) => library.activations(id)),
  );
  get(
    "/reproductions",
    plain(async () => ({ reproductions: await library.reproductions() })),
  );
  get(
    "/reproductions/:id",
    plain((id) => library.reproduction(id)),
  );
}
