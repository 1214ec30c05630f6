/** @file The model shapes that benchmarks fill with random weights. */
import { type BackboneConfig, SHAPES } from "../../src/models/index.ts";

/** As small as every engine accepts: to see that a benchmark works, not to measure. */
const tiny: BackboneConfig = {
  ...SHAPES["smollm2-135m"],
  hiddenSize: 256,
  intermediateSize: 512,
  numLayers: 2,
  numHeads: 4,
  numKvHeads: 2,
  vocabSize: 512,
};

/** That of the bundled backbone. */
const tinyLlama: BackboneConfig = {
  ...SHAPES["smollm2-135m"],
  hiddenSize: 192,
  intermediateSize: 512,
  numLayers: 6,
  numHeads: 6,
  numKvHeads: 3,
  headDim: 32,
  vocabSize: 8192,
};

export const shapes: Readonly<Record<string, BackboneConfig>> = { tiny, "tiny-llama": tinyLlama, ...SHAPES };

/** The config of a shape by its name on the command line. */
export function shapeOf(name: string): BackboneConfig {
  const config = shapes[name];
  if (!config) throw new Error(`no shape "${name}"; there are ${Object.keys(shapes).join(", ")}`);
  return config;
}
