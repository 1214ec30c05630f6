/** @file Admin routes. */
import type { FastifyInstance } from "fastify";
import type { AdapterRegistry } from "../adapters/index.ts";
import type { Store } from "../store/index.ts";

export async function adminRoutes(
  _app: FastifyInstance,
  _parts: { readonly store: Store; readonly registry: AdapterRegistry },
): Promise<void> {}
