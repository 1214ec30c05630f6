/** @file The studio's pages as they were built: what browsers may do with them, and how long they keep them. */
import { statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import staticFiles from "@fastify/static";
import type { FastifyInstance, FastifyReply } from "fastify";
import { notFound } from "../http/fastify.ts";

/** The same place from src/ and dist/. */
const BUILT = fileURLToPath(new URL("../../../dist/studio/", import.meta.url));

const START = "index.html";
/** Files that a build makes: names without anything that could lead elsewhere. */
const FILE = /^(assets\/)?[A-Za-z0-9_-][A-Za-z0-9._-]*$/;
/** Their names hold a hash of what is in them. */
const HASHED = /^assets\//;

/** Everything comes from this server, and nothing of it runs or is seen within another site. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "font-src 'self'",
  "base-uri 'none'",
  "form-action 'self'",
  "frame-ancestors 'none'",
].join("; ");

const UNUSED = ["camera", "display-capture", "geolocation", "microphone", "midi", "payment", "serial", "usb"];

const HEADERS = {
  "content-security-policy": POLICY,
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "permissions-policy": UNUSED.map((feature) => `${feature}=()`).join(", "),
  "referrer-policy": "same-origin",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
};

const NOT_BUILT = "The studio's pages are not built; `npm run studio:build` makes them.\n";

/**
 * GET / and /studio/….
 * @param elsewhere where / leads as long as there are no pages
 */
export async function studioPages(app: FastifyInstance, elsewhere: string, root = BUILT): Promise<void> {
  await app.register(staticFiles, { serve: false, root, preCompressed: true, index: false, cacheControl: false });
  const options = { config: { public: true }, schema: { hide: true } };
  const isThere = (name: string): boolean => statSync(join(root, name), { throwIfNoEntry: false })?.isFile() === true;

  app.get("/", options, async (_, reply) => reply.redirect(isThere(START) ? "/studio/" : elsewhere));
  app.get("/studio", options, async (_, reply) => reply.redirect("/studio/"));
  app.get("/studio/*", options, async (request, reply) => {
    const path = (request.params as { "*": string })["*"];
    if (/^v1(\/|$)/.test(path)) throw notFound(request);
    if (!isThere(START)) return reply.status(404).type("text/plain; charset=utf-8").send(NOT_BUILT);
    if (FILE.test(path) && isThere(path)) return send(reply, path);
    // A page that is open since before an update asks for scripts that are gone: no page is to come instead.
    if (HASHED.test(path)) throw notFound(request);
    return send(reply, START); // an address within the studio
  });
}

function send(reply: FastifyReply, name: string): FastifyReply {
  reply.headers({
    ...HEADERS,
    vary: "accept-encoding",
    "cache-control": HASHED.test(name) ? "public, max-age=31536000, immutable" : "no-cache",
  });
  return reply.sendFile(name);
}
