/** @file The OpenAPI document, and a page that shows it without asking anybody for anything. */
import swagger from "@fastify/swagger";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { Services } from "./services.ts";

/** A zod schema as JSON Schema, of what is sent. */
export function jsonSchema(schema: z.ZodType): Record<string, unknown> {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io: "input", unrepresentable: "any" });
  return rest;
}

/** Must be registered before the routes that it describes. */
export async function describeRoutes(app: FastifyInstance, { open }: Services): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "milora",
        version: "1",
        description:
          "One backbone, many adapters. `model` names an adapter, `base:adapter`, or the backbone; the rest is OpenAI's API.",
      },
      tags: [
        { name: "openai", description: "OpenAI's API" },
        { name: "adapters", description: "Adapters: upload, load, pin" },
        { name: "operation", description: "Probes and metrics" },
        { name: "admin", description: "Tenants, keys, grants, usage" },
      ],
      components: { securitySchemes: { key: { type: "http", scheme: "bearer" } } },
      ...(open ? {} : { security: [{ key: [] }] }),
    },
  });
}

interface Operation {
  readonly summary?: string;
  readonly tags?: readonly string[];
  readonly requestBody?: { readonly content?: Record<string, { readonly schema?: BodySchema }> };
}

interface BodySchema {
  readonly properties?: Record<string, { readonly description?: string; readonly default?: unknown }>;
  readonly required?: readonly string[];
}

export function pageRoutes(app: FastifyInstance, { base }: Services): void {
  const shown = { config: { public: true }, schema: { hide: true } };
  app.get("/openapi.json", shown, async () => app.swagger());
  let page: string | undefined;
  app.get("/docs", shown, async (_, reply) => {
    page ??= pageOf(app.swagger() as unknown as Document, base);
    return reply
      .header("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
      .type("text/html; charset=utf-8")
      .send(page);
  });
}

interface Document {
  readonly tags: readonly { readonly name: string; readonly description: string }[];
  readonly paths: Record<string, Record<string, Operation>>;
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
}

const STYLE = `body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1e;background:#fff}
code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#f4f4f6;padding:1rem;overflow:auto;border-radius:6px}
details{border-bottom:1px solid #ddd;padding:.4rem 0}summary{cursor:pointer}b{display:inline-block;width:4.5rem}
table{border-collapse:collapse;margin:.5rem 0 .5rem 1rem}td{padding:.15rem .8rem .15rem 0;vertical-align:top}
@media(prefers-color-scheme:dark){body{color:#eee;background:#17171a}pre{background:#232328}details{border-color:#333}}`;

function pageOf({ tags, paths }: Document, base: string): string {
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
  );
  const sections = tags.map(({ name, description }) => {
    const own = operations.filter(({ operation }) => operation.tags?.includes(name));
    return own.length ? `<h2>${escaped(description)}</h2>${own.map(operationOf).join("")}` : "";
  });
  const example = `curl http://HOST/v1/completions -H 'content-type: application/json' \\
  -d '{"model": "${base}", "prompt": "Hello", "max_tokens": 16}'`;
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>milora</title><style>${STYLE}</style><h1>milora</h1>
<p>One backbone, many adapters. <code>model</code> names an adapter, <code>base:adapter</code>, or the backbone
(<code>${escaped(base)}</code>). The machine-readable form of this page is <a href="/openapi.json">/openapi.json</a>.</p>
<pre>${escaped(example)}</pre>${sections.join("")}</html>\n`;
}

function operationOf({ path, method, operation }: { path: string; method: string; operation: Operation }): string {
  const schema = operation.requestBody?.content?.["application/json"]?.schema;
  const rows = Object.entries(schema?.properties ?? {}).map(([name, { description, default: value }]) => {
    const needed = schema?.required?.includes(name) ? "needed" : value === undefined ? "" : JSON.stringify(value);
    return `<tr><td><code>${escaped(name)}</code><td>${escaped(needed)}<td>${escaped(description ?? "")}`;
  });
  const summary = `<b>${method}</b> <code>${escaped(path)}</code> ${escaped(operation.summary ?? "")}`;
  return `<details><summary>${summary}</summary>${rows.length ? `<table>${rows.join("")}</table>` : ""}</details>`;
}
