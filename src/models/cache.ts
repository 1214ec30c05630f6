/** @file Where files live that can be had again: downloaded models and data sets, prepared weights. */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, realpathSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import { readJson, userCacheDirectory, writeFileAtomic } from "../base/index.ts";
import type { WeightForm } from "./forward.ts";
import { GgufModel } from "./gguf/model.ts";

/** `MILORA_CACHE`, else `milora` in the user's cache directory. */
export function cacheDirectory(): string {
  return process.env.MILORA_CACHE || join(userCacheDirectory(), "milora");
}

/** Goes up whenever the quantiser gives other numbers, so that older prepared weights are not taken for new ones. */
const QUANTIZER = 2;

/** `int4-32`, `float32`: a form in names of files. */
export function formName(form: WeightForm): string {
  return form.kind === "float32" ? "float32" : `${form.kind}-${form.blockSize}-q${QUANTIZER}`;
}

/** The file that holds a model's weights in a form; `digest` is the backbone's. */
export function preparedPath(digest: string, form: WeightForm): string {
  return join(cacheDirectory(), "prepared", digest, `${formName(form)}.safetensors`);
}

const SOURCE_FILE = /\.safetensors$|^config\.json$|^model\.safetensors\.index\.json$/;

/**
 * What a model's files look like from outside: names, sizes, times of change. A model whose files have changed has
 * another one; content is not read, so that this takes no time.
 */
function fingerprint(model: string): string {
  const path = realpathSync(model);
  const [directory, own] = GgufModel.is(path) ? [dirname(path), basename(path)] : [path, undefined];
  // Parts of a split GGUF file have all but their number in common.
  const stem = own?.replace(/-\d{5}-of-\d{5}\.gguf$/, "");
  const names = readdirSync(directory).filter((name) =>
    own === undefined ? SOURCE_FILE.test(name) : name === own || (stem !== own && name.startsWith(`${stem}-`)),
  );
  const files = names.sort().map((name) => {
    const { size, mtimeNs } = statSync(join(directory, name), { bigint: true });
    return `${name} ${size} ${mtimeNs}`;
  });
  return createHash("sha256")
    .update([path, ...files].join("\n"))
    .digest("hex");
}

const sourceSchema = z.object({ model: z.string(), digest: z.string().regex(/^[0-9a-f]{64}$/) });

function sourcePath(model: string): string {
  return join(cacheDirectory(), "prepared", "sources", `${fingerprint(model)}.json`);
}

/** The digest of a model that has been prepared, found without reading its weights; undefined for others. */
export function knownDigest(model: string): string | undefined {
  const path = sourcePath(model);
  if (!existsSync(path)) return undefined;
  try {
    return readJson(path, sourceSchema).digest;
  } catch {
    rmSync(path, { force: true }); // damaged: as if it were not there
    return undefined;
  }
}

/** Files with prepared weights of a model that has been prepared, and their forms: `int4-32`. */
export function preparedFiles(model: string): Map<string, string> {
  const digest = knownDigest(model);
  const directory = digest === undefined ? undefined : join(cacheDirectory(), "prepared", digest);
  if (directory === undefined || !existsSync(directory)) return new Map();
  const ending = new RegExp(`^(float32|int\\d-\\d+(?=-q${QUANTIZER}\\.)).*\\.safetensors$`);
  const found = readdirSync(directory).flatMap((name): [string, string][] => {
    const form = ending.exec(name)?.[1];
    return form === undefined ? [] : [[form, join(directory, name)]];
  });
  return new Map(found.sort());
}

/** Notes the digest of a model, for `knownDigest`. */
export function rememberDigest(model: string, digest: string): void {
  writeFileAtomic(sourcePath(model), `${JSON.stringify({ model: realpathSync(model), digest })}\n`);
}
