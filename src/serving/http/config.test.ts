/** @file Settings of a server: their three forms, and that the guide describes each of them as it is. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import type { z } from "zod";
import {
  environmentSettings,
  httpLimitsSchema,
  isLoopback,
  modelNameOf,
  parseServerConfig,
  serverConfigSchema,
} from "./config.ts";

test("all problems are told at once, misspelt names too", () => {
  const wrong = { model: "", port: 70_000, http: { bodyByte: 1 }, adapters: { "../x": "d" }, hots: "h" };
  let message = "";
  try {
    parseServerConfig(wrong, "serve.yaml");
  } catch (error) {
    message = String(error);
  }
  for (const part of ["serve.yaml", "model", "port", "bodyByte", "../x", "hots"]) expect(message).toContain(part);
});

test("only the model is needed", () => {
  expect(parseServerConfig({ model: "m" })).toMatchObject({ host: "127.0.0.1", port: 8000, auth: "auto" });
});

test("the environment names keys in capitals", () => {
  const env = {
    MILORA_SERVE_PORT: "1",
    MILORA_SERVE_LIMITS__MAX_BATCH: "2",
    MILORA_CACHE: "x",
    MILORA_SERVE_X: undefined,
  };
  expect(environmentSettings(env)).toEqual(["port=1", "limits.maxBatch=2"]);
});

test.each([
  ["assets/tiny-llama", "tiny-llama"],
  ["./models/My Model/", "My-Model"],
  ["dir/x.Q4_0.gguf", "x.Q4_0"],
  ["meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"],
  ["..", "model"],
  ["/a/_b", "model-_b"],
])("%s is called %s", (model, name) => {
  expect(modelNameOf(model)).toBe(name);
});

test("loopback addresses", () => {
  expect(["127.0.0.1", "127.1.2.3", "::1", "localhost"].filter(isLoopback)).toHaveLength(4);
  expect(["0.0.0.0", "::", "10.0.0.1", "127.0.0.1.evil.example", "example.com"].filter(isLoopback)).toEqual([]);
});

test("docs/serving.md has every setting with its default and description", () => {
  const guide = readFileSync("docs/serving.md", "utf8").split("\n");
  const { limits: _, residency: __, http: ___, ...top } = serverConfigSchema.shape;
  const fields = [
    ...Object.entries(top),
    ...Object.entries(httpLimitsSchema.shape).map(([k, f]) => [`http.${k}`, f] as const),
  ];
  expect(fields.length).toBeGreaterThan(25);
  for (const [name, field] of fields) {
    const value = (field as z.ZodType).safeParse(undefined).data;
    const shown = value === undefined || typeof value === "object" ? "" : `\`${String(value)}\``;
    expect(guide).toContain(`| \`${name}\` | ${shown} | ${field.description} |`);
  }
});
