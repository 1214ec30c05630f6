/** @file Shapes of well-known models, for benchmarks with random weights: no checkpoint is needed to measure speed. */
import type { BackboneConfig } from "./config.ts";

const llama = {
  modelType: "llama",
  rmsNormEps: 1e-5,
  ropeTheta: 10000,
  hiddenAct: "silu",
  vocabSize: 32000,
  bosTokenId: 1,
  eosTokenIds: [2],
  tieWordEmbeddings: false,
} as const;

/** As in the config.json of the models they are named after. */
export const SHAPES = {
  "llama-2-7b": {
    ...llama,
    hiddenSize: 4096,
    intermediateSize: 11008,
    numLayers: 32,
    numHeads: 32,
    numKvHeads: 32,
    headDim: 128,
    maxPositions: 4096,
  },
  "llama-2-13b": {
    ...llama,
    hiddenSize: 5120,
    intermediateSize: 13824,
    numLayers: 40,
    numHeads: 40,
    numKvHeads: 40,
    headDim: 128,
    maxPositions: 4096,
  },
  "tinyllama-1.1b": {
    ...llama,
    hiddenSize: 2048,
    intermediateSize: 5632,
    numLayers: 22,
    numHeads: 32,
    numKvHeads: 4,
    headDim: 64,
    maxPositions: 2048,
  },
  "smollm2-135m": {
    ...llama,
    hiddenSize: 576,
    intermediateSize: 1536,
    numLayers: 30,
    numHeads: 9,
    numKvHeads: 3,
    headDim: 64,
    vocabSize: 49152,
    ropeTheta: 100000,
    maxPositions: 8192,
    tieWordEmbeddings: true,
    bosTokenId: 0,
    eosTokenIds: [0],
  },
} as const satisfies Record<string, BackboneConfig>;

export type ShapeName = keyof typeof SHAPES;
