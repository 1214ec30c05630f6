/** @file Weights of modules that read the same rows, put together so that decoding multiplies once for all of them. */
import { Tensor } from "../runtime/index.ts";
import { quantizedNames } from "./forward.ts";

/** Linear weights [out, in] that become one, row after row, e.g. q, k and v. */
export interface FusedWeight {
  readonly name: string;
  readonly parts: readonly string[];
}

/** Puts quantised weights together. The parts become views of the whole, so nothing is held twice. */
export function fuseWeights(tensors: Map<string, Tensor>, fused: readonly FusedWeight[], kind: "int4" | "int8"): void {
  for (const { name, parts } of fused) {
    for (const which of ["quantized", "scales"] as const) {
      const nameOf = (weight: string): string => quantizedNames(weight, kind)[which];
      const given = parts.map((part) => tensors.get(nameOf(part))!);
      const size = given.reduce((total, tensor) => total + tensor.size, 0);
      const data = which === "quantized" ? new Uint8Array(size) : new Float32Array(size);
      const rows = given.reduce((total, { shape }) => total + shape[0]!, 0);
      const whole = Tensor.from(given[0]!.dtype, [rows, ...given[0]!.shape.slice(1)], data);
      let offset = 0;
      given.forEach((tensor, i) => {
        data.set(tensor.data as Uint8Array & Float32Array, offset);
        tensors.set(nameOf(parts[i]!), whole.view(offset, tensor.shape));
        offset += tensor.size;
        tensor.dispose();
      });
      tensors.set(nameOf(name), whole);
    }
  }
}

/** Shows the parts of weights that were put together before, where they are not there on their own. */
export function splitWeights(
  tensors: Map<string, Tensor>,
  fused: readonly FusedWeight[],
  kind: "int4" | "int8",
  rowsOf: (weight: string) => number,
): void {
  for (const { name, parts } of fused) {
    for (const which of ["quantized", "scales"] as const) {
      const whole = tensors.get(quantizedNames(name, kind)[which])!;
      const total = parts.reduce((rows, part) => rows + rowsOf(part), 0);
      let row = 0;
      for (const part of parts) {
        // Scales are one dimension, so many to a row.
        const shape = [(whole.shape[0]! / total) * rowsOf(part), ...whole.shape.slice(1)];
        tensors.set(quantizedNames(part, kind)[which], whole.view((whole.size / total) * row, shape));
        row += rowsOf(part);
      }
    }
  }
}
