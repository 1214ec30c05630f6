/** @file Data sets of the Hugging Face hub: one split's files, fetched once into a cache and checked by their checksums. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InputError, readJson, writeFileAtomic } from "../base/index.ts";
import {
  cacheDirectory,
  download,
  type HubFile,
  HubStatusError,
  hubReason,
  hubStatus,
  isWhole,
  listHub,
} from "../models/index.ts";
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

const isDataPath = (path: string): boolean => isDataFile(path.split("/").at(-1)!);

const list = (name: string, revision: string, signal: AbortSignal | undefined): Promise<Listing> =>
  listHub({ type: "dataset", name }, revision, isDataPath, signal);

const isMissing = (error: unknown): boolean => hubStatus(error) === 404;

function unreachable(source: string, error: unknown): InputError {
  const status = error instanceof HubStatusError ? error.status : hubStatus(error);
  if (status === 404) return new InputError("DATA_UNAVAILABLE", source, "the hub has no such data set or revision");
  if (status === 401 || status === 403) {
    const advice = "the hub refuses access: accept the data set's terms there, and set HF_TOKEN";
    return new InputError("DATA_UNAVAILABLE", source, advice, { cause: error });
  }
  return new InputError("DATA_UNAVAILABLE", source, `cannot be fetched (${hubReason(error)})`, { cause: error });
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
    if (existsSync(remembered) && hubStatus(error) === undefined) return readJson(remembered, listingSchema);
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

async function fetchFile(
  source: string,
  commit: string,
  file: HubFile,
  to: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const repo = { type: "dataset", name: parseHubSource(source).name } as const;
  const where = `${source} (${file.path})`;
  try {
    await download(repo, commit, file, to, () => undefined, signal);
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof InputError) throw new InputError("DATA_UNAVAILABLE", where, error.problems, { cause: error });
    throw unreachable(where, error);
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
    if (!(await isWhole(path, file))) {
      if (process.env.HF_HUB_OFFLINE === "1") {
        throw new InputError("DATA_UNAVAILABLE", source, `${file.path} is not in the cache, and HF_HUB_OFFLINE is set`);
      }
      await fetchFile(source, commit, file, path, signal);
    }
    paths.push(path);
  }
  return paths;
}
