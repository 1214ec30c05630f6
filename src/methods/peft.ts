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
/** Of each path, not counted: however busy the machine, an honest pattern has its time. */
const UNCOUNTED_MS = 20;
/** Nothing to go back over: matched in no time. */
const PLAIN = /^[\w.-]*$/;

const sandbox = createContext({ patterns: [] as RegExp[], path: "" });
const search = new Script("patterns.findIndex((pattern) => pattern.test(path))");

/** Regular expressions written for Python's `re.fullmatch`, out of a file that anybody may have written. */
export class Patterns {
  readonly #sources: readonly string[];
  readonly #field: string;
  readonly #compiled: readonly RegExp[];
  readonly #plain: boolean;
  #left = MATCH_MS;

  /** @param around where each is put, as `$` @throws InputError CONFIG_INVALID when JavaScript has no such syntax */
  constructor(sources: readonly string[], field: string, around = "$") {
    this.#sources = sources;
    this.#field = field;
    this.#plain = sources.every((source) => PLAIN.test(source));
    this.#compiled = sources.map((source) => {
      try {
        const pattern = source.replaceAll("(?P<", "(?<");
        return new RegExp(`^(?:${around.replace("$", () => `(?:${pattern})`)})$`);
      } catch {
        throw this.#invalid(`"${source}" is not a regular expression`);
      }
    });
  }

  /** Index of the first that matches all of a path, or -1. @throws InputError CONFIG_INVALID for those that take too long */
  first(path: string): number {
    if (this.#plain) return this.#compiled.findIndex((pattern) => pattern.test(path));
    const started = performance.now();
    try {
      Object.assign(sandbox, { patterns: this.#compiled, path });
      return search.runInContext(sandbox, { timeout: Math.ceil(this.#left) }) as number;
    } catch (cause) {
      const late = (cause as { code?: unknown }).code === "ERR_SCRIPT_EXECUTION_TIMEOUT";
      const shown = this.#sources.length === 1 ? `"${this.#sources[0]}"` : "its patterns";
      throw this.#invalid(
        `${shown} ${late ? "take too long to match: no repetitions within repetitions" : "cannot be matched"}`,
      );
    } finally {
      this.#left = Math.max(1, this.#left - Math.max(0, performance.now() - started - UNCOUNTED_MS));
    }
  }

  #invalid(problem: string): InputError {
    return new InputError("CONFIG_INVALID", "adapter_config.json", `${this.#field}: ${problem}`);
  }
}

/** Tells which paths are meant: those that end in one of the names, or that a regular expression matches. */
export function pathsMeant(target: string | readonly string[], field: string): (path: string) => boolean {
  if (typeof target === "string") {
    const patterns = new Patterns([target], field);
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
  const isTarget = target === "all-linear" ? () => true : pathsMeant(target, "target_modules");
  const isExcluded = exclude ? pathsMeant(exclude, "exclude_modules") : () => false;
  const found = sitesOf(backbone).filter(
    (site) => isTarget(site.path) && !isExcluded(site.path) && (layers === undefined || layers.has(site.layer)),
  );
  if (found.length === 0) {
    const known = [...new Set(sitesOf(backbone).map((site) => site.module))].join(", ");
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
    patterns = new Patterns(Object.keys(pattern), "rank_pattern", "(?:.*\\.)?$");
    compiled.set(pattern, patterns);
  }
  return Object.values(pattern)[patterns.first(path)] ?? otherwise;
}
