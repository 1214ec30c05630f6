/** @file What the store gives and takes: tenants and their limits, keys, principals, grants, usage. */
import { z } from "zod";

const whole = z.number().int().positive();

/** What a tenant may use; a limit that is missing does not hold. */
export const tenantLimitsSchema = z.strictObject({
  requestsPerMinute: whole.optional().describe("requests that a minute allows; as many may come at once"),
  tokensPerMinute: whole.optional().describe("tokens of prompts and completions that a minute allows"),
  tokensPerDay: whole.optional().describe("tokens of prompts and completions in a day (UTC)"),
  maxConcurrent: whole.optional().describe("requests under way at a time"),
  maxStoredBytes: whole.optional().describe("bytes of the tenant's own adapters"),
  maxAdapters: whole.optional().describe("number of the tenant's own adapters"),
});

export type TenantLimits = z.infer<typeof tenantLimitsSchema>;
export type LimitName = keyof TenantLimits;

/** On whose behalf a request runs. */
export interface Principal {
  readonly tenant: string;
  readonly keyId: string;
  readonly role: "admin" | "tenant";
  /** Share in the machine when it is busy; 1 is usual. */
  readonly weight: number;
  readonly limits: TenantLimits;
}

export interface Tenant {
  /** The public handle; it never changes. */
  readonly id: string;
  readonly name: string;
  readonly weight: number;
  readonly limits: TenantLimits;
  readonly disabled: boolean;
  readonly createdAt: Date;
}

export interface Key {
  readonly id: string;
  readonly tenant: string;
  /** First characters of the secret. */
  readonly prefix: string;
  readonly label: string;
  readonly role: "admin" | "tenant";
  readonly createdAt: Date;
  readonly expiresAt: Date | null;
  readonly revokedAt: Date | null;
  /** Right to a minute. */
  readonly lastUsedAt: Date | null;
}

export interface Grant {
  readonly owner: string | null;
  readonly name: string;
  /** The tenant that may use it. */
  readonly tenant: string;
  readonly createdAt: Date;
}

export const USAGE_COLUMNS = ["tenant", "key", "adapter", "day", "hour"] as const;
export type UsageColumn = (typeof USAGE_COLUMNS)[number];

export interface UsageQuery {
  readonly tenant?: string | undefined;
  readonly adapter?: string | undefined;
  /** Hours that begin at or after this … */
  readonly from?: Date | undefined;
  /** … and before this. */
  readonly to?: Date | undefined;
  /** What to tell apart; default tenant and adapter. */
  readonly by?: readonly UsageColumn[] | undefined;
}

/** Only the columns of `by` are there. Days are `2026-01-31`, hours `2026-01-31T15:00Z`. */
export interface UsageRow extends Partial<Record<UsageColumn, string>> {
  readonly requests: number;
  readonly promptTokens: number;
  readonly completionTokens: number;
}
