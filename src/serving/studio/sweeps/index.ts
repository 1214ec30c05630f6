/** @file Routes of sweeps; to be registered where everybody but administrators is refused. */
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { parseRequest } from "../../http/errors.ts";
import { jsonSchema } from "../../http/openapi.ts";
import { CELL_STATES } from "../../sweeps/index.ts";
import { sendTagged } from "../tagged.ts";
import type { SweepWatch } from "./watch.ts";

export { SweepWatch } from "./watch.ts";

/** Cells of an answer. */
const MOST_CELLS = 500;

const number = z.coerce.number().int();
const cellsQuery = z.strictObject({
  state: z.enum(CELL_STATES).optional().describe("only cells in this state"),
  text: z.string().max(200).optional().describe("only cells with this in their label"),
  from: number.min(0).max(Number.MAX_SAFE_INTEGER).default(0).describe("cells that are passed over"),
  limit: number.min(1).max(MOST_CELLS).default(100).describe(`most cells of the answer, up to ${MOST_CELLS}`),
});
const retryBody = z.strictObject({
  jobs: z.array(z.uuid()).min(1).max(10_000).optional().describe("only these; all that failed otherwise"),
});

export async function sweepRoutes(app: FastifyInstance, watch: SweepWatch): Promise<void> {
  app.addHook("onClose", () => watch[Symbol.asyncDispose]());
  const idOf = (params: unknown): string => (params as { readonly id: string }).id;

  app.get(
    "/studio/v1/sweeps",
    { schema: { tags: ["studio"], summary: "Grids that workers do, and the workers" } },
    async (request, reply) => sendTagged(request, reply, await watch.list()),
  );
  app.get(
    "/studio/v1/sweeps/:id",
    { schema: { tags: ["studio"], summary: "A grid with its cells", querystring: jsonSchema(cellsQuery) } },
    async (request, reply) => {
      const { state, text, from, limit } = parseRequest(cellsQuery, request.query);
      return sendTagged(request, reply, await watch.detail(idOf(request.params), { state, text, offset: from, limit }));
    },
  );
  app.post(
    "/studio/v1/sweeps/:id/retry",
    { schema: { tags: ["studio"], summary: "Try again what failed", body: jsonSchema(retryBody) } },
    async (request) => {
      const { jobs } = parseRequest(retryBody, request.body ?? {});
      return { jobs: await watch.retry(idOf(request.params), jobs) };
    },
  );
}
