/** @file `milora logits`: the numbers behind the next token, for checks against other implementations. */
import { type Command, Option } from "commander";
import type { DeviceName } from "../../runtime/index.ts";
import {
  adapterFlag,
  deviceFlag,
  examples,
  integer,
  jsonFlag,
  modelFlag,
  needed,
  threadsFlag,
  tokenIds,
  weightsFlag,
} from "../flags.ts";
import { open } from "../open.ts";
import { drawRoutes } from "../routes.ts";
import { print, printJson, table } from "../terminal.ts";

interface Flags {
  readonly model: string;
  readonly adapter?: string;
  readonly weights?: "float32" | "int8" | "int4";
  readonly threads?: number;
  readonly device?: DeviceName;
  readonly tokens: number[];
  readonly greedy?: number;
  readonly json?: boolean;
}

const SHOWN = 10;

export function configure(command: Command): void {
  examples(
    command
      .addOption(modelFlag())
      .addOption(adapterFlag())
      .addOption(needed(new Option("--tokens <ids>", "token ids, separated by commas").argParser(tokenIds)))
      .option("--greedy <n>", "also continue by n tokens, always the likeliest", integer(1))
      .addOption(weightsFlag())
      .addOption(threadsFlag())
      .addOption(deviceFlag())
      .addOption(jsonFlag())
      .action(logits),
    ["milora logits --model assets/tiny-llama --tokens 1,5,77 --greedy 12 --json"],
  );
}

async function logits(flags: Flags): Promise<void> {
  using opened = await open(flags);
  const { engine, adapter } = opened;
  const inspected = await engine.inspectTokens(flags.tokens, adapter);
  const greedy = flags.greedy === undefined ? [] : await continueGreedily(opened, flags.tokens, flags.greedy);
  const route = inspected.route;
  const experts = adapter?.method.routing?.(adapter.config).experts ?? [];
  if (flags.json) {
    printJson({
      logits: [...inspected.logits], // [V], of the last position
      logprobs: inspected.logprobs, // of tokens 1 … n-1
      greedy,
      ...(route
        ? {
            routes: Object.fromEntries(route.experts.map((chosen, layer) => [layer, inOrder(chosen, experts)])),
            probabilities: Object.fromEntries(route.probabilities.map((row, layer) => [layer, row])),
          }
        : {}),
    });
    return;
  }
  const best = [...inspected.logits.keys()].sort((a, b) => inspected.logits[b]! - inspected.logits[a]!).slice(0, SHOWN);
  print(
    table(
      ["token", "logit"],
      best.map((id) => [String(id), inspected.logits[id]!.toFixed(5)]),
    ),
  );
  if (greedy.length) print(`\ngreedy: ${greedy.join(",")}`);
  if (route) print(`\n${drawRoutes(["experts of this prompt"], [route.experts], experts)}`);
}

async function continueGreedily({ engine, adapter }: Awaited<ReturnType<typeof open>>, prompt: number[], n: number) {
  const request = {
    prompt,
    options: { maxNewTokens: n, temperature: 0, eosTokenIds: [] },
    ...(adapter ? { adapter } : {}),
  };
  return (await engine.generate([request]))[0]!.tokens;
}

function inOrder(chosen: readonly string[], experts: readonly string[]): string[] {
  return experts.filter((expert) => chosen.includes(expert));
}
