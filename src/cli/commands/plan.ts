/** @file `milora plan`: what servers would do under some traffic, how many it takes, what that costs. */
import { type Command, Option } from "commander";
import { InputError, parseWith } from "../../base/index.ts";
import {
  type FleetForecast,
  type MethodProfile,
  MODEL_EACH,
  modelEach,
  type Profile,
  planFleet,
  readProfile,
  sizeFleet,
  type Traffic,
  trafficSchema,
} from "../../serving/index.ts";
import { readConfigFile } from "../../training/index.ts";
import { collect, examples, integer, jsonFlag, needed, number } from "../flags.ts";
import { merge, parseSettings } from "../settings.ts";
import { grouped, note, paint, percent, print, printJson, table, warn } from "../terminal.ts";

interface Flags {
  readonly profile: string;
  readonly traffic: string;
  readonly set?: string[];
  readonly replicas?: number;
  readonly size?: boolean;
  readonly sample: number;
  readonly method?: string;
  readonly price?: number;
  readonly json?: boolean;
}

export function configure(command: Command): void {
  examples(
    command
      .addOption(needed(new Option("--profile <file>", "of a machine, as milora bench writes it")))
      .addOption(needed(new Option("--traffic <file>", "YAML or JSON: who asks for what, and how often")))
      .option("--set <key=value>", "one setting of the traffic, e.g. requestsPerSecond=40; may be repeated", collect)
      .addOption(new Option("--replicas <n>", "servers (default: 1)").argParser(integer(1)).conflicts("size"))
      .option("--size", "find the smallest number of servers that meets the traffic's target")
      .addOption(new Option("--sample <n>", "servers of a fleet that are simulated").argParser(integer(1)).default(4))
      .option(
        "--method <names>",
        `of the profile, or "${MODEL_EACH}", separated by commas (default: all with adapters)`,
      )
      .addOption(new Option("--price <n>", "of an hour of one machine, for the cost of tokens").argParser(number(0)))
      .addOption(jsonFlag())
      .action(plan),
    [
      "milora plan --profile profile.json --traffic traffic.yaml",
      "milora plan --profile profile.json --traffic traffic.yaml --replicas 4 --set requestsPerSecond=40",
      "milora plan --profile profile.json --traffic traffic.yaml --size --price 0.40",
    ],
  );
}

async function plan(flags: Flags): Promise<void> {
  const profile = readProfile(flags.profile);
  const settings = merge(readConfigFile(flags.traffic), parseSettings(flags.set ?? []));
  const traffic = parseWith(trafficSchema, settings, flags.traffic);
  const { replicas: servers = 1, sample, price, size } = flags;
  const forecasts: FleetForecast[] = [];
  for (const method of methodsOf(profile, flags.method)) {
    if (size) note(`sizing ${method.name} …`);
    const question = { profile, method, traffic, sample, price };
    try {
      forecasts.push(await (size ? sizeFleet(question) : planFleet({ ...question, servers })));
    } catch (error) {
      if (!size || !(error instanceof InputError) || flags.method !== undefined) throw error;
      warn(error.message);
    }
  }
  if (flags.json) printJson({ machine: profile.machine, model: profile.model, traffic, forecasts });
  else show(profile, traffic, forecasts);
}

function methodsOf(profile: Profile, names: string | undefined): MethodProfile[] {
  const all = [...profile.methods, modelEach(profile)];
  if (names === undefined) return all.length > 2 ? all.filter(({ name }) => name !== "bare") : all;
  return names.split(",").map((name) => {
    const method = all.find((one) => one.name === name.trim());
    if (method) return method;
    const known = all.map((one) => one.name).join(", ");
    throw new InputError("FLAG_INVALID", "--method", `the profile has no ${name}; there are ${known}`);
  });
}

function show({ machine, model }: Profile, traffic: Traffic, forecasts: readonly FleetForecast[]): void {
  const asked =
    traffic.requestsPerSecond === undefined
      ? `${traffic.streams} streams`
      : `${grouped(traffic.requestsPerSecond)} requests/s`;
  print(`${paint("bold", model.name)} on ${machine.cpu}, ${machine.threads} threads`);
  print(`${asked} of ${grouped(traffic.tenants)} tenants, Zipf ${traffic.zipf}\n`);
  const priced = forecasts.some(({ costPerMillionTokens }) => costPerMillionTokens !== undefined);
  print(
    table(
      [
        ...["", "servers", "requests/s", "tokens/s", "refused", "first token p50, ms", "p95", "next token p50", "p95"],
        ...["waiting", "busy", "rows", "adapter hits", "GiB a server", ...(priced ? ["cost per 1e6 tokens"] : [])],
      ],
      forecasts.map((one) => [
        one.method,
        grouped(one.servers),
        one.requestsPerSecond.toFixed(1),
        grouped(Math.round(one.tokensPerSecond)),
        percent(one.refusedShare),
        ...[one.firstTokenMs.p50, one.firstTokenMs.p95].map((ms) => ms.toFixed(0)),
        ...[one.betweenTokensMs.p50, one.betweenTokensMs.p95].map((ms) => ms.toFixed(1)),
        one.waiting.toFixed(1),
        percent(one.busy),
        one.rows.toFixed(1),
        percent(one.adapterHits),
        (one.memoryBytes / 2 ** 30).toFixed(2),
        ...(priced ? [one.costPerMillionTokens?.toFixed(3) ?? ""] : []),
      ]),
    ),
  );
  const sampled = forecasts.filter(({ simulated, servers }) => simulated < servers);
  if (sampled.length > 0) print(`\n${sampled[0]!.simulated} servers of each fleet were simulated`);
  for (const { method, refused } of forecasts) {
    for (const [code, share] of Object.entries(refused)) print(`${method}: ${percent(share)} ${code}`);
  }
  for (const { method, memoryFits } of forecasts) if (!memoryFits) warn(`${method}: memory does not suffice`);
}
