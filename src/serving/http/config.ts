/** @file The settings of a server: one schema for the file, the environment and the flags. */
import { z } from "zod";
import { parseWith } from "../../base/index.ts";
import { schedulerLimitsSchema } from "../../generation/index.ts";
import { DEVICE_NAMES, type DeviceName } from "../../runtime/index.ts";
import { ADAPTER_NAME, isBucketName, registryLimitsSchema } from "../adapters/index.ts";
import { isDatabaseUrl } from "../store/index.ts";

const seconds = z.number().positive().max(86_400);
const bytes = z.int().min(1024);
const count = z.int().min(1);

export const httpLimitsSchema = z.strictObject({
  bodyBytes: bytes.default(8 * 1024 * 1024).describe("largest JSON body"),
  headerBytes: bytes.default(16 * 1024).describe("largest head of a request"),
  headersSeconds: seconds.default(15).describe("until the head of a request must be there"),
  requestSeconds: seconds.default(300).describe("until a whole request must be there, uploads too"),
  keepAliveSeconds: seconds.default(75).describe("how long an idle connection stays open"),
  stallSeconds: seconds.default(60).describe("how long a client may leave a stream unread before it is closed"),
  drainDelaySeconds: z
    .number()
    .min(0)
    .max(3600)
    .default(0)
    .describe("how long a server that is told to stop goes on answering, not ready any more, so that balancers notice"),
  drainSeconds: seconds.default(120).describe("how long running requests may take once the server is told to stop"),
  deadlineSeconds: seconds.optional().describe("most time for an answer; without it no limit"),
  maxConnections: count.default(1024).describe("open connections; more are closed at once"),
  maxPrompts: count.default(1024).describe("prompts in one request"),
  defaultTokens: count.default(2048).describe("most new tokens of a chat answer where the request does not say"),
  maxTokens: count.optional().describe("most new tokens of an answer; without it what the context leaves"),
});

export const serverConfigSchema = z.strictObject({
  model: z.string().min(1).describe("backbone: a Hugging Face directory, a .gguf file, or ORG/NAME once pulled"),
  name: z
    .string()
    .regex(/^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$/, "must be letters, digits, '.', '_', '-' or '/'")
    .optional()
    .describe("what clients call the backbone; default the last part of `model`"),
  weights: z
    .enum(["float32", "int8", "int4"])
    .optional()
    .describe("how the backbone is held in memory; default float32, or as it was prepared"),
  chatTemplate: z
    .string()
    .min(1)
    .optional()
    .describe("how chats are put to the model: `alpaca`, or a Jinja file; default the model's own template"),
  threads: count.optional().describe("CPU threads; default one per core"),
  device: z
    .enum(DEVICE_NAMES as readonly [DeviceName, ...DeviceName[]])
    .default("cpu")
    .describe("where it is computed: cpu, webgpu or cuda"),
  data: z
    .string()
    .min(1)
    .default("milora-data")
    .describe("directory of the installed adapters, and of the database where `database` names none"),
  database: z
    .string()
    .refine(isDatabaseUrl, "must be a URL such as postgres://USER:PASSWORD@HOST:5432/NAME")
    .optional()
    .describe("URL of a PostgreSQL, which several servers may share; default one of its own in `data`"),
  adapterStore: z
    .string()
    .refine(isBucketName, "must be of the form s3://BUCKET/PREFIX")
    .optional()
    .describe("bucket of an S3-compatible store that has the adapters' files; default a directory in `data`"),
  adapterCacheBytes: bytes
    .default(16 * 1024 * 1024 * 1024)
    .describe("copies of the store's files that are kept in `data`; those in use may take more"),
  adapters: z
    .record(z.string().regex(ADAPTER_NAME, "is no name of an adapter"), z.string().min(1))
    .default({})
    .describe("adapters to install for all tenants at the start: directory by name"),
  preload: z.array(z.string()).default([]).describe("installed adapters to load at the start and to keep in memory"),
  adapterDirectories: z
    .array(z.string().min(1))
    .default([])
    .describe("directories below which POST /v1/load_lora_adapter may read; none: it is refused"),
  runs: z
    .array(z.string().min(1))
    .default([])
    .describe("folders of training runs and reproductions that the studio shows to administrators"),
  host: z.string().min(1).default("127.0.0.1").describe("address to listen on"),
  port: z.int().min(0).max(65_535).default(8000).describe("port to listen on; 0 takes a free one"),
  auth: z
    .enum(["auto", "required", "open"])
    .default("auto")
    .describe("auto: open on the loopback address until the first tenant or key is made, else keys are required"),
  context: count.optional().describe("most tokens of a prompt with its answer; default the backbone's context"),
  adapterPrecision: z
    .enum(["float32", "float16", "int8"])
    .optional()
    .describe("what adapters are held as; by default int8 over int4 weights, float16 over int8, else float32"),
  kvPrecision: z
    .enum(["float32", "float16"])
    .optional()
    .describe(
      "what keys and values are held as on the CPU; by default float16 over int4 and int8 weights, else float32",
    ),
  prefixCacheBytes: z
    .int()
    .min(0)
    .default(256 * 1024 * 1024)
    .describe("memory for keys and values of prompts' beginnings; 0 for none"),
  limits: schedulerLimitsSchema.prefault({}).describe("how much runs and waits at a time"),
  residency: registryLimitsSchema.prefault({}).describe("memory and sizes of adapters"),
  http: httpLimitsSchema.prefault({}).describe("sizes and times of requests"),
  logLevel: z
    .enum(["trace", "debug", "info", "warn", "error", "silent"])
    .default("info")
    .describe("least level logged"),
  logPrompts: z.boolean().default(false).describe("also log prompts and answers, at level info"),
  metricLabels: count.default(100).describe("tenants and adapters that metrics tell apart; further ones are `other`"),
});

export type ServerConfig = z.output<typeof serverConfigSchema>;
export type ServerConfigInput = z.input<typeof serverConfigSchema>;

/** Checks settings from wherever they came. @throws InputError CONFIG_INVALID with every problem */
export function parseServerConfig(settings: unknown, where = "server config"): ServerConfig {
  return parseWith(serverConfigSchema, settings, where);
}

const PREFIX = "MILORA_SERVE_";

/**
 * Settings in the environment, as `key=value` with the keys of the config: `MILORA_SERVE_MAX_X` is `maxX`,
 * `MILORA_SERVE_LIMITS__MAX_BATCH` is `limits.maxBatch`. `DATABASE_URL` is `database`, where that is not named itself.
 */
export function environmentSettings(env: Readonly<Record<string, string | undefined>>): string[] {
  const { DATABASE_URL: url } = env;
  const own = Object.entries(env)
    .filter(([name, value]) => name.startsWith(PREFIX) && value !== undefined)
    .map(([name, value]) => {
      const path = name.slice(PREFIX.length).toLowerCase().split("__");
      const keys = path.map((part) => part.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase()));
      return `${keys.join(".")}=${value}`;
    });
  return url ? [`database=${url}`, ...own] : own;
}

/** Whether an address is reached from this machine only. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

/** What clients call a backbone by default: `ORG/NAME` or the last part of a path, made a name. */
export function modelNameOf(model: string): string {
  const parts = model
    .replaceAll("\\", "/")
    .split("/")
    .filter((part) => part !== "" && part !== "." && part !== "..");
  const name = (parts.at(-1) ?? "model").replace(/\.gguf$/i, "").replace(/[^A-Za-z0-9._-]+/g, "-");
  return /^[A-Za-z0-9]/.test(name) ? name.slice(0, 128) : `model-${name}`.slice(0, 128);
}
