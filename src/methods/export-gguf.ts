/** @file Writes LoRA adapters as GGUF files for llama.cpp, as its own convert_lora_to_gguf.py does. */
import { existsSync } from "node:fs";
import { InputError } from "../base/index.ts";
import { type GgufTensorToWrite, type GgufValue, ggufArchitecture, ggufModule, writeGguf } from "../models/index.ts";
import type { Adapter } from "./adapter.ts";
import type { LowRankChange, Method } from "./method.ts";

export interface ExportGgufOptions {
  /** How the numbers are stored; `f32` (default) loses nothing. */
  readonly dtype?: "f32" | "f16" | undefined;
}

function refuse({ name, properties }: Method): never {
  const instead = properties.mergeable
    ? "fold it into the backbone with `milora adapters merge` and convert the merged model"
    : "llama.cpp has nothing that computes it";
  throw new InputError("ADAPTER_NOT_EXPORTABLE", name, `adapters of llama.cpp are LoRA and nothing else; ${instead}`);
}

/** Rows in the order in which the file has the backbone's own. */
function permuted(values: Float32Array, columns: number, from: ((row: number) => number) | undefined): Float32Array {
  if (from === undefined) return values;
  const result = new Float32Array(values.length);
  for (let row = 0; row < values.length / columns; row++) {
    result.set(values.subarray(row * columns, (row + 1) * columns), from(row) * columns);
  }
  return result;
}

/**
 * Writes a LoRA adapter as a GGUF file. llama.cpp scales each module by alpha / rank with one alpha for the file; where
 * the adapter's own scaling is another, from module to module, B is multiplied by what is missing.
 * @returns names of the modules written, as the file has them
 * @throws InputError ADAPTER_NOT_EXPORTABLE, OUTPUT_EXISTS
 */
export function exportGguf(adapter: Adapter, output: string, options: ExportGgufOptions = {}): string[] {
  const { method, config, backbone } = adapter;
  const changes = method.lowRank?.(config, backbone) ?? refuse(method);
  const architecture = ggufArchitecture(backbone);
  if (architecture === undefined) {
    const problem = `the architecture ${backbone.modelType} has no name in GGUF files that is known here`;
    throw new InputError("ADAPTER_NOT_EXPORTABLE", method.name, problem);
  }
  if (existsSync(output))
    throw new InputError("OUTPUT_EXISTS", output, "exists already; remove it or choose another name");
  const rankOf = ({ a }: LowRankChange) => adapter.tensors.get(a)!.shape[0]!;
  const wanted = changes.map((change) => change.scaling * rankOf(change));
  const alpha = Math.fround(Math.max(...wanted));
  const type = options.dtype === "f16" ? "F16" : "F32";
  const names: string[] = [];
  const tensors = changes.flatMap((change, i): GgufTensorToWrite[] => {
    const { name, storedRow } = ggufModule(change.site, backbone)!;
    const { inFeatures, outFeatures } = change.site;
    const rank = rankOf(change);
    const factor = Math.fround(wanted[i]!) === alpha ? 1 : wanted[i]! / alpha;
    names.push(name);
    return [
      { name: `${name}.weight.lora_a`, shape: [rank, inFeatures], type, values: () => adapter.values(change.a) },
      {
        name: `${name}.weight.lora_b`,
        shape: [outFeatures, rank],
        type,
        values: () => {
          const values = permuted(adapter.values(change.b), rank, storedRow);
          return factor === 1 ? values : values.map((value) => value * factor);
        },
      },
    ];
  });
  const metadata = new Map<string, GgufValue>([
    ["general.architecture", architecture],
    ["general.type", "adapter"],
    ["general.name", "milora"],
    ["general.file_type", { uint32: type === "F16" ? 1 : 0 }],
    ["adapter.type", "lora"],
    ["adapter.lora.alpha", { float32: alpha }],
  ]);
  writeGguf(output, metadata, tensors);
  return names;
}
