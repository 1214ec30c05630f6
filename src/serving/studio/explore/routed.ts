/** @file GET /studio/v1/explore: the adapters that route prompts, and that the caller may use. */
import type { FastifyRequest } from "fastify";
import { methods } from "../../../methods/index.ts";
import { type AdapterRecord, qualified } from "../../adapters/index.ts";
import type { Services } from "../../http/services.ts";
import type { RoutedAdapter } from "../types.ts";

/** Whether an adapter's method chooses experts for a prompt. */
export function routes({ method }: Pick<AdapterRecord, "method">): boolean {
  return methods.get(method)?.properties.routed ?? false;
}

/** Under the names by which the caller asks for them; administrators reach those of all tenants. */
export async function listRouted(
  { registry }: Services,
  { principal: { tenant, role } }: FastifyRequest,
): Promise<{ adapters: RoutedAdapter[] }> {
  const records = role === "admin" ? await registry.all() : await registry.list({ tenant });
  const adapters = records.filter(routes).map((record): RoutedAdapter => {
    const { owner, name, method, rank } = record;
    return { name: owner === tenant ? name : qualified(record), method, rank };
  });
  return { adapters: adapters.sort((a, b) => (a.name < b.name ? -1 : 1)) };
}
