/** @file The limits of the adapter registry, each with its default. */
import { z } from "zod";

const MIB = 1024 * 1024;
const positive = z.number().int().positive();

export const registryLimitsSchema = z.strictObject({
  maxResidentBytes: positive.default(1024 * MIB).describe("memory for adapters, in bytes"),
  maxResident: positive.default(1024).describe("adapters in memory at a time"),
  maxBytes: positive.default(512 * MIB).describe("largest adapter that is installed, in bytes of its files"),
  leaseTimeoutMs: positive
    .default(30_000)
    .describe("how long a request waits for memory while running ones hold all of it, in milliseconds"),
  removeTimeoutMs: positive
    .default(30_000)
    .describe("how long removing or unloading an adapter waits for the requests that use it, in milliseconds"),
  graceMs: z
    .number()
    .int()
    .nonnegative()
    .default(600_000)
    .describe("how long files that no name refers to are kept, in milliseconds"),
});

export type RegistryLimits = z.output<typeof registryLimitsSchema>;
