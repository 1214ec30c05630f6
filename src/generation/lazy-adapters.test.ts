/** @file Adapters whose numbers lie in a file: once packed they generate without tensors, and give what whole ones give. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Adapter, WEIGHTS_FILE } from "../methods/index.ts";
import { type Backbone, SafetensorsFile } from "../models/index.ts";
import { operators } from "../runtime/index.ts";
import { Engine } from "./engine.ts";
import { Scheduler } from "./scheduler/scheduler.ts";
import { loadTiny, moved } from "./testing.ts";

let backbone: Backbone;
let root: string;
beforeAll(async () => {
  backbone = await loadTiny();
  root = mkdtempSync(join(tmpdir(), "lazy-"));
});
afterAll(() => {
  backbone.dispose();
  rmSync(root, { recursive: true });
});

const prompt = [1, 44, 23, 90, 7, 300, 12];
const options = { maxNewTokens: 6, eosTokenIds: [] };

test.each(["lora", "milora", "moelora", "ia3", "bitfit", "dora", "midora", "iapt"])("%s", async (method) => {
  const directory = join(root, method);
  using original = moved(backbone, method);
  await original.save(directory);
  using whole = Adapter.load(directory, backbone.config);
  const path = join(directory, WEIGHTS_FILE);
  let opened = 0;
  using lazy = Adapter.lazily(directory, backbone.config, () => {
    opened++;
    return SafetensorsFile.open(path, readFileSync(path));
  });
  using engine = Engine.create(backbone);
  await engine.prepare(lazy);
  lazy.closeFile();
  const asked = async (adapter: Adapter): Promise<number[][]> => {
    await using scheduler = new Scheduler(engine);
    const run = async () => {
      const tokens: number[] = [];
      const stream = scheduler.submit({ tenant: "a", prompt, adapter, options });
      for (let step = await stream.next(); !step.done; step = await stream.next()) tokens.push(step.value.token);
      return tokens;
    };
    return await Promise.all([run(), run()]);
  };
  const expected = await asked(whole);
  expect(expected[0]).toHaveLength(6);
  expect(await asked(lazy)).toEqual(expected);
  const rows = [{ prompt, continuation: [5, 6] }];
  const [scored] = await engine.score(rows, lazy);
  const [known] = await engine.score(rows, whole);
  expect(scored!.logprobs).toEqual(known!.logprobs);
  expect(opened).toBe(1);
  // Others of these are not put into items, or their numbers follow from the backbone's.
  const inItems = operators() !== undefined && !["moelora", "dora", "midora", "iapt"].includes(method);
  const { key } = whole.specs[0]!;
  expect(lazy.values(key)).toEqual(whole.values(key));
  expect(opened).toBe(inItems ? 2 : 1);
});
