/** @file For tests: a machine whose times are round numbers. */
import { type MethodProfile, type Profile, profileSchema } from "./profile.ts";
import { type Traffic, type TrafficInput, trafficSchema } from "./traffic.ts";

/** A step of n rows: `10 + n` ms, with an adapter each `9 + 2 · n`; a prompt of t tokens: `5 + t / 10` ms. */
export function roundMethod(over: Partial<MethodProfile> = {}): MethodProfile {
  return {
    ...{ name: "milora", options: { r: 8 }, joins: true, adapterBytes: 2 ** 20, loadMs: 40 },
    read: [
      { tokens: 10, ms: 6 },
      { tokens: 1000, ms: 105 },
    ],
    promptMs: 0,
    positions: 0,
    step: [
      { rows: 1, one: 11, each: 11 },
      { rows: 16, one: 26, each: 41 },
    ],
    ...{ positionMs: 0, changedMs: 0 },
    ...over,
  };
}

export function roundProfile(...methods: readonly MethodProfile[]): Profile {
  const bare = roundMethod({ name: "bare", options: {}, adapterBytes: 0, loadMs: 0 });
  const machine = {
    ...{ cpu: "of round numbers", cores: 4, threads: 4, memoryBytes: 16 * 2 ** 30 },
    ...{ system: "none", node: "none", milora: "none", busy: 0 },
  };
  const model = {
    ...{ name: "model", type: "llama", weights: "int4", layers: 16, hiddenSize: 512, context: 4096 },
    ...{ bytes: 2 ** 30, loadMs: 500, kvBytesPerPosition: 2 ** 14 },
  };
  return profileSchema.parse({
    ...{ version: 1, created: "2026-01-01T00:00:00.000Z", machine, model, processBytes: 2 ** 27 },
    http: { requestMs: 0, tokenMs: 0 },
    methods: [bare, ...(methods.length > 0 ? methods : [roundMethod()])],
  });
}

export function trafficOf(input: TrafficInput): Traffic {
  return trafficSchema.parse(input);
}
