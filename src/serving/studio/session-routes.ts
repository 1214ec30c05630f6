/** @file /studio/v1/session: signing in with a key, and out again. */
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { version } from "../../base/index.ts";
import { ServingError } from "../errors.ts";
import { parseRequest } from "../http/errors.ts";
import { contextOf } from "../http/openai/models.ts";
import { type Asker, refuseOtherOrigins, setCookie, whoAsks } from "../http/principal.ts";
import type { Services } from "../http/services.ts";
import { Attempts } from "./attempts.ts";
import type { StudioSession } from "./types.ts";

const PATH = "/studio/v1/session";
const signInSchema = z.object({ key: z.string().trim().min(1).max(200).describe("key of a tenant or administrator") });

export function sessionRoutes(app: FastifyInstance, services: Services, attempts = new Attempts()): void {
  const { store, sessions, engine, chat, base, config } = services;
  const { backbone } = engine;
  const server: StudioSession["server"] = {
    base,
    context: contextOf(services),
    layers: backbone.config.numLayers,
    chat: chat.template !== undefined || (backbone.hasTokenizer && backbone.tokenizer.hasChatTemplate),
  };
  const shown = (asker: Asker | undefined): StudioSession => {
    const { role = null, tenant = null } = asker?.principal ?? {};
    const runs = role === "admin" && config.runs.length > 0;
    const sweeps = role === "admin" && config.database !== undefined;
    return {
      signedIn: asker !== undefined,
      byKey: asker?.by === "cookie",
      role,
      tenant,
      version,
      server,
      runs,
      sweeps,
    };
  };
  const options = { config: { public: true }, schema: { hide: true } };
  app.addHook("onRequest", async (_, reply) => void reply.header("cache-control", "no-store"));

  app.get(PATH, options, async (request, reply) => shown(await known(() => whoAsks(request, reply, services))));

  app.post(PATH, options, async (request, reply) => {
    refuseOtherOrigins(request);
    const { key } = parseRequest(signInSchema, request.body);
    const wait = attempts.waitOf(request.ip);
    if (wait > 0) {
      const message = `too many wrong keys; try again in ${wait} s`;
      throw new ServingError("TOO_MANY_ATTEMPTS", 429, message, { retryAfterSeconds: wait });
    }
    const principal = await store.authenticate(key);
    if (!principal) {
      attempts.failed(request.ip);
      throw new ServingError("UNAUTHENTICATED", 401, "the key is unknown, expired or revoked");
    }
    request.principal = principal; // for the log
    setCookie(request, reply, sessions.seal(key));
    return shown({ principal, by: "cookie" });
  });

  app.delete(PATH, options, async (request, reply) => {
    refuseOtherOrigins(request);
    setCookie(request, reply, "");
    delete request.headers.cookie; // who is here without it
    return shown(await known(() => whoAsks(request, reply, services)));
  });
}

async function known(ask: () => Promise<Asker>): Promise<Asker | undefined> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof ServingError && error.code === "UNAUTHENTICATED") return undefined;
    throw error;
  }
}
