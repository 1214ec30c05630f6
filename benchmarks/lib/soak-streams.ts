/** @file Hundreds of streams over thousands of adapters: tenants that always want more than they get, some of them far more. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Random } from "../../src/base/index.ts";
import { metricsOf } from "./server-process.ts";
import type { InstalledKind } from "./serving-model.ts";
import { type Backlogged, GENERATED, READ, Windows } from "./soak-fairness.ts";
import type { Soak } from "./soak-tally.ts";
import { Zipf } from "./traffic.ts";

/** Methods and ranks, the most popular adapter first; none of those of the mixed load. */
const KINDS: readonly (readonly [method: string, options: Readonly<Record<string, unknown>>])[] = [
  ["milora", { r: 8 }],
  ["lora", { r: 12 }],
  ["milora", { r: 16, top_k: 2 }],
  ["lora", { r: 16 }],
  ["milora", { r: 2 }],
  ["lora", { r: 2 }],
  ["moelora", { r: 8 }],
  ["adalora", { init_r: 6, target_r: 4 }],
  ["ia3", {}],
  ["bitfit", {}],
  ["p-tuning-v2", {}],
  ["parallel-adapter", {}],
];
/** Different files of each kind; all others are links to them. */
const DISTINCT = 8;
const VOCABULARY = 8000;

/** Who always waits: weight, share of the streams, most tokens of a prompt and of an answer. */
const TENANTS: readonly (readonly [id: string, weight: number, share: number, prompt: number, answer: number])[] = [
  ["greedy", 1, 10, 24, 32],
  ["long", 1, 6, 120, 64],
  ["brief", 1, 5, 16, 8],
  ["reader", 1, 4, 200, 8],
  ["writer", 1, 4, 8, 96],
  ["modest", 1, 3, 24, 32],
  ["double", 2, 4, 24, 32],
  ["fourfold", 4, 8, 24, 32],
];

export function kindsOf(adapters: number): InstalledKind[] {
  return KINDS.map(([method, options], i) => {
    const count = Math.floor(adapters / KINDS.length) + (i < adapters % KINDS.length ? 1 : 0);
    // IA³ begins with ones, so that all of them are alike.
    const distinct = method === "ia3" ? 1 : Math.min(count, DISTINCT);
    return { prefix: `many-${i}-`, method, options, count, distinct };
  });
}

/** All kinds in turn. */
export const nameOf = (adapter: number): string =>
  `many-${adapter % KINDS.length}-${Math.floor(adapter / KINDS.length)}`;

/** Settings of a server that admits so many streams: its queue, its connections. */
export const settingsFor = (streams: number, resident: number): string[] => [
  ...[`residency.maxResident=${resident}`, "limits.maxBatch=32", "limits.maxAdaptersPerBatch=32"],
  ...[`limits.maxWaiting=${4 * streams}`, `limits.maxWaitingPerTenant=${streams}`],
  `http.maxConnections=${Math.max(1024, 4 * streams)}`,
];

export interface StreamsLoad {
  readonly tenants: readonly Backlogged[];
  /** Registered adapters that everybody may use. */
  readonly adapters: number;
  readonly zipf: number;
}

/** Makes the tenants and their keys. @param streams of all together */
export async function backloggedTenants(
  streams: number,
  make: (id: string, weight: number) => Promise<string>,
): Promise<Backlogged[]> {
  const shares = TENANTS.reduce((sum, [, , share]) => sum + share, 0);
  const tenants: Backlogged[] = [];
  for (const [id, weight, share, prompt, answer] of TENANTS) {
    const own = Math.max(1, Math.round((streams * share) / shares));
    tenants.push({
      ...{ id, weight, prompt, answer },
      key: await make(id, weight),
      streams: own,
      ...{ service: 0, open: 0 },
    });
  }
  return tenants;
}

/** Keeps all streams open until the soak stops. @returns what was served while all of them waited */
export async function keepStreaming(
  soak: Soak,
  { tenants, adapters, zipf }: StreamsLoad,
  random: () => Random,
): Promise<Windows> {
  const popularity = new Zipf(adapters, zipf);
  const windows = new Windows(tenants);
  const streams = tenants.flatMap((tenant) =>
    Array.from({ length: tenant.streams }, () => stream(soak, tenant, popularity, random())),
  );
  await Promise.all([watch(soak, tenants, windows), ...streams]);
  return windows;
}

async function stream(soak: Soak, tenant: Backlogged, popularity: Zipf, random: Random): Promise<void> {
  await sleep(random.uniform() * 2000);
  while (!soak.stopped) {
    const prompt = Array.from({ length: 1 + random.integer(tenant.prompt) }, () => 4 + random.integer(VOCABULARY));
    let events = 0;
    // A token whose text is not whole yet has no event: the usage at the end tells.
    const onEvent = (): void => {
      tenant.service += events++ === 0 ? READ * prompt.length + GENERATED : GENERATED;
    };
    const body = {
      model: nameOf(popularity.at(random.uniform())),
      prompt,
      ...{ max_tokens: 1 + random.integer(tenant.answer), ignore_eos: true },
      ...(random.uniform() < 0.5 ? { temperature: 0 } : { temperature: 1, seed: random.integer(1000) }),
      ...{ stream: true, stream_options: { include_usage: true } },
    };
    tenant.open++;
    const answer = await soak.ask("stream", "/v1/completions", { body, key: tenant.key, onEvent }, 200, 429);
    tenant.open--;
    if (answer?.status === 200) {
      soak.admitted++;
      if (answer.tokens > events) tenant.service += GENERATED * (answer.tokens - events);
    } else await sleep(500 + random.uniform() * 1000);
  }
}

async function watch(soak: Soak, tenants: readonly Backlogged[], windows: Windows): Promise<void> {
  while (!soak.stopped) {
    await sleep(1000);
    const answer = await soak.ask("status", "/admin/v1/status", { key: soak.adminKey });
    if (answer?.status !== 200) continue;
    const status = JSON.parse(answer.text) as { tenants: { tenant: string; running: number }[] };
    const running = new Map(status.tenants.map((one) => [one.tenant, one.running]));
    // In the queue, or on the way to it: for memory, too.
    windows.sample(new Map(tenants.map(({ id, open }) => [id, open - (running.get(id) ?? 0)])));
  }
}

/** Which part of the registered adapters was in memory at least once, for the report. */
export async function loadsOf(soak: Soak): Promise<{ loads: number; evictions: number; hits: number }> {
  const metrics = await metricsOf(soak.url, soak.adminKey);
  const of = (name: string): number => metrics.get(`milora_adapter_${name}_total`) ?? Number.NaN;
  return { loads: of("loads"), evictions: of("evictions"), hits: of("hits") };
}
