/** @file What planning and running work on: backbones, data, finished cells. */
import { join } from "node:path";
import type { Judge } from "../judge/index.ts";
import { Data } from "./data.ts";
import { Models } from "./models.ts";
import { type Plan, Planner, scopeOf } from "./plan.ts";
import type { Preset } from "./presets.ts";
import { findStudies } from "./registry.ts";
import { type CellRecord, CellStore } from "./store.ts";
import type { World } from "./work.ts";

/**
 * @param output directory of all that is made
 * @param judge of MT-Bench
 * @param keep takes finished cells instead of the directory
 */
export function openWorld(
  { dataDirectory }: Pick<Preset, "dataDirectory">,
  output: string,
  judge?: Judge,
  keep?: (record: CellRecord) => void,
): World & Disposable {
  const models = new Models();
  const data = new Data(dataDirectory, join(output, "data"));
  const store = new CellStore(output, keep);
  return { models, data, store, judge, [Symbol.dispose]: () => models[Symbol.dispose]() };
}

/**
 * What the tables and figures of these names need, and what of it is there already.
 * @param names `table1` … `fig5`, or `all`
 * @throws InputError FLAG_INVALID for unknown names
 */
export async function planOf(names: readonly string[], preset: Preset, world: World): Promise<Plan> {
  const studies = await findStudies(names);
  return await new Planner(await scopeOf(preset, world.models), world).plan(studies);
}
