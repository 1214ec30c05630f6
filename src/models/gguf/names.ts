/** @file Names of weights and the order of their rows, between checkpoints and GGUF files. */
import type { BackboneConfig } from "../config.ts";
import type { Site } from "../forward.ts";
import { ARCHITECTURES, type Architecture, TABLES } from "./architectures.ts";

/** `model.layers.3.self_attn.q_proj.weight` for `blk.3.attn_q.weight`; undefined for names that are not known. */
export function checkpointName(name: string, { modules }: Architecture): string | undefined {
  const match = /^(?:blk\.(\d{1,5})\.)?([a-z_]+)\.(weight|bias)$/.exec(name);
  if (!match) return undefined;
  const [, layer, part, kind] = match as unknown as [string, string | undefined, string, string];
  const table = layer === undefined ? TABLES : modules;
  if (!Object.hasOwn(table, part)) return undefined;
  return `${layer === undefined ? "" : `model.layers.${layer}.`}${table[part]}.${kind}`;
}

/** Modules whose rows are stored in ggml's order. */
export const PERMUTED = /\.self_attn\.[qk]_proj(\.|$)/;

/** Where row `row` of a permuted weight is in its file: each head has rows 0, n/2, 1, n/2 + 1, … of the checkpoint. */
export function storedRow(row: number, headRows: number): number {
  const within = row % headRows;
  const half = headRows / 2;
  return row - within + (within < half ? 2 * within : 2 * (within - half) + 1);
}

/** Model families that are another architecture's in GGUF files. */
const SAME: Readonly<Record<string, string>> = { mistral: "llama" };

/** `general.architecture` of a backbone's family; undefined where none is known. */
export function ggufArchitecture({ modelType }: BackboneConfig): string | undefined {
  const known = Object.entries(ARCHITECTURES).find(([, architecture]) => architecture.modelType === modelType);
  return known?.[0] ?? SAME[modelType];
}

/** `blk.3.attn_q` for `model.layers.3.self_attn.q_proj`, and where the file has each row if not in its place. */
export function ggufModule({ path }: Site, config: BackboneConfig) {
  const name = ggufArchitecture(config);
  const architecture = name === undefined ? undefined : ARCHITECTURES[name]!;
  const match = /^model\.layers\.(\d+)\.(.+)$/.exec(path);
  const part = Object.entries(architecture?.modules ?? {}).find(([, module]) => module === match?.[2])?.[0];
  if (architecture === undefined || part === undefined) return undefined;
  const moved = architecture.permuted === true && PERMUTED.test(path);
  return {
    name: `blk.${match![1]}.${part}`,
    storedRow: moved ? (row: number) => storedRow(row, config.headDim) : undefined,
  };
}
