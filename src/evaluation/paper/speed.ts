/** @file Decode speed and memory of one adapter, as the process that runs this knows them of itself. */
import { median } from "../../base/index.ts";
import { Engine } from "../../generation/index.ts";
import { Adapter } from "../../methods/index.ts";
import { Backbone } from "../../models/index.ts";
import type { DeviceName } from "../../runtime/index.ts";
import type { Values } from "./study.ts";

export interface SpeedRequest {
  readonly model: string;
  readonly device: DeviceName | undefined;
  readonly adapter: string;
  readonly prompts: readonly (readonly number[])[];
  readonly beams: number;
  readonly tokens: number;
  readonly rounds: number;
}

/** Continues the prompts one after another, in rounds; the first round warms up. Medians over rounds. */
export async function measureSpeed({
  model,
  device,
  adapter: directory,
  ...request
}: SpeedRequest): Promise<Values["speed"]> {
  const { prompts, beams, tokens, rounds } = request;
  using backbone = await Backbone.load(model);
  using adapter = Adapter.load(directory, backbone.config);
  using engine = Engine.create(backbone, { device });
  const speeds: number[] = [];
  const prefills: number[] = [];
  for (let round = 0; round <= rounds; round++) {
    let [steps, decode, prefill] = [0, 0, 0];
    for (const prompt of prompts) {
      const options = { maxNewTokens: tokens, beams, eosTokenIds: [] };
      const [result] = await engine.generate([{ prompt, adapter, options }]);
      steps += result!.timing.steps;
      decode += result!.timing.decodeMs;
      prefill += result!.timing.prefillMs;
    }
    if (round === 0) continue;
    speeds.push(steps / (decode / 1000));
    prefills.push(prefill / prompts.length);
  }
  return {
    tokensPerSecond: median(speeds),
    prefillMs: median(prefills),
    peakMib: process.resourceUsage().maxRSS / 1024, // Node gives KiB everywhere
    rounds: speeds,
  };
}
