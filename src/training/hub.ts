/** @file Data sets of the Hugging Face hub: one split's files, fetched once into a cache and checked by their checksums. */
import { createHash } from "node:crypto";
import { createReadStream, existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { datasetInfo, downloadFile, HubApiError, listFiles } from "@huggingface/hub";
import { z } from "zod";
import { InputError, readJson, reasonOf, writeFileAtomic, writeStreamAtomic } from "../base/index.ts";
import { isDataFile } from "./files.ts";
import { shorten } from "./text.ts";

export const HUB_PREFIX = "hf:";
/** Where the hub keeps every public data set as parquet, in folders `<config>/<split>/`. */
const CONVERTED = "refs/convert/parquet";

/** `hf:org/name[@revision][:config][/split]`, taken apart. */
export interface HubSource {
  readonly name: string;
  readonly revision?: string;
  readonly config?: string;
  readonly split: string;
}

export function parseHubSource(source: string): HubSource {
  const match = /^hf:([\w.-]+\/[\w.-]+)(?:@([^:/\s]+))?(?::([^:/\s]+))?(?:\/([^:/\s]+))?$/.exec(source);
  if (!match) {
    throw new InputError("DATA_INVALID", source, "is not of the form hf:org/name[@revision][:config][/split]");
  }
  const [, name, revision, config, split = "train"] = match as unknown as [string, string, string?, string?, string?];
  return { name, split, ...(revision !== undefined && { revision }), ...(config !== undefined && { config }) };
}

const listingSchema = z.object({
  commit: z.string(),
  files: z.array(
    z.object({ path: z.string(), size: z.number(), algorithm: z.enum(["sha256", "git"]), digest: z.string() }),
  ),
});
type Listing = z.infer<typeof listingSchema>;
type HubFile = Listing["files"][number];

/** `MILORA_CACHE`, else `milora` in the user's cache directory. */
function cacheDirectory(): string {
  const { MILORA_CACHE, XDG_CACHE_HOME } = process.env;
  return MILORA_CACHE || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "milora");
}

function connection(signal: AbortSignal | undefined) {
  const { HF_ENDPOINT, HF_TOKEN } = process.env;
  return {
    ...(HF_ENDPOINT ? { hubUrl: HF_ENDPOINT.replace(/\/+$/, "") } : {}),
    ...(HF_TOKEN ? { accessToken: HF_TOKEN } : {}),
    ...(signal
      ? { fetch: (url: Parameters<typeof fetch>[0], init?: RequestInit) => fetch(url, { ...init, signal }) }
      : {}),
  };
}

async function list(name: string, revision: string, signal: AbortSignal | undefined): Promise<Listing> {
  const hub = connection(signal);
  const { sha: commit } = await datasetInfo({ name, revision, additionalFields: ["sha"], ...hub });
  const files: HubFile[] = [];
  for await (const entry of listFiles({ repo: { type: "dataset", name }, revision: commit, recursive: true, ...hub })) {
    const { path, size, lfs, oid } = entry;
    if (entry.type !== "file" || !isDataFile(path.split("/").at(-1)!)) continue;
    if (path.startsWith("/") || path.split("/").includes("..")) continue; // nothing may leave the cache's directory
    if (lfs) files.push({ path, size: lfs.size, algorithm: "sha256", digest: lfs.oid });
    else files.push({ path, size, algorithm: "git", digest: oid ?? "" });
  }
  return { commit, files };
}

const isMissing = (error: unknown): boolean => error instanceof HubApiError && error.statusCode === 404;

function unreachable(source: string, error: unknown): InputError {
  const status = error instanceof HubApiError ? error.statusCode : undefined;
  if (status === 404) return new InputError("DATA_UNAVAILABLE", source, "the hub has no such data set or revision");
  if (status === 401 || status === 403) {
    const advice = "the hub refuses access: accept the data set's terms there, and set HF_TOKEN";
    return new InputError("DATA_UNAVAILABLE", source, advice, { cause: error });
  }
  const cause = (error as { cause?: unknown }).cause;
  const reason = reasonOf(error).split("\n")[0]! + (cause instanceof Error ? `: ${cause.message}` : "");
  return new InputError("DATA_UNAVAILABLE", source, `cannot be fetched (${reason})`, { cause: error });
}

/** What a revision holds. A name that may move is asked for anew; when the hub cannot be reached, what it was last counts. */
async function listingOf(source: string, directory: string, signal: AbortSignal | undefined): Promise<Listing> {
  const { name, revision } = parseHubSource(source);
  const remembered = join(directory, "listings", `${encodeURIComponent(revision ?? "default")}.json`);
  const fixed = /^[0-9a-f]{40}$/.test(revision ?? "");
  if (existsSync(remembered) && (fixed || process.env.HF_HUB_OFFLINE === "1"))
    return readJson(remembered, listingSchema);
  try {
    let listing: Listing | undefined;
    if (revision === undefined) {
      listing = await list(name, CONVERTED, signal).catch((error: unknown) => {
        if (isMissing(error)) return undefined;
        throw error;
      });
    }
    listing ??= await list(name, revision ?? "main", signal);
    writeFileAtomic(remembered, `${JSON.stringify(listing, null, 1)}\n`);
    return listing;
  } catch (error) {
    signal?.throwIfAborted();
    if (existsSync(remembered) && !(error instanceof HubApiError)) return readJson(remembered, listingSchema);
    throw unreachable(source, error);
  }
}

