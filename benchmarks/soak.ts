/** @file Hours of mixed load on a server: nothing may fail that was not made to, and memory has to stay where it is. */
import { mkdirSync } from "node:fs";
import { Agent } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Random } from "../src/base/index.ts";
import { readBackboneConfig } from "../src/models/index.ts";
import { openStore, packAdapter } from "../src/serving/index.ts";
import { randomAdapter } from "./lib/adapters.ts";
import { benchmarksDirectory } from "./lib/cache.ts";
import { send } from "./lib/http-client.ts";
import { inspectMachine } from "./lib/machine.ts";
import { integer, main, parseOptions } from "./lib/options.ts";
import { report } from "./lib/report.ts";
import { scratch } from "./lib/scratch.ts";
import { metricsOf, ServerProcess } from "./lib/server-process.ts";
import { installAdapters, preparedModel } from "./lib/serving-model.ts";
import { ACTORS, ACTORS_BESIDE } from "./lib/soak-actors.ts";
import { lineOf, MINUTE_HEAD, type Minute, minuteOf } from "./lib/soak-minutes.ts";
import {
  backloggedTenants,
  keepStreaming,
  kindsOf,
  loadsOf,
  nameOf,
  type StreamsLoad,
  settingsFor,
} from "./lib/soak-streams.ts";
import { type Actor, Soak, type TenantOfSoak } from "./lib/soak-tally.ts";
import { type Sample, type Seen, verdict } from "./lib/soak-verdict.ts";

const USAGE = `npm run soak -- [options]
  --minutes N      of load (120)
  --warm-up N      minutes after which memory is looked at (a fifth)
  --shape NAME     int4 backbone with random weights of this shape; default the bundled model
  --seed N         of what is asked (1)
  --streams N      beside the mixed load so many streams at a time, of tenants that always want more than they get
  --adapters N     registered adapters that the streams are for (3000; with --streams)
  --zipf S         exponent of their popularity (1.0)
  --resident N     adapters in memory at a time (8; half as many as streams)
  --directory DIR  where data are kept meanwhile (the temporary one)`;

const BASE = "backbone";
const SAMPLE_MS = 5000;

/** Methods and ranks of the adapters. */
const METHODS: readonly (readonly [method: string, options: object])[] = [
  ["milora", { r: 4 }],
  ["milora", { r: 8, top_k: 2 }],
  ["lora", { r: 4 }],
  ["lora", { r: 8 }],
];

/** Hundreds of streams over thousands of adapters. */
interface Many {
  readonly streams: number;
  readonly adapters: number;
  readonly zipf: number;
  readonly resident: number;
}

