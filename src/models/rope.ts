/** @file Rotary positions: the frequencies of every kind of scaling, and the tables of cosines and sines made from them. */
import type { BackboneConfig } from "./config.ts";

/** How frequencies are changed so that a model reads sequences longer than it was first trained on. */
export type RopeScaling =
  /** Positions count `factor` times less. */
  | { readonly kind: "linear"; readonly factor: number }
  /** NTK-aware (dynamic): the base grows with the length of the sequence, once that exceeds `original`. */
  | { readonly kind: "dynamic"; readonly factor: number; readonly original: number }
  /** LLaMA 3.1: wavelengths above original / lowFreq are stretched, those below original / highFreq are not. */
  | {
      readonly kind: "llama3";
      readonly factor: number;
      readonly lowFreq: number;
      readonly highFreq: number;
      readonly original: number;
    }
  /** YaRN (Peng et al. 2023): as llama3 by numbers of rotations, and cosines and sines times `attention`. */
  | {
      readonly kind: "yarn";
      readonly factor: number;
      readonly original: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly attention: number;
      /** Whether the range of features in between is rounded to whole ones. */
      readonly truncate: boolean;
    }
  /** LongRoPE (Ding et al. 2024): a factor for each frequency, other ones for sequences longer than `original`. */
  | {
      readonly kind: "longrope";
      readonly short: readonly number[];
      readonly long: readonly number[];
      readonly original: number;
      readonly attention: number;
    };

export interface Rope {
  /** Base of the frequencies. */
  readonly theta: number;
  readonly scaling?: RopeScaling;
}

/** Scaling that depends on the length of the sequence. */
export type VaryingScaling = Extract<RopeScaling, { kind: "dynamic" | "longrope" }>;

/** The scaling of a rope whose frequencies are not the same for all lengths. */
export function varyingScaling({ scaling }: Rope): VaryingScaling | undefined {
  if (scaling?.kind === "dynamic") return scaling;
  if (scaling?.kind !== "longrope") return undefined;
  return scaling.long.every((factor, i) => factor === scaling.short[i]) ? undefined : scaling;
}

/** Features of a head that are rotated. */
export function rotaryDimOf({ rotaryDim, headDim }: BackboneConfig): number {
  return rotaryDim ?? headDim;
}

/** What a layer rotates with, and the names of its tables. */
export interface LayerRope {
  readonly rope: Rope;
  readonly cos: string;
  readonly sin: string;
}

const named = (rope: Rope, name: string): LayerRope => ({ rope, cos: `${name}.cos`, sin: `${name}.sin` });

/** What most layers rotate with. */
function globalRope({ ropeTheta: theta, ropeScaling: scaling }: BackboneConfig): LayerRope {
  return named({ theta, ...(scaling && { scaling }) }, "rope");
}

export function ropeOfLayer(config: BackboneConfig, layer: number): LayerRope {
  const local = config.localRope && config.slidingWindow?.layers.includes(layer);
  return local ? named(config.localRope!, "rope.local") : globalRope(config);
}

/** Positions up to which tokens are rotated alike, however long their sequence is. */
export function steadyLength(config: BackboneConfig): number {
  const originals = Array.from({ length: config.numLayers }, (_, layer) => {
    return varyingScaling(ropeOfLayer(config, layer).rope)?.original ?? Number.POSITIVE_INFINITY;
  });
  return Math.min(...originals);
}

// transformers computes frequencies in float32: each step is rounded where PyTorch rounds, which divides a number by a
// tensor as the number times the reciprocal.
const f32 = Math.fround;

/** 1 / θ^(2i/n) for i = 0 … n/2 - 1, n features being rotated. */
function plainFrequencies(theta: number, n: number): Float32Array {
  return Float32Array.from({ length: n / 2 }, (_, i) => 1 / f32(theta ** f32((2 * i) / n)));
}

