/** @file Models of the Hugging Face hub: which files one needs, where they are kept, and finding them again by name. */
import { existsSync, mkdirSync, readdirSync, statfsSync } from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import { InputError, readJson, sum, writeFileAtomic } from "../base/index.ts";
import { cacheDirectory } from "./cache.ts";
import { CONVERT, PICKLE } from "./checkpoint.ts";
import { bytesThere, download, HubStatusError, isWhole } from "./download.ts";
import { type HubFile, type HubListing, hubEndpoint, hubReason, hubStatus, listHub } from "./hub.ts";

/** `ORG/NAME[@revision]`, taken apart. */
export interface ModelName {
  readonly name: string;
  readonly revision: string;
}

const NAME = /^([A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?$/;

/** Undefined for what cannot be the name of a model on the hub. */
export function parseModelName(text: string): ModelName | undefined {
  const match = NAME.exec(text);
  if (!match || text.includes("..")) return undefined;
  return { name: match[1]!, revision: match[2] ?? "main" };
}

const modelsDirectory = (name: string): string => join(cacheDirectory(), "models", ...name.split("/"));
const refPath = ({ name, revision }: ModelName): string =>
  join(modelsDirectory(name), "refs", `${encodeURIComponent(revision)}.json`);

const fileSchema = z.object({
  path: z.string(),
  size: z.number(),
  algorithm: z.enum(["sha256", "git"]),
  digest: z.string(),
});
const refSchema = z.object({ commit: z.string().regex(/^[0-9a-f]{40}$/), files: z.array(fileSchema) });

/** What is on this machine of a model that was pulled: its directory, and its files with their checksums. */
export interface PulledModel {
  readonly directory: string;
  readonly commit: string;
  readonly files: readonly HubFile[];
}

/** A model that was pulled into the cache; undefined for others. */
export function pulledModel(text: string): PulledModel | undefined {
  const model = parseModelName(text);
  if (model === undefined || !existsSync(refPath(model))) return undefined;
  const { commit, files } = readJson(refPath(model), refSchema);
  const directory = join(modelsDirectory(model.name), commit);
  return existsSync(directory) ? { directory, commit, files } : undefined;
}

/**
 * The path of a model that is named as people name them: a path, or `ORG/NAME[@revision]` of one that was pulled. Of a
 * repository of GGUF files it is the one that was pulled.
 * @throws InputError MODEL_NOT_FOUND
 */
export function resolveModel(text: string): string {
  if (existsSync(text)) return text;
  const pulled = pulledModel(text);
  if (pulled === undefined) {
    if (parseModelName(text) === undefined) return text; // a path that is not there; whoever opens it says so
    const problem = `no such directory, and no such model has been pulled; milora model pull ${text} would do that`;
    throw new InputError("MODEL_NOT_FOUND", text, problem);
  }
  const { directory } = pulled;
  const gguf = readdirSync(directory).filter((file) => /^(?!.*-(?!00001)\d{5}-of-\d{5}).*\.gguf$/.test(file));
  if (existsSync(join(directory, "config.json")) && gguf.length === 0) return directory;
  if (gguf.length === 1) return join(directory, gguf[0]!);
  if (gguf.length === 0) return directory;
  throw new InputError("MODEL_NOT_FOUND", text, `several GGUF files were pulled, name one: ${gguf.map((file) => join(directory, file)).join(", ")}`); // biome-ignore format: one line
}

const WEIGHTS = /^model(-\d{5}-of-\d{5})?\.safetensors$|^model\.safetensors\.index\.json$/;
const DESCRIPTION =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json$|^(tokenizer\.model|merges\.txt|chat_template\.jinja|LICENSE(\.\w+)?)$/;

/** `*` is any text without a slash, `?` one such character. */
function globOf(pattern: string): RegExp {
  const source = pattern.replace(/[.+^${}()|[\]\\]/g, "\\$&").replaceAll("*", "[^/]*").replaceAll("?", "[^/]"); // biome-ignore format: one line
  return new RegExp(`^${source}$`);
}

/** The files to fetch: config, tokenizer, and the safetensors, or instead of those what matches `include`. */
export function filesToPull<F extends { readonly path: string }>(
  model: string,
  files: readonly F[],
  include: readonly string[] = [],
): F[] {
  const description = files.filter(({ path }) => DESCRIPTION.test(path));
  const names = files.map(({ path }) => path);
  const gguf = names.filter((path) => path.endsWith(".gguf"));
  if (include.length > 0) {
    const globs = include.map(globOf);
    const unused = include.filter((_, i) => !names.some((path) => globs[i]!.test(path)));
    if (unused.length > 0) {
      const there = names.slice(0, 20).join(", ");
      throw new InputError("MODEL_UNAVAILABLE", model, unused.map((text) => `no file matches ${text}; it has ${there}`)); // biome-ignore format: one line
    }
    const chosen = files.filter(({ path }) => globs.some((glob) => glob.test(path)));
    return [...new Set([...description, ...chosen])];
  }
  const weights = files.filter(({ path }) => WEIGHTS.test(path));
  if (weights.length > 0 && names.includes("config.json")) return [...description, ...weights];
  const pickle = names.filter((path) => PICKLE.test(path));
  const problem =
    gguf.length > 0
      ? `has GGUF files; choose with --include, e.g. --include "${gguf.find((path) => /q4_0/i.test(path)) ?? gguf[0]}"; there are ${gguf.slice(0, 20).join(", ")}`
      : pickle.length > 0
        ? `has its weights as pickle only (${pickle[0]}), which can run any code and is not read; ${CONVERT}`
        : "has no config.json with model.safetensors beside it: not a model that can be used here";
  throw new InputError("MODEL_UNAVAILABLE", model, problem);
}

export interface PullOptions {
  /** Where the files go; default: into the cache, where their name finds them. */
  readonly output?: string | undefined;
  readonly include?: readonly string[] | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Bytes that are there, of all. */
  readonly onProgress?: ((done: number, total: number, file: string) => void) | undefined;
}

function unavailable(model: string, { name }: ModelName, error: unknown): InputError {
  const status = error instanceof HubStatusError ? error.status : hubStatus(error);
  const problem =
    status === 404
      ? "the hub has no such model or revision"
      : status === 401
        ? "the hub has no such model, or it is not public: check the name, or set HF_TOKEN"
        : status === 403
          ? `the hub refuses access: accept the model's terms at ${hubEndpoint()}/${name}, and set HF_TOKEN`
          : `cannot be fetched (${hubReason(error)})`;
  return new InputError("MODEL_UNAVAILABLE", model, problem, { cause: error });
}

/** @throws InputError DISK_FULL */
function checkSpace(directory: string, bytes: number): void {
  const { bavail, bsize } = statfsSync(directory);
  if (bytes <= bavail * bsize) return;
  const gigabytes = (n: number): string => `${(n / 1e9).toFixed(1)} GB`;
  const problem = `${gigabytes(bytes)} are needed and ${gigabytes(bavail * bsize)} free; make room, or set MILORA_CACHE`;
  throw new InputError("DISK_FULL", directory, problem);
}

/**
 * Fetches what a model needs, and nothing else. Files that are there are not fetched again, those that broke off are
 * gone on with; only what has the hub's checksum counts.
 * Environment: `HF_ENDPOINT`, `HF_TOKEN`, `MILORA_CACHE`.
 * @throws InputError MODEL_UNAVAILABLE, DISK_FULL
 */
export async function pullModel(text: string, options: PullOptions = {}): Promise<PulledModel> {
  const { output, include, signal, onProgress } = options;
  const model = parseModelName(text);
  if (model === undefined) {
    throw new InputError("MODEL_UNAVAILABLE", text, "is not of the form ORG/NAME[@revision]");
  }
  const repo = { type: "model", name: model.name } as const;
  let listing: HubListing;
  try {
    listing = await listHub(repo, model.revision, () => true, signal);
  } catch (error) {
    signal?.throwIfAborted();
    throw unavailable(text, model, error);
  }
  const { commit } = listing;
  const files = filesToPull(text, listing.files, include);
  const directory = output ?? join(modelsDirectory(model.name), commit);
  mkdirSync(directory, { recursive: true });
  const paths = files.map(({ path }) => join(directory, ...path.split("/")));
  const there = files.map(({ size }, i) => Math.min(size, bytesThere(paths[i]!)));
  const total = sum(files.map(({ size }) => size));
  checkSpace(directory, total - sum(there));
  for (const [i, file] of files.entries()) {
    const path = paths[i]!;
    const report = (bytes: number): void => {
      there[i] = bytes;
      onProgress?.(sum(there), total, file.path);
    };
    signal?.throwIfAborted();
    try {
      if (!(await isWhole(path, file))) await download(repo, commit, file, path, report, signal);
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof InputError) throw error;
      throw unavailable(`${text} (${file.path})`, model, error);
    }
    report(file.size);
  }
  if (output === undefined) {
    const previous = pulledModel(`${model.name}@${commit}`)?.files ?? [];
    const all = [...previous.filter(({ path }) => files.every((file) => file.path !== path)), ...files];
    const record = `${JSON.stringify({ commit, files: all }, null, 1)}\n`;
    // By its commit, too, which no later pull of a branch moves.
    for (const revision of [model.revision, commit]) {
      const path = refPath({ name: model.name, revision });
      mkdirSync(dirname(path), { recursive: true });
      writeFileAtomic(path, record);
    }
  }
  return { directory, commit, files };
}
