/** @file What adapter_config.json files of Hugging Face PEFT share: common fields, and which modules a config targets. */
import { createContext, Script } from "node:vm";
import { z } from "zod";
import { InputError } from "../base/index.ts";
import type { BackboneConfig, Site } from "../models/index.ts";
import { sitesOf } from "../models/index.ts";

/** Every key PEFT writes starts with this, followed by the module's path. */
export const KEY_PREFIX = "base_model.model.";

/** Fields of every adapter_config.json. Unknown fields are kept as they are: newer versions write more of them. */
export const commonFields = {
  task_type: z.literal("CAUSAL_LM").nullish().describe("only causal language models"),
  base_model_name_or_path: z.string().nullish().describe("the backbone the adapter was trained on; informative"),
};

/** Accepts only values that switch a PEFT feature off; the feature would change the result and is not built here. */
export const off = (...values: readonly unknown[]) =>
  z
    .unknown()
    .refine((value) => value == null || values.some((v) => JSON.stringify(v) === JSON.stringify(value)), {
      error: `not supported; only ${["null", ...values.map((v) => JSON.stringify(v))].join(" or ")} is`,
    })
    .optional();

export const rank = z.int().min(1).max(4096);
export const targetModules = z.union([z.string().min(1), z.array(z.string().min(1)).min(1)]);
export const layersToTransform = z.union([z.int().min(0), z.array(z.int().min(0))]).nullish();

/** What matching with the patterns of one field may take in all: hostile patterns take for ever, and others wait meanwhile. */
const MATCH_MS = 1000;
/** Of each search, not counted: however busy the machine, an honest pattern has its time. */
const UNCOUNTED_MS = 20;
/** Characters of those that have to be compiled, which cannot be cut short. */
const MOST_CHARACTERS = 16_384;
/** A name, in which each dot stands for any character: needs no expression. */
const PLAIN = /^[\w.-]*$/;

// A search that can be cut short starts a thread, which takes longer than to match: all paths are searched at once.
const sandbox = createContext({ patterns: [] as RegExp[], paths: [] as string[] });
const search = new Script("paths.map((path) => patterns.findIndex((pattern) => pattern.test(path)))");

/** What was found for a path, by patterns: a config is gone through several times, and adapters have theirs in common. */
const searched = new Map<string, Map<string, number>>();
const MOST_SEARCHED = 16;

function foundBy(patterns: string): Map<string, number> {
  const found = searched.get(patterns) ?? new Map<string, number>();
  searched.delete(patterns);
  searched.set(patterns, found);
  if (searched.size > MOST_SEARCHED) searched.delete(searched.keys().next().value!);
  return found;
}

/** Whether a plain pattern matches all of a path, or with `ending` its end after a dot. */
function matchesPlain(pattern: string, path: string, ending: boolean): boolean {
  const from = path.length - pattern.length;
  if (from < 0 || (from > 0 && !(ending && path[from - 1] === "."))) return false;
  for (let i = pattern.length - 1; i >= 0; i--) if (pattern[i] !== "." && pattern[i] !== path[from + i]) return false;
  return true;
}

/** Regular expressions written for Python's `re.fullmatch`, out of a file that anybody may have written. */
export class Patterns {
  readonly #sources: readonly string[];
  readonly #field: string;
  readonly #ending: boolean;
  readonly #plain: readonly boolean[];
  /** Those that are not plain, and which of the sources they are. */
  readonly #compiled: readonly RegExp[];
  readonly #places: readonly number[];
  readonly #found: Map<string, number>;
  #left = MATCH_MS;