await main(async () => {
  const options = parseOptions(USAGE, {
    minutes: { type: "string", default: "120" },
    "warm-up": { type: "string" },
    shape: { type: "string" },
    seed: { type: "string", default: "1" },
    streams: { type: "string" },
    adapters: { type: "string", default: "3000" },
    zipf: { type: "string", default: "1.0" },
    resident: { type: "string" },
    directory: { type: "string", default: tmpdir() },
  });
  const minutes = integer(options.minutes, "minutes");
  const warmUp = options["warm-up"] === undefined ? minutes / 5 : Number(options["warm-up"]);
  const seed = integer(options.seed, "seed");
  const threads = integer(options.threads, "threads");
  const streams = options.streams === undefined ? 0 : integer(options.streams, "streams");
  const resident = integer(options.resident ?? (streams > 0 ? Math.ceil(streams / 2) : 8), "resident");
  const many: Many | undefined =
    streams > 0
      ? { streams, adapters: integer(options.adapters, "adapters"), zipf: Number(options.zipf), resident }
      : undefined;
  const machine = await inspectMachine({ allowBusy: true }); // nothing is timed
  const { shape } = options;
  const model =
    shape === undefined ? join(benchmarksDirectory, "..", "assets", "tiny-llama") : await preparedModel(shape);
  using place = scratch(String(options.directory), "milora-soak-");
  const directory = place.path;
  let server: ServerProcess | undefined;
  try {
    const { adminKey, directories } = await prepare(directory, model, many);
    server = await ServerProcess.start({
      ...{ model, name: BASE, data: join(directory, "data"), threads },
      // Fewer places than adapters and prefixes: loading and evicting never ends, and soon there is no more to fill.
      set: [
        "auth=required",
        ...(many ? settingsFor(many.streams, resident) : [`residency.maxResident=${resident}`]),
        "residency.graceMs=30000",
        // Machines that others use, too, may stand still for minutes.
        ...["residency.leaseTimeoutMs=900000", "http.stallSeconds=900", "http.headersSeconds=300"],
        "prefixCacheBytes=33554432",
        "context=1024",
      ],
      arguments: ["--adapter-dir", join(directory, "adapters")],
    });
    const { soak, tenants } = await populate(server.url, adminKey, directories, many);
    server.onEnd((code) => (soak.stopped ? undefined : soak.fault(`the server ended with ${code} by itself`)));
    const before = server.descriptors();
    const { rows, samples, fairness } = await load(soak, server, { minutes, seed, directory }, tenants);
    const memory = many && { ...(await loadsOf(soak)) };
    await settled(soak, server, before);
    const exitCode = await server.stop();
    if (exitCode !== 0) soak.fault(`the server ended with ${exitCode}`);
    for (const line of server.failures) soak.fault("the server wrote of a failure", line);
    const trial = minutes < (many ? 60 : 120);
    const name = ["soak", ...(many ? [`${streams}-streams`] : []), ...(shape === undefined ? [] : [shape])].join("-");
    const seen: Seen = { soak, rows, samples: samples.filter(({ hours }) => hours * 60 >= warmUp), fairness };
    const { passed, text, data } = verdict(seen);
    report(name, machine, trial, text, {
      settings: { minutes, warmUp, seed, threads, shape: shape ?? "bundled model", ...many },
      ...{ ...data, ...(memory && { memory }) },
    });
    if (!passed) process.exitCode = 1;
  } finally {
    server?.kill();
  }
});

/** Adapters for everybody, those to be uploaded or loaded, and an administrator's key. */
async function prepare(
  directory: string,
  model: string,
  many: Many | undefined,
): Promise<{ adminKey: string; directories: string[] }> {
  const data = join(directory, "data");
  mkdirSync(data);
  const kinds = METHODS.map(([method, options], i) => {
    return { prefix: `shared-${i}-`, method, options: { ...options }, count: 3, distinct: 3 };
  });
  await installAdapters(data, model, [...kinds, ...(many ? kindsOf(many.adapters) : [])]);
  const backbone = readBackboneConfig(model);
  const directories: string[] = [];
  for (const [i, [method, options]] of METHODS.entries()) {
    using adapter = randomAdapter(method, { ...options }, backbone, 100 + i);
    const path = join(directory, "adapters", String(i));
    mkdirSync(join(directory, "adapters"), { recursive: true });
    await adapter.save(path);
    directories.push(path);
  }
  await using store = await openStore({ directory: data });
  const { secret } = await store.keys.create({ admin: true });
  return { adminKey: secret, directories };
}

/** Makes the tenants, with a key and an adapter of its own each. */
async function populate(
  url: string,
  adminKey: string,
  directories: readonly string[],
  many: Many | undefined,
): Promise<{ soak: Soak; tenants: StreamsLoad | undefined }> {
  const agent = new Agent({ keepAlive: true });
  const done = async (path: string, body: object, key: string, put = false): Promise<string> => {
    const how = put ? ({ method: "PUT", contentType: "application/x-tar" } as const) : {};
    const answer = await send({ agent, url: `${url}${path}`, body, key, ...how });
    if (answer.status >= 400) throw new Error(`${path} was answered ${answer.status} ${answer.text}`);
    return answer.text;
  };
  const archives: Uint8Array[] = [];
  for (const path of directories) {
    const chunks: Uint8Array[] = [];
    for await (const chunk of await packAdapter(path)) chunks.push(chunk);
    archives.push(Buffer.concat(chunks));
  }
  const tenant = async (id: string, limits: object = {}, weight = 1): Promise<TenantOfSoak> => {
    await done("/admin/v1/tenants", { id, limits, weight }, adminKey);
    const { secret: key } = JSON.parse(await done("/admin/v1/keys", { tenant: id }, adminKey)) as { secret: string };
    return { id, key };
  };
  const tenants = [await tenant("red"), await tenant("green"), await tenant("blue", { tokensPerDay: 1e9 })];
  const crowd = await tenant("crowd", { maxConcurrent: 4 });
  for (const [i, { key }] of tenants.entries()) await done("/v1/adapters/own-0", archives[i]!, key, true);
  const shared = METHODS.flatMap((_, i) => [0, 1, 2].map((j) => `shared-${i}-${j}`));
  if (many) for (let i = 0; i < many.adapters; i += 7) shared.push(nameOf(i));
  const streams = many && {
    ...{ adapters: many.adapters, zipf: many.zipf },
    tenants: await backloggedTenants(many.streams, async (id, weight) => (await tenant(id, {}, weight)).key),
  };
  const soak = new Soak({ url, base: BASE, adminKey, agent, tenants, crowd, shared, archives, directories });
  return { soak, tenants: streams };
}

