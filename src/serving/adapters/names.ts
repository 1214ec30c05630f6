/** @file Names of adapters: which there may be, and what the `model` of a request stands for. */
import { InputError } from "../../base/index.ts";

/** Letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 128. */
export const ADAPTER_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** @param bases names of the bare backbone, which no adapter may take */
export function checkName(name: string, bases: readonly string[]): void {
  if (!ADAPTER_NAME.test(name)) {
    throw new InputError(
      "ADAPTER_NAME_INVALID",
      `the name ${shown(name)}`,
      "must be 1 to 128 letters, digits, '.', '_' or '-', and begin with a letter or digit",
    );
  }
  if (name.toLowerCase() === "base" || bases.includes(name)) {
    throw new InputError("ADAPTER_NAME_INVALID", `the name ${shown(name)}`, "stands for the backbone; choose another");
  }
}

/** What a `model` asks for: the bare backbone, an adapter, or something that cannot exist. */
export type ModelName =
  | { readonly kind: "base" | "none" }
  | { readonly kind: "adapter"; readonly owner?: string; readonly name: string };

/** Reads `base`, `name`, `owner/name`, `base:name` and `base:owner/name`. */
export function parseModel(model: string, bases: readonly string[]): ModelName {
  if (bases.includes(model)) return { kind: "base" };
  const base = bases.find((candidate) => model.startsWith(`${candidate}:`));
  const rest = base === undefined ? model : model.slice(base.length + 1);
  const slash = rest.indexOf("/");
  const name = rest.slice(slash + 1);
  if (!ADAPTER_NAME.test(name)) return { kind: "none" };
  if (slash < 0) return { kind: "adapter", name };
  const owner = rest.slice(0, slash);
  return ADAPTER_NAME.test(owner) ? { kind: "adapter", owner, name } : { kind: "none" };
}

/** One and the same answer whether an adapter does not exist or belongs to somebody else. */
export function modelNotFound(model: string): InputError {
  return new InputError("MODEL_NOT_FOUND", `the model ${shown(model)}`, "does not exist, or is not yours to use");
}

/** A name out of a request, safe to print. */
export function shown(name: string): string {
  const text = JSON.stringify(name.length > 128 ? `${name.slice(0, 128)}…` : name);
  return text.replace(/[^\x20-\x7e…]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