function yarnFrequencies(
  { factor, original, betaFast, betaSlow, truncate }: Extract<RopeScaling, { kind: "yarn" }>,
  theta: number,
  n: number,
): Float32Array {
  /** The feature that rotates this often over the original length. */
  const featureOf = (rotations: number) => (n * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
  const [first, last] = [featureOf(betaFast), featureOf(betaSlow)];
  const low = Math.max(truncate ? Math.floor(first) : first, 0);
  const given = Math.min(truncate ? Math.ceil(last) : last, n - 1);
  const high = low === given ? given + 0.001 : given;
  return Float32Array.from({ length: n / 2 }, (_, i) => {
    const power = f32(theta ** f32((2 * i) / n));
    const kept = f32(1 - Math.min(Math.max(f32(f32(i - f32(low)) / f32(high - low)), 0), 1));
    return f32(f32(1 / f32(factor * power)) * f32(1 - kept)) + f32(f32(1 / power) * kept);
  });
}

function llama3Frequencies(
  { factor, lowFreq, highFreq, original }: Extract<RopeScaling, { kind: "llama3" }>,
  theta: number,
  n: number,
): Float32Array {
  return plainFrequencies(theta, n).map((frequency) => {
    const wavelength = f32(f32(1 / frequency) * f32(2 * Math.PI));
    if (wavelength < original / highFreq) return frequency;
    if (wavelength > original / lowFreq) return frequency / factor;
    const smooth = f32(f32(f32(f32(1 / wavelength) * original) - lowFreq) / (highFreq - lowFreq));
    return f32(f32(f32(1 - smooth) * frequency) / factor) + f32(smooth * frequency);
  });
}

function longFrequencies(factors: readonly number[], theta: number, n: number): Float32Array {
  return Float32Array.from(factors, (factor, i) => 1 / f32(f32(factor) * f32(theta ** f32((2 * i) / n))));
}

/** Frequencies of each table that a rope has, in radians a position: LongRoPE has one for short and one for long. */
export function ropeFrequencies(rope: Rope, n: number): Float32Array[] {
  const { theta, scaling } = rope;
  switch (scaling?.kind) {
    case "linear":
      return [plainFrequencies(theta, n).map((frequency) => frequency / scaling.factor)];
    case "llama3":
      return [llama3Frequencies(scaling, theta, n)];
    case "yarn":
      return [yarnFrequencies(scaling, theta, n)];
    case "longrope":
      return (varyingScaling(rope) ? [scaling.short, scaling.long] : [scaling.short]).map((factors) =>
        longFrequencies(factors, theta, n),
      );
    default:
      return [plainFrequencies(theta, n)]; // dynamic: as long as sequences are not too long
  }
}

/**
 * Cosines and sines of the rotary embeddings of all layers, float32 [maxPositions, rotaryDim / 2], rounded where
 * transformers rounds (inverse frequencies and angles are float32), so that logits agree at long positions too. Those of
 * LongRoPE are [2 · maxPositions, …]: for short sequences, then for long ones.
 */
export function ropeTables(config: BackboneConfig): Map<string, { shape: readonly number[]; values: Float32Array }> {
  const tables = new Map<string, { shape: readonly number[]; values: Float32Array }>();
  for (let layer = 0; layer < config.numLayers; layer++) {
    const { rope, cos, sin } = ropeOfLayer(config, layer);
    if (tables.has(cos)) continue;
    const { scaling } = rope;
    const attention = scaling && "attention" in scaling ? scaling.attention : 1;
    const variants = ropeFrequencies(rope, rotaryDimOf(config));
    const half = rotaryDimOf(config) / 2;
    const shape = [variants.length * config.maxPositions, half];
    const [cosines, sines] = [new Float32Array(shape[0]! * half), new Float32Array(shape[0]! * half)];
    variants.forEach((frequencies, variant) => {
      const first = variant * config.maxPositions * half;
      for (const [i, frequency] of frequencies.entries()) {
        for (let position = 0; position < config.maxPositions; position++) {
          const angle = f32(position * frequency);
          cosines[first + position * half + i] = f32(Math.cos(angle)) * attention;
          sines[first + position * half + i] = f32(Math.sin(angle)) * attention;
        }
      }
    });
    tables.set(cos, { shape, values: cosines });
    tables.set(sin, { shape, values: sines });
  }
  return tables;
}
