/** @file Holds docs/errors.md to the code: every error code is documented, and nothing documented is gone. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseSync } from "vite";
import { expect, test } from "vitest";
import { methods } from "../../src/methods/index.ts";

const root = join(import.meta.dirname, "../..");

/** String literals in capitals that are no error codes, or a library's own. */
const OTHERS = new Set([
  "ERR_SCRIPT_EXECUTION_TIMEOUT",
  "CAUSAL_LM",
  "MILORA_LEAK",
  "F8_E4M3",
  "F8_E5M2",
  "FST_ERR_CTP_BODY_TOO_LARGE",
  "ERR_HTTP_REQUEST_TIMEOUT",
  "HPE_HEADER_OVERFLOW",
]);
for (const { peftType } of methods.values()) OTHERS.add(peftType);
const CODE = /^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$/;

/** All literals that look like a code, and whatever is the first argument of a constructor whose name ends in Error. */
function codesOf(path: string, text: string): Set<string> {
  const codes = new Set<string>();
  const literal = (node: unknown) => {
    const { type, value } = (node ?? {}) as { type?: string; value?: unknown };
    return type === "Literal" && typeof value === "string" ? value : undefined;
  };
  const visit = (node: unknown): void => {
    if (typeof node !== "object" || node === null) return;
    const {
      type,
      callee,
      arguments: args,
    } = node as { type?: string; callee?: { type?: string; name?: string }; arguments?: unknown[] };
    const text = literal(node);
    if (text !== undefined && CODE.test(text)) codes.add(text);
    const raises = (type === "NewExpression" && callee?.name?.endsWith("Error")) || callee?.type === "Super";
    const first = raises ? literal(args?.[0]) : undefined;
    if (first !== undefined && /^[A-Z_]{3,}$/.test(first)) codes.add(first);
    Object.values(node).forEach(visit);
  };
  visit(parseSync(path, text).program);
  return codes;
}

test("finds codes in all forms in which they are raised", () => {
  const source = `class A extends MiloraError { constructor() { super("STOPPED", "x"); } }
    type Code = "FROM_TYPE"; problems.add("FROM_CALL", "x"); throw new InputError(cond ? "ONE_WAY" : "OTHER_WAY", "w", "p");
    const no = "lower_case"; throw new Error("Not a code");`;
  expect([...codesOf("x.ts", source)].sort()).toEqual(["FROM_CALL", "FROM_TYPE", "ONE_WAY", "OTHER_WAY", "STOPPED"]);
});

test("docs/errors.md lists exactly the codes of src/", () => {
  const paths = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" });
  const inCode = new Set<string>();
  for (const path of paths) {
    if (!path.endsWith(".ts") || path.endsWith(".test.ts")) continue;
    for (const code of codesOf(path, readFileSync(join(root, "src", path), "utf8")))
      if (!OTHERS.has(code)) inCode.add(code);
  }
  const documented = [...readFileSync(join(root, "docs/errors.md"), "utf8").matchAll(/^\| `([A-Z_]+)` \|/gm)].map(
    (m) => m[1]!,
  );
  expect(documented.length).toBe(new Set(documented).size);
  expect(documented.sort()).toEqual([...inCode].sort());
});
