/** @file Lists of adapters a page at a time: what may be asked for, and where the next page begins. */
import { z } from "zod";
import { parseJson } from "../../base/index.ts";
import type { AdapterRecord, Presence } from "../adapters/index.ts";
import type { AdapterQuery } from "../store/adapters.ts";
import { RequestError } from "./errors.ts";
import type { Services } from "./services.ts";

const MOST = 500;

export const pageFields = {
  q: z.string().max(300).optional().describe("only those with this in their name, or of this method"),
  limit: z.coerce
    .number()
    .int()
    .min(1)
    .max(MOST)
    .optional()
    .describe(`most of one answer, up to ${MOST}; without it all`),
  cursor: z.string().max(2000).optional().describe("`next` of the answer before"),
};

export interface PageAsked {
  readonly q?: string | undefined;
  readonly limit?: number | undefined;
  readonly cursor?: string | undefined;
}

export interface AdapterList {
  readonly rows: readonly (AdapterRecord & Presence)[];
  /** On all pages together. */
  readonly total: number;
  /** Null: these are the last. */
  readonly next: string | null;
}

/**
 * @param more what else is asked for
 * @param resident only those in memory: what others have there, so not for tenants
 * @throws RequestError for a cursor that is none
 */
export async function adapterPage(
  { store, registry }: Pick<Services, "store" | "registry">,
  { q, limit, cursor }: PageAsked,
  more: Pick<AdapterQuery, "usableBy" | "owner" | "name">,
  resident = false,
): Promise<AdapterList> {
  const held = resident ? registry.residency().flatMap((slot) => (slot.resident ? [slot.digest] : [])) : undefined;
  const after = cursor === undefined ? undefined : afterOf(cursor);
  const page = await store.adapters.page({ ...more, text: q, limit, after, digests: held });
  const last = page.rows.at(-1);
  const next = page.more && last ? cursorOf(last) : null;
  return { rows: registry.present(page.rows, more.usableBy !== undefined), total: page.total, next };
}

const cursorSchema = z.tuple([z.string().nullable(), z.string()]);

function cursorOf({ owner, name }: AdapterRecord): string {
  return Buffer.from(JSON.stringify([owner, name])).toString("base64url");
}

function afterOf(cursor: string): Pick<AdapterRecord, "owner" | "name"> {
  try {
    const [owner, name] = cursorSchema.parse(parseJson(Buffer.from(cursor, "base64url").toString("utf8"), "cursor"));
    return { owner, name };
  } catch {
    throw new RequestError("is no `next` of an answer", "cursor");
  }
}
