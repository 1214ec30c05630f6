/** @file A fastify application with milora's limits and its way to read bodies and to answer errors, and no routes. */
import { randomUUID } from "node:crypto";
import cookie from "@fastify/cookie";
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import { parseJson } from "../../base/index.ts";
import { ServingError } from "../errors.ts";
import type { ServerConfig } from "./config.ts";
import { connectionErrors } from "./connection-errors.ts";
import { answerOf, type ErrorAnswer, RequestError } from "./errors.ts";

/** What clients may call their request themselves. */
const REQUEST_ID = /^[A-Za-z0-9._:-]{1,128}$/;

const newId = (): string => `req-${randomUUID()}`;

/** Values in a body: a thousand prompts of a thousand token ids. */
const MOST_VALUES = 1_000_000;

/** On every answer, whatever it is: nobody guesses its type, shows it within a page, or reads it from another site. */
const HEADERS = {
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  "cross-origin-resource-policy": "same-origin",
} as const;

export async function newApp(http: ServerConfig["http"]): Promise<FastifyInstance> {
  const app = fastify({
    logger: false,
    bodyLimit: http.bodyBytes,
    requestTimeout: http.requestSeconds * 1000,
    keepAliveTimeout: http.keepAliveSeconds * 1000,
    http: {
      headersTimeout: http.headersSeconds * 1000,
      maxHeaderSize: http.headerBytes,
      connectionsCheckingInterval: Math.min(5000, http.headersSeconds * 500),
    },
    genReqId: ({ headers }) => {
      const given = headers["x-request-id"];
      return typeof given === "string" && REQUEST_ID.test(given) ? given : newId();
    },
    routerOptions: { maxParamLength: 400 },
    // Addresses that cannot be read: fastify answers them before there is a route, and would in a form of its own.
    frameworkErrors: (error, request, reply) => {
      const answer = (reply as unknown as FastifyReply).headers(HEADERS).header("x-request-id", request.id);
      const { body } = prepareError(error, request, answer);
      return answer.type("application/json; charset=utf-8").send(JSON.stringify(body));
    },
    clientErrorHandler: connectionErrors(HEADERS, newId),
    return503OnClosing: false,
    // When it closes nothing is under way any more; idle connections would hold it up.
    forceCloseConnections: true,
    // Bodies are checked by zod in the handlers; the routes' schemas are for the document only.
    ajv: { customOptions: { strict: false } },
  });
  app.server.maxConnections = http.maxConnections;
  app.setValidatorCompiler(() => () => true);
  app.setSerializerCompiler(() => (data) => JSON.stringify(data));
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("application/json", { parseAs: "string" }, async (_: unknown, text: string) =>
    text === "" ? undefined : parseJson(text, "the body", { mostValues: MOST_VALUES }),
  );
  // Cookies are read where somebody asks for them: most requests bring none.
  await app.register(cookie, { hook: false });
  app.addHook("onRequest", (_, reply, done) => {
    reply.headers(HEADERS); // routes may set their own
    done();
  });
  // Such a character is in no name, and no database takes it.
  app.addHook("preHandler", (request, _, done) => {
    done(holdsNul(request.params) || holdsNul(request.query) ? new RequestError("the address holds %00") : undefined);
  });
  app.decorateRequest("principal");
  app.decorateRequest("facts");
  app.setNotFoundHandler((request) => {
    throw notFound(request);
  });
  return app;
}

/** Whether a text in it has a NUL character. */
export function holdsNul(value: unknown): boolean {
  if (typeof value === "string") return value.includes("\0");
  return typeof value === "object" && value !== null && Object.entries(value).some((pair) => pair.some(holdsNul));
}

/** What an error is answered with; the reply gets its status and headers. */
export function prepareError(error: unknown, request: FastifyRequest, reply: FastifyReply): ErrorAnswer {
  const answer = answerOf(error, request.id);
  const { status, retryAfterSeconds } = answer;
  if (retryAfterSeconds !== undefined) reply.header("retry-after", retryAfterSeconds);
  if (status === 401) reply.header("www-authenticate", "Bearer");
  reply.status(status);
  return answer;
}

export function notFound({ method, url }: FastifyRequest): ServingError {
  const path = url.split("?")[0]!.slice(0, 200);
  return new ServingError("ROUTE_NOT_FOUND", 404, `there is no route ${method} ${path}; GET /docs lists them`);
}