async function load(
  soak: Soak,
  server: ServerProcess,
  { minutes, seed, directory }: { minutes: number; seed: number; directory: string },
  streams: StreamsLoad | undefined,
): Promise<Pick<Seen, "rows" | "samples" | "fairness">> {
  let place = 0;
  const random = () => new Random(seed * 1000 + place++);
  const actors = Object.entries(streams ? ACTORS_BESIDE : ACTORS).flatMap(([name, [actor, count, restMs]]) =>
    Array.from({ length: count }, (_, copy) => act(soak, name, [actor, copy], restMs, random())),
  );
  const streaming = streams && keepStreaming(soak, streams, random);
  const rows: Minute[] = [];
  const samples: Sample[] = [];
  const began = performance.now();
  process.stdout.write(`${MINUTE_HEAD}\n`);
  try {
    await watch();
  } finally {
    soak.stopped = true;
  }
  await Promise.all(actors);
  return { rows, samples, fairness: (await streaming)?.report() };

  async function watch(): Promise<void> {
    for (let sample = 1; sample * SAMPLE_MS <= minutes * 60_000; sample++) {
      await sleep(Math.max(0, sample * SAMPLE_MS - (performance.now() - began)));
      const hours = (performance.now() - began) / 3_600_000;
      samples.push({ hours, rss: server.memory().rss, descriptors: server.descriptors() });
      if ((sample * SAMPLE_MS) % 60_000 !== 0) continue;
      const row = await minuteOf(soak, server, (sample * SAMPLE_MS) / 60_000, rows.at(-1), join(directory, "data"));
      rows.push(row);
      process.stdout.write(`${lineOf(row)}\n`);
    }
  }
}

async function act(
  soak: Soak,
  name: string,
  [actor, copy]: readonly [actor: Actor, copy: number],
  restMs: number,
  random: Random,
): Promise<void> {
  for (let turn = 0; !soak.stopped; turn++) {
    try {
      await actor(soak, random, turn, copy);
    } catch (error) {
      soak.fault(`${name} cannot go on: ${error}`);
    }
    await sleep(random.uniform() * restMs);
  }
}

/** When nobody asks any more, nothing may be left of what was asked. */
async function settled(soak: Soak, server: ServerProcess, descriptorsBefore: number): Promise<void> {
  soak.agent.destroy();
  const idle = ["requests_waiting", "requests_running", "running_rows", "running_adapters", "kv_tokens"];
  let left: string[] = [];
  for (let tries = 0; tries < 20; tries++) {
    await sleep(500);
    const metrics = await metricsOf(soak.url, soak.adminKey);
    left = idle.flatMap((name) => {
      const value = metrics.get(`milora_${name}`) ?? Number.NaN;
      return value === 0 ? [] : [`${name} ${value}`];
    });
    const descriptors = server.descriptors();
    // A few more than at the start are this question's own connection and files that were opened at first use.
    if (descriptors > descriptorsBefore + 8) left.push(`${descriptors} descriptors, ${descriptorsBefore} at the start`);
    if (left.length === 0) return;
  }
  for (const what of left) soak.fault(`left behind: ${what}`);
}