  /** @param ending they may match the end of a path after a dot @throws InputError CONFIG_INVALID for what is none */
  constructor(sources: readonly string[], field: string, { ending = false } = {}) {
    this.#sources = sources;
    this.#field = field;
    this.#ending = ending;
    this.#plain = sources.map((source) => PLAIN.test(source));
    const places = [...sources.keys()].filter((i) => !this.#plain[i]);
    const characters = places.reduce((sum, i) => sum + sources[i]!.length, 0);
    if (characters > MOST_CHARACTERS) {
      throw this.#invalid(`has patterns of ${characters} characters, more than ${MOST_CHARACTERS}`);
    }
    this.#places = places;
    this.#compiled = places.map((i) => {
      try {
        return new RegExp(`^${ending ? "(?:.*\\.)?" : ""}(?:${sources[i]!.replaceAll("(?P<", "(?<")})$`);
      } catch {
        throw this.#invalid(`"${sources[i]}" is not a regular expression`);
      }
    });
    this.#found = foundBy(JSON.stringify(this.#compiled.map(({ source }) => source)));
  }

  /** Looks for several paths at once. @throws InputError CONFIG_INVALID for patterns that take too long */
  look(paths: readonly string[]): void {
    const unknown = paths.filter((path) => !this.#found.has(path));
    if (this.#compiled.length === 0 || unknown.length === 0) return;
    for (const [i, found] of this.#search(unknown).entries()) this.#found.set(unknown[i]!, found);
  }

  /** Index of the first that matches a path, or -1. @throws InputError CONFIG_INVALID for those that take too long */
  first(path: string): number {
    const plain = this.#sources.findIndex((source, i) => this.#plain[i] && matchesPlain(source, path, this.#ending));
    this.look([path]);
    const compiled = this.#places[this.#found.get(path) ?? -1] ?? -1;
    return plain < 0 || (compiled >= 0 && compiled < plain) ? compiled : plain;
  }

  #search(paths: readonly string[]): readonly number[] {
    const started = performance.now();
    try {
      Object.assign(sandbox, { patterns: this.#compiled, paths });
      return search.runInContext(sandbox, { timeout: Math.ceil(this.#left) }) as number[];
    } catch (cause) {
      const late = (cause as { code?: unknown }).code === "ERR_SCRIPT_EXECUTION_TIMEOUT";
      const what = this.#sources.length === 1 ? `"${this.#sources[0]}"` : "its patterns";
      const problem = late ? "take too long to match: no repetitions within repetitions" : "cannot be matched";
      throw this.#invalid(`${what} ${problem}`);
    } finally {
      this.#left = Math.max(1, this.#left - Math.max(0, performance.now() - started - UNCOUNTED_MS));
    }
  }

  #invalid(problem: string): InputError {
    return new InputError("CONFIG_INVALID", "adapter_config.json", `${this.#field}: ${problem}`);
  }
}

/**
 * Tells which paths are meant: those that end in one of the names, or that a regular expression matches.
 * @param paths that will be asked for
 */
export function pathsMeant(
  target: string | readonly string[],
  field: string,
  paths: readonly string[],
): (path: string) => boolean {
  if (typeof target === "string") {
    const patterns = new Patterns([target], field);
    patterns.look(paths);
    return (path) => patterns.first(path) === 0;
  }
  const names = new Set(target);
  // A name may itself be several parts of a path.
  return (path) => {
    for (let at = -1; ; ) {
      if (names.has(path.slice(at + 1))) return true;
      at = path.indexOf(".", at + 1);
      if (at < 0) return false;
    }
  };
}

export interface Targeting {
  readonly target_modules: string | readonly string[];
  readonly exclude_modules?: string | readonly string[] | null | undefined;
  readonly layers_to_transform?: number | readonly number[] | null | undefined;
}

/** The sites a config acts on, by PEFT's rules (list = path suffixes, string = regular expression or `all-linear`). */
export function targetedSites(config: Targeting, backbone: BackboneConfig): Site[] {
  const { target_modules: target, exclude_modules: exclude, layers_to_transform: only } = config;
  const layers = only === null || only === undefined ? undefined : new Set(typeof only === "number" ? [only] : only);
  const sites = sitesOf(backbone);
  const paths = sites.map(({ path }) => path);
  const isTarget = target === "all-linear" ? () => true : pathsMeant(target, "target_modules", paths);
  const isExcluded = exclude ? pathsMeant(exclude, "exclude_modules", paths) : () => false;
  const found = sites.filter(
    (site) => isTarget(site.path) && !isExcluded(site.path) && (layers === undefined || layers.has(site.layer)),
  );
  if (found.length === 0) {
    const known = [...new Set(sites.map((site) => site.module))].join(", ");
    throw new InputError(
      "ADAPTER_TARGETS_NOTHING",
      "adapter_config.json",
      `target_modules ${JSON.stringify(target)} name no linear module of this backbone (it has ${known})`,
    );
  }
  return found;
}

const compiled = new WeakMap<object, Patterns>();

/** The entry of a `rank_pattern` or `alpha_pattern` for a module: the first key that ends its path, as in PEFT. */
export function patternValue(pattern: Readonly<Record<string, number>>, path: string, otherwise: number): number {
  let patterns = compiled.get(pattern);
  if (!patterns) {
    patterns = new Patterns(Object.keys(pattern), "rank_pattern", { ending: true });
    compiled.set(pattern, patterns);
  }
  const found = patterns.first(path);
  return found < 0 ? otherwise : Object.values(pattern)[found]!;
}
