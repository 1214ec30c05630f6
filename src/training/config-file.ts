/** @file Training configs in files: YAML or JSON, read as untrusted input; and settings of a method that it does not have. */
import { extname } from "node:path";
import { LineCounter, parseDocument } from "yaml";
import { z } from "zod";
import { InputError, parseJson, parseWith, readText, reasonOf } from "../base/index.ts";
import type { Method } from "../methods/index.ts";
import { nearest } from "./text.ts";

/** Keys that would change an object's prototype instead of its fields. */
const FORBIDDEN = new Set(["__proto__", "constructor", "prototype"]);

/**
 * The object in a file that ends in .yaml, .yml (YAML 1.2) or .json, not checked against any schema yet. Throws
 * `InputError` FILE_UNREADABLE, YAML_INVALID, JSON_INVALID (with line and column) or CONFIG_INVALID.
 */
export function readConfigFile(path: string): Record<string, unknown> {
  const text = readText(path);
  const extension = extname(path).toLowerCase();
  const value = extension === ".yaml" || extension === ".yml" ? parseYaml(text, path) : parseJson(text, path);
  const forbidden = forbiddenKeys(value, "");
  if (forbidden.length) throw new InputError("CONFIG_INVALID", path, forbidden);
  return parseWith(z.record(z.string(), z.unknown(), { error: "is no list of settings" }), value, path);
}

function parseYaml(text: string, path: string): unknown {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const problems = [...document.errors, ...document.warnings].map((error) => {
    const { line, col } = lines.linePos(error.pos[0]);
    return `line ${line}, column ${col}: ${error.message}`;
  });
  if (problems.length) throw new InputError("YAML_INVALID", path, problems);
  try {
    return document.toJS(); // refuses aliases that would grow without bound
  } catch (error) {
    throw new InputError("YAML_INVALID", path, reasonOf(error), { cause: error });
  }
}

function forbiddenKeys(value: unknown, path: string): string[] {
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) => {
    const at = path === "" ? key : `${path}.${key}`;
    return FORBIDDEN.has(key) ? [`unknown key "${at}"`] : forbiddenKeys(inner, at);
  });
}

/** What is wrong with the names of a method's settings. (Files of adapters may have more keys: PEFT's change.) */
export function unknownSettings(method: Method, settings: Readonly<Record<string, unknown>>): string[] {
  if (!(method.configSchema instanceof z.ZodObject)) return [];
  const known = Object.keys(method.configSchema.shape);
  return Object.keys(settings)
    .filter((key) => !known.includes(key))
    .map((key) => {
      const meant = nearest(key, known);
      return `adapter: unknown key "${key}" of ${method.name}${meant === undefined ? "" : `, did you mean "${meant}"?`}`;
    });
}

/** JSON Schema (draft 2020-12) of what a config file may hold. */
export function jsonSchemaOf(schema: z.ZodType): Record<string, unknown> {
  return { title: "milora training config", ...z.toJSONSchema(schema, { io: "input" }) };
}
