/** @file Reads config.json and generation_config.json of a model directory, as transformers 4 and 5 write them. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InputError, parseWith, readJson } from "../base/index.ts";
import { type BackboneConfig, tokenIdSchema, tokenIds, tokenIdsSchema } from "./config.ts";
import { FAMILIES, type Family, REFUSED } from "./families.ts";
import { GgufModel } from "./gguf/model.ts";
import { resolveModel } from "./pull.ts";

const generationSchema = z.looseObject({
  bos_token_id: tokenIdSchema,
  eos_token_id: tokenIdsSchema,
  pad_token_id: tokenIdSchema,
});

const headSchema = z.looseObject({
  model_type: z.string().optional(),
  architectures: z.array(z.string()).nullish(),
});

function familyFor(path: string, head: z.infer<typeof headSchema>): Family {
  const families = Object.values(FAMILIES);
  const architectures = head.architectures ?? [];
  const family =
    architectures.length > 0
      ? families.find((candidate) => architectures.includes(candidate.architecture))
      : families.find((candidate) => candidate.modelType === head.model_type);
  if (family) return family;
  const refused = architectures.find((name) => Object.hasOwn(REFUSED, name));
  if (refused) {
    throw new InputError(
      "CONFIG_UNSUPPORTED",
      path,
      `architectures: ${refused} is not supported: it ${REFUSED[refused]}`,
    );
  }
  const known = families.map((candidate) => candidate.architecture).join(", ");
  const problem =
    architectures.length > 0
      ? `architectures: ${architectures.join(", ")} is not supported (supported: ${known})`
      : `model_type: ${head.model_type ?? "missing"} is not supported (supported: ${Object.keys(FAMILIES).join(", ")})`;
  throw new InputError("CONFIG_UNSUPPORTED", path, problem);
}

/** Bytes of the rotary tables that a config may ask for: a million positions of 128 features take 1 GiB. */
const MAX_TABLES = 2 ** 30;

/** The config as its family reads it, which does not ask for tables beyond all measure. */
function configOf(raw: z.infer<typeof headSchema>, path: string): BackboneConfig {
  const config = familyFor(path, raw).config(raw, path);
  const kinds = config.localRope || config.ropeScaling?.kind === "longrope" ? 2 : 1;
  const bytes = kinds * config.maxPositions * config.headDim * 4;
  if (bytes <= MAX_TABLES) return config;
  const problem = `max_position_embeddings: ${config.maxPositions} positions, scaling included, are more than can be held; write what is needed`;
  throw new InputError("CONFIG_INVALID", path, problem);
}

/** The config that a GGUF file's metadata stand for. */
function ggufConfig(path: string): BackboneConfig {
  using model = GgufModel.open(path);
  return configOf(parseWith(headSchema, model.config, path), path);
}

/**
 * Reads `config.json`, and `generation_config.json` where there is one: its token ids win, as in transformers. Of a
 * GGUF file it reads the metadata.
 * @param model a model directory, a .gguf file, or `ORG/NAME[@revision]` of a model that was pulled
 * @throws InputError naming every config field that is missing, ill-typed or asks for something not supported
 */
export function readBackboneConfig(model: string): BackboneConfig {
  const directory = resolveModel(model);
  if (GgufModel.is(directory)) return ggufConfig(directory);
  if (!existsSync(directory) || !statSync(directory).isDirectory()) {
    throw new InputError("MODEL_NOT_FOUND", directory, "no such model directory");
  }
  const path = join(directory, "config.json");
  if (!existsSync(path)) {
    const gguf = readdirSync(directory).find((name) => name.endsWith(".gguf"));
    const hint =
      gguf === undefined ? "not a Hugging Face model directory" : `name the GGUF file itself, ${join(directory, gguf)}`;
    throw new InputError("MODEL_NOT_FOUND", directory, `has no config.json: ${hint}`);
  }
  const config = configOf(readJson(path, headSchema), path);
  const generationPath = join(directory, "generation_config.json");
  if (!existsSync(generationPath)) return config;
  const generation = readJson(generationPath, generationSchema);
  const merged = {
    ...config,
    ...tokenIds(
      generation.bos_token_id ?? config.bosTokenId,
      generation.eos_token_id ?? config.eosTokenIds,
      generation.pad_token_id ?? config.padTokenId,
    ),
  };
  const outside = merged.eosTokenIds.filter((id) => id >= config.vocabSize);
  if (outside.length > 0) {
    const problem = `eos_token_id: ${outside.join(", ")} is outside the vocabulary of ${config.vocabSize}`;
    throw new InputError("CONFIG_INVALID", generationPath, problem);
  }
  return merged;
}
