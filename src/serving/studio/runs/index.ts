/** @file Routes of runs, reproductions and grids; to be registered where everybody but administrators is refused. */
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { parseRequest } from "../../http/errors.ts";
import { jsonSchema } from "../../http/openapi.ts";
import { sendTagged } from "../tagged.ts";
import type { RunLibrary } from "./library.ts";

export { RunLibrary } from "./library.ts";

/** Most points of an answer. */
const MOST_POINTS = 2000;

const number = z.coerce.number().int();
const points = number.min(2).max(MOST_POINTS).optional().describe(`most points of the answer, up to ${MOST_POINTS}`);
const step = number.min(0).max(Number.MAX_SAFE_INTEGER).optional();
const seriesQuery = z
  .strictObject({ from: step.describe("first step"), to: step.describe("last step"), points })
  .refine(({ from = 0, to = Number.MAX_SAFE_INTEGER }) => from <= to, "from lies after to")
  .transform(({ from, to, points }) => ({
    ...(from !== undefined && { from }),
    ...(to !== undefined && { to }),
    ...(points !== undefined && { points }),
  }));
const expertsQuery = z.strictObject({ points });
const noQuery = z.strictObject({});

/** The path below /studio/v1, what is answered, and what may be asked. */
interface Route<Q extends z.ZodType> {
  readonly path: string;
  readonly summary: string;
  readonly query: Q;
  readonly answer: (id: string, query: z.output<Q>) => Promise<unknown>;
}

export async function runRoutes(app: FastifyInstance, library: RunLibrary): Promise<void> {
  app.addHook("onClose", async () => library[Symbol.dispose]());
  const get = <Q extends z.ZodType>({ path, summary, query, answer }: Route<Q>): void => {
    const schema = { tags: ["studio"], summary, querystring: jsonSchema(query) };
    app.get(`/studio/v1${path}`, { schema }, async (request, reply) => {
      const { id = "" } = request.params as { id?: string };
      return sendTagged(request, reply, await answer(id, parseRequest(query, request.query)));
    });
  };
  const plain = (path: string, summary: string, answer: (id: string) => Promise<unknown>): void =>
    get({ path, summary, query: noQuery, answer });

  plain("/runs", "Training runs, and how they stand", async () => ({ runs: await library.list() }));
  plain("/runs/:id", "A run with its config and evaluations", (id) => library.detail(id));
  get({
    path: "/runs/:id/series",
    summary: "What was measured at its steps, or at some of them: means, least and largest",
    query: seriesQuery,
    answer: (id, query) => library.series(id, query),
  });
  get({
    path: "/runs/:id/experts",
    summary: "Shares of the experts in each layer over training",
    query: expertsQuery,
    answer: (id, query) => library.experts(id, query.points),
  });
  plain("/runs/:id/activations", "Learned activation functions of its best adapter", (id) => library.activations(id));
  plain("/reproductions", "What milora reproduce has written", async () => ({
    reproductions: await library.reproductions(),
  }));
  plain("/reproductions/:id", "Tables and figures of the paper, measured", (id) => library.reproduction(id));
  plain("/grids", "Grids that milora sweep has put into folders", async () => ({ grids: await library.grids() }));
  plain("/grids/:id", "A grid's table of results", (id) => library.grid(id));
}
