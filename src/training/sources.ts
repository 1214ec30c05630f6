/** @file From what a user names as data (a file, a directory, a pattern, a Hugging Face data set) to files on this machine. */
import { readdirSync, statSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { InputError } from "../base/index.ts";
import { isDataFile } from "./files.ts";
import { fetchDataSet, HUB_PREFIX } from "./hub.ts";

const PATTERN = /[*?{]/;

function kindOf(path: string): "file" | "directory" | undefined {
  const status = statSync(path, { throwIfNoEntry: false });
  return status?.isDirectory() ? "directory" : status ? "file" : undefined;
}

/**
 * `*` and `?` stay within a name, `**` crosses directories, `{a,b}` is a choice. Nothing else is special; in
 * particular a name may have brackets.
 */
function expressionOf(pattern: string): RegExp {
  let depth = 0;
  const source = pattern.replaceAll(/\*\*\/|\*\*|\*|\?|[{},]|[.+^$()|[\]\\]/g, (part) => {
    if (part === "**/") return "(?:[^/]+/)*";
    if (part === "**") return ".*";
    if (part === "*") return "[^/]*";
    if (part === "?") return "[^/]";
    if (part === "{") {
      depth++;
      return "(?:";
    }
    if (part === "}" && depth > 0) {
      depth--;
      return ")";
    }
    if (part === ",") return depth > 0 ? "|" : ",";
    return `\\${part}`;
  });
  return new RegExp(`^${source}$`, "u");
}

function matching(pattern: string): string[] {
  const normal = pattern.split(sep).join("/");
  let expression: RegExp;
  try {
    expression = expressionOf(normal);
  } catch (error) {
    throw new InputError("DATA_INVALID", pattern, "is no valid pattern: a { is not closed", { cause: error });
  }
  const parts = normal.split("/");
  const fixed = parts.slice(
    0,
    parts.findIndex((part) => PATTERN.test(part)),
  );
  const prefix = fixed.length ? `${fixed.join("/")}/` : ""; // "/" for a pattern right below the root
  const start = prefix || ".";
  if (kindOf(start) !== "directory") return [];
  const recursive = parts.length > fixed.length + 1 || normal.includes("**");
  return readdirSync(start, { recursive, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => prefix + relative(start, join(entry.parentPath, entry.name)).split(sep).join("/"))
    .filter((path) => expression.test(path))
    .sort();
}

/**
 * The files that `source` names, in a fixed order: a file itself; a directory's data files (not those further below),
 * by name; the files that match a pattern; or those of a data set `hf:org/name…`, fetched where they are not here yet.
 * @throws InputError FILE_UNREADABLE when there are none
 */
export async function filesOf(source: string, signal?: AbortSignal): Promise<string[]> {
  if (source.startsWith(HUB_PREFIX)) return await fetchDataSet(source, signal);
  const kind = kindOf(source);
  if (kind === "directory") {
    const files = readdirSync(source, { withFileTypes: true })
      .filter((entry) => !entry.isDirectory() && isDataFile(entry.name))
      .map((entry) => join(source, entry.name))
      .sort();
    if (files.length) return files;
    const known = ".json, .jsonl, .csv, .tsv or .parquet (or one of these with .gz)";
    throw new InputError("FILE_UNREADABLE", source, `the directory has no file that ends in ${known}`);
  }
  if (kind === undefined && PATTERN.test(source)) {
    const files = matching(source);
    if (files.length) return files;
    throw new InputError("FILE_UNREADABLE", source, "no file matches this pattern");
  }
  return [source];
}