/** The folder above the file, or the file's name up to its split: what tells configs apart. */
function configsOf(paths: readonly string[]): string[] {
  const folders = paths.map(
    (path) =>
      path
        .split("/")
        .slice(0, -1)
        .find((part) => part !== "data" && part !== "") ?? "",
  );
  return [...new Set(folders)].sort();
}

/**
 * Files of one split. A split is a folder `<split>`, or a file name that begins with it (`train-00000-of-00002.parquet`,
 * `train.jsonl`); a config is a folder above, or where there are no folders, there is one config only.
 */
export function chooseFiles<F extends { readonly path: string }>(source: string, files: readonly F[]): F[] {
  const { config, split } = parseHubSource(source);
  const named = (part: string): boolean =>
    part === split || (part.startsWith(split) && /^[-_.]/.test(part.slice(split.length)));
  const inSplit = files.filter(({ path }) => path.split("/").some(named));
  const found =
    shorten(
      files.map(({ path }) => path),
      8,
    ).join(", ") || "none";
  if (inSplit.length === 0) {
    throw new InputError("DATA_INVALID", source, `no file belongs to the split "${split}"; data files: ${found}`);
  }
  const withoutSplit = inSplit.map(({ path }) =>
    path
      .split("/")
      .filter((part, i, all) => i === all.length - 1 || !named(part))
      .join("/"),
  );
  const configs = configsOf(withoutSplit);
  const chosen = config ?? (configs.length === 1 ? configs[0]! : configs.find((name) => name === "default"));
  if (chosen === undefined) {
    const names = shorten(
      configs.filter((name) => name !== ""),
      8,
    ).join(", ");
    throw new InputError("DATA_INVALID", source, `has several configs, name one as hf:org/name:config: ${names}`);
  }
  const result = inSplit.filter((_, i) => configsOf([withoutSplit[i]!])[0] === chosen);
  if (result.length === 0) {
    throw new InputError("DATA_INVALID", source, `has no config "${chosen}" with this split; data files: ${found}`);
  }
  return result.toSorted((a, b) => (a.path < b.path ? -1 : 1));
}

/** sha256 of the content, or for files outside of large-file storage git's own sha1 over a header and the content. */
function hasher({ size, algorithm }: HubFile) {
  return algorithm === "git" ? createHash("sha1").update(`blob ${size}\0`) : createHash("sha256");
}

async function isWhole(path: string, file: HubFile): Promise<boolean> {
  const hash = hasher(file);
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest("hex") === file.digest;
}

/** Writes the file only when its checksum is right. */
async function fetchFile(
  source: string,
  commit: string,
  file: HubFile,
  to: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const where = `${source} (${file.path})`;
  const repo = { type: "dataset" as const, name: parseHubSource(source).name };
  const hash = hasher(file);
  const checked = async function* (chunks: AsyncIterable<Uint8Array>) {
    for await (const chunk of chunks) {
      hash.update(chunk);
      yield chunk;
    }
    if (hash.digest("hex") === file.digest) return;
    throw new InputError("DATA_UNAVAILABLE", where, "arrived damaged (its checksum is not the hub's); try again");
  };
  try {
    const blob = await downloadFile({ repo, path: file.path, revision: commit, ...connection(signal) });
    if (blob === null) throw new Error("the hub lists the file but does not have it");
    await writeStreamAtomic(to, checked(blob.stream() as unknown as AsyncIterable<Uint8Array>));
  } catch (error) {
    signal?.throwIfAborted();
    throw error instanceof InputError ? error : unreachable(where, error);
  }
}

/**
 * The files of a split on this machine, fetched where they are not in the cache or are damaged there. Without a revision
 * the hub's own conversion to parquet is taken, where there is one, else the data set's newest state.
 * Environment: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE=1` (cache only), `MILORA_CACHE`.
 * @throws InputError DATA_UNAVAILABLE, DATA_INVALID
 */
export async function fetchDataSet(source: string, signal?: AbortSignal): Promise<string[]> {
  const { name } = parseHubSource(source);
  const directory = join(cacheDirectory(), "datasets", name.replace("/", "--"));
  const { commit, files } = await listingOf(source, directory, signal);
  const paths: string[] = [];
  for (const file of chooseFiles(source, files)) {
    const path = join(directory, commit, ...file.path.split("/"));
    if (!existsSync(path) || !(await isWhole(path, file))) {
      if (process.env.HF_HUB_OFFLINE === "1") {
        throw new InputError("DATA_UNAVAILABLE", source, `${file.path} is not in the cache, and HF_HUB_OFFLINE is set`);
      }
      await fetchFile(source, commit, file, path, signal);
    }
    paths.push(path);
  }
  return paths;
}
