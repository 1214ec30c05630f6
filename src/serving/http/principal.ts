/** @file Who asks: the bearer key of a request, the studio's cookie, or the one tenant of an open server. */
import type { FastifyReply, FastifyRequest } from "fastify";
import { ServingError } from "../errors.ts";
import type { Principal } from "../store/index.ts";
import { COOKIE, SESSION_MS } from "../studio/sessions.ts";
import type { Services } from "./services.ts";

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

/** Who sends a request, and how that is known. */
export interface Asker {
  readonly principal: Principal;
  readonly by: "key" | "cookie" | "nobody";
}

/** What tells who sends a request. */
export type Doorkeeper = Pick<Services, "store" | "sessions" | "open" | "guarded">;

/**
 * Who sends a request: by the key of its head, by the studio's cookie, or everybody where no keys are needed. A cookie
 * that is some minutes old is renewed with the answer.
 *
 * @throws ServingError UNAUTHENTICATED; FORBIDDEN for what may come of another site's page
 */
export async function whoAsks(request: FastifyRequest, reply: FastifyReply, door: Doorkeeper): Promise<Asker> {
  const { store, sessions } = door;
  const { authorization } = request.headers;
  const cookie = authorization === undefined ? cookieOf(request) : undefined;
  const session = cookie === undefined ? undefined : sessions.open(cookie);
  const secret = authorization === undefined ? session?.key : /^Bearer +(\S+) *$/i.exec(authorization)?.[1];
  const known = secret === undefined ? undefined : await store.authenticate(secret);
  if (known && session) {
    refuseForgeries(request);
    if (session.renew) setCookie(request, reply, sessions.seal(session.key));
    return { principal: known, by: "cookie" };
  }
  if (known) return { principal: known, by: "key" };
  // Clients of an open server send keys that mean nothing, since their libraries insist on one.
  const principal = await everybody(door);
  if (principal) {
    if (door.guarded) refuseForeignPages(request);
    return { principal, by: "nobody" };
  }
  const problem =
    secret !== undefined
      ? "the key is unknown, expired or revoked"
      : authorization === undefined
        ? "no key; send the header Authorization: Bearer KEY (milora keys create makes one)"
        : "the Authorization header is not of the form Bearer KEY";
  throw new ServingError("UNAUTHENTICATED", 401, problem);
}

/** Who is served without a key; with the first tenant or key a server that was open by itself wants keys. */
async function everybody({ open, guarded, store }: Doorkeeper): Promise<Principal | undefined> {
  return open && guarded && !(await store.unclaimed()) ? undefined : open;
}

function cookieOf({ headers, server }: FastifyRequest): string | undefined {
  return headers.cookie === undefined ? undefined : server.parseCookie(headers.cookie)[COOKIE];
}

/** @param value empty: the cookie goes */
export function setCookie({ headers, protocol, server }: FastifyRequest, reply: FastifyReply, value: string): void {
  // A client that lies to itself only keeps its own cookie from itself.
  const secure = protocol === "https" || /^https\b/.test(String(headers["x-forwarded-proto"] ?? ""));
  const maxAge = value === "" ? 0 : SESSION_MS / 1000;
  reply.header(
    "set-cookie",
    server.serializeCookie(COOKIE, value, { path: "/", httpOnly: true, sameSite: "strict", secure, maxAge }),
  );
}

/** @throws ServingError FORBIDDEN */
export function requireAdmin({ role }: Principal): void {
  if (role !== "admin") throw new ServingError("FORBIDDEN", 403, "this needs a key of the role admin");
}

/** Sent with every request of the studio. Pages of another origin cannot send it without being allowed to. */
const STUDIO_HEADER = "x-milora-studio";

/**
 * A browser sends the cookie whoever's page asks it to, of another port too: only the studio's own requests count.
 * @throws ServingError FORBIDDEN
 */
function refuseForgeries(request: FastifyRequest): void {
  refuseOtherOrigins(request);
  if (isSafe(request) || request.headers[STUDIO_HEADER] === "1") return;
  throw new ServingError("FORBIDDEN", 403, `a request by cookie that changes something needs ${STUDIO_HEADER}: 1`);
}

/** @throws ServingError FORBIDDEN for a request of another origin's page */
export function refuseOtherOrigins(request: FastifyRequest): void {
  if (!isOwnOrigin(request)) throw new ServingError("FORBIDDEN", 403, "pages of another origin are not answered");
}

function isSafe({ method }: FastifyRequest): boolean {
  return method === "GET" || method === "HEAD";
}

/**
 * Whether a request comes of a page of this server, or of no page at all. `Sec-Fetch-Site` cannot be forged by a page and
 * is right behind any proxy, but older browsers, and all over plain http beyond this machine, only send `Origin`.
 */
function isOwnOrigin({ headers }: FastifyRequest): boolean {
  const { origin, host, "sec-fetch-site": site } = headers;
  if (site === "same-origin") return true;
  if (site !== undefined && site !== "none") return false;
  if (origin === undefined) return true;
  try {
    const from = new URL(origin);
    return from.host === new URL(`${from.protocol}//${host}`).host;
  } catch {
    return false; // "null"
  }
}

const OPEN_REMEDY = "make a key, or serve with --auth open";

/**
 * An open server on the loopback address is for programs of this machine, not for web pages that its user looks at:
 * those name another origin, or reach it by another host name. Its own studio is let in.
 *
 * @param remedy what else there is to do
 * @throws ServingError FORBIDDEN
 */
export function refuseForeignPages(request: FastifyRequest, remedy = OPEN_REMEDY): void {
  const { host, origin } = request.headers;
  if (host !== undefined && !LOCAL.test(host.replace(/:\d+$/, "").toLowerCase())) {
    throw new ServingError("FORBIDDEN", 403, `a server without keys answers only to localhost; ${remedy}`);
  }
  // What another local page only reads it does not get to see.
  if (isOwnOrigin(request) || (isSafe(request) && isLocalOrigin(origin))) return;
  throw new ServingError("FORBIDDEN", 403, `a server without keys answers no web pages but its own; ${remedy}`);
}

const LOCAL = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

function isLocalOrigin(origin: string | undefined): boolean {
  return origin !== undefined && URL.canParse(origin) && LOCAL.test(new URL(origin).hostname);
}
