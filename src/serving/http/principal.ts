/** @file Who asks: the bearer key of a request, or the one tenant of an open server. */
import type { FastifyRequest } from "fastify";
import { ServingError } from "../errors.ts";
import type { Principal } from "../store/index.ts";

declare module "fastify" {
  interface FastifyRequest {
    /** Set for every route that is not public. */
    principal: Principal;
    /** What the log and the metrics say of the request once it is answered. */
    facts: RequestFacts;
  }
  interface FastifyContextConfig {
    /** Answered without a key. */
    public?: boolean;
    /** Only for keys of the role admin. */
    admin?: boolean;
    /** Answered while the server drains. */
    always?: boolean;
  }
}

export interface RequestFacts {
  /** The handler on its way. */
  work?: unknown;
  adapter?: string;
  promptTokens?: number;
  completionTokens?: number;
  stream?: boolean;
  /** Code of the error that it was answered with. */
  code?: string;
}

export interface Authenticator {
  authenticate(secret: string): Promise<Principal | undefined>;
}

/**
 * Who sent a request.
 * @param open who everybody is that brings no key of this server; undefined where keys are required
 * @throws ServingError UNAUTHENTICATED
 */
export async function identify(
  request: FastifyRequest,
  keys: Authenticator,
  open: Principal | undefined,
): Promise<Principal> {
  const { authorization } = request.headers;
  const secret = authorization === undefined ? undefined : /^Bearer +(\S+) *$/i.exec(authorization)?.[1];
  // Clients of an open server send keys that mean nothing, since their libraries insist on one.
  const known = secret === undefined ? undefined : await keys.authenticate(secret);
  const principal = known ?? open;
  if (principal) return principal;
  const problem =
    authorization === undefined
      ? "no key; send the header Authorization: Bearer KEY (milora keys create makes one)"
      : secret === undefined
        ? "the Authorization header is not of the form Bearer KEY"
        : "the key is unknown, expired or revoked";
  throw new ServingError("UNAUTHENTICATED", 401, problem);
}

/** @throws ServingError FORBIDDEN */
export function requireAdmin({ role }: Principal): void {
  if (role !== "admin") throw new ServingError("FORBIDDEN", 403, "this needs a key of the role admin");
}

/**
 * An open server on the loopback address is for programs of this machine, not for web pages that its user looks at:
 * those name another origin, or reach it by another host name.
 *
 * @throws ServingError FORBIDDEN
 */
export function refuseForeignPages(request: FastifyRequest): void {
  const host = hostOf(request.headers.host);
  if (host !== undefined && !LOCAL.test(host)) {
    throw new ServingError(
      "FORBIDDEN",
      403,
      "a server without keys answers only to localhost; make a key, or serve with --auth open",
    );
  }
  const { origin } = request.headers;
  if (origin === undefined) return;
  let from: string | undefined;
  try {
    from = new URL(origin).hostname;
  } catch {
    from = undefined; // "null"
  }
  if (from === undefined || !LOCAL.test(from)) {
    throw new ServingError(
      "FORBIDDEN",
      403,
      "a server without keys answers no web pages; make a key, or serve with --auth open",
    );
  }
}

const LOCAL = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

function hostOf(header: string | undefined): string | undefined {
  return header?.replace(/:\d+$/, "").toLowerCase();
}
