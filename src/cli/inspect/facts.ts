/** @file What can be read out of an adapter: how large its changes are per layer. */
import type { Adapter } from "../../methods/index.ts";

const LORA = /^(.*\.layers\.(\d+)\..*?([^.]+))\.lora_A(?:\.weight)?$/;

/**
 * Per layer and part the size of what was learned: for a LoRA pair the Frobenius norm of B·A (without the scaling
 * factor), for any other tensor its own norm.
 */
export function layerNorms(adapter: Adapter): Map<number, Map<string, number>> {
  const norms = new Map<number, Map<string, number>>();
  for (const { key, shape, group } of adapter.specs) {
    if (group === "activation" || key.includes(".lora_B")) continue;
    const pair = LORA.exec(key);
    const layer = Number(pair?.[2] ?? /\.layers\.(\d+)\./.exec(key)?.[1] ?? -1);
    const name = pair?.[3] ?? shortName(key);
    const norm = pair
      ? productNorm(adapter.values(key), adapter.values(key.replace(".lora_A", ".lora_B")), shape[0]!)
      : Math.sqrt(dot(adapter.values(key), adapter.values(key)));
    if (!norms.has(layer)) norms.set(layer, new Map());
    norms.get(layer)!.set(name, norm);
  }
  return norms;
}

/**
 * `…layers.3.milora_router.gate.weight` → `router.gate`, `…q_proj.lora_magnitude_vector` → `q_proj.magnitude`,
 * `…mlp.parallel_adapter.up.weight` → `mlp.up`.
 */
function shortName(key: string): string {
  return key
    .replace(/^.*\.layers\.\d+\.(?:(?:self_attn|mlp)\.(?!\w+_adapter\.))?/, "")
    .replace(/\w+_adapter\./, "")
    .replace(/\.weight$/, "")
    .replace(/^milora_/, "")
    .replace(/lora_(\w+?)(_vector)?$/, "$1");
}

/** ‖B A‖² = Σ_ij (AAᵀ)_ij (BᵀB)_ij with A [r, in], B [out, r]: no [out, in] matrix is made. */
function productNorm(a: Float32Array, b: Float32Array, r: number): number {
  const width = a.length / r;
  const grams = (i: number, j: number) => {
    let ofB = 0;
    for (let o = 0; o < b.length; o += r) ofB += b[o + i]! * b[o + j]!;
    return ofB * dot(a.subarray(i * width, (i + 1) * width), a.subarray(j * width, (j + 1) * width));
  };
  let total = 0;
  for (let i = 0; i < r; i++) for (let j = 0; j < r; j++) total += grams(i, j);
  return Math.sqrt(Math.max(total, 0));
}

function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}
