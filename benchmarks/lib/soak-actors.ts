/** @file Who makes the mixed load of a soak: users, impatient and confused ones, owners of adapters, administrators. */
import type { Random } from "../../src/base/index.ts";
import { guest, mover } from "./soak-churn.ts";
import type { Actor, Soak, TenantOfSoak } from "./soak-tally.ts";

const COMPLETIONS = "/v1/completions";
const CHAT = "/v1/chat/completions";
const TEXT = "the server answers many tenants from one backbone and every one of them has an adapter of its own ";

const of = <T>(list: readonly T[], random: Random): T => list[random.integer(list.length)]!;
const chance = (random: Random, share: number): boolean => random.uniform() < share;

function anyModel(soak: Soak, random: Random): string {
  const model = chance(random, 0.2) ? soak.base : of(soak.shared, random);
  return chance(random, 0.1) && model !== soak.base ? `${soak.base}:${model}` : model;
}

/** A text of about so many words; long ones are read in slices. */
function words(random: Random, most: number): string {
  const start = random.integer(TEXT.length);
  const list = TEXT.repeat(Math.ceil((most * 10) / TEXT.length) + 1)
    .slice(start)
    .trim()
    .split(" ");
  return list.slice(0, 1 + random.integer(most)).join(" ");
}

const streamed = { stream: true, stream_options: { include_usage: true } };

const chat: Actor = async (soak, random) => {
  const body = {
    model: anyModel(soak, random),
    messages: [
      ...(chance(random, 0.5) ? [{ role: "system", content: words(random, 20) }] : []),
      { role: "user", content: words(random, 40) },
    ],
    max_tokens: 4 + random.integer(40),
    ...(chance(random, 0.5) && { temperature: random.uniform() * 1.5, top_p: 0.9, seed: random.integer(1000) }),
    ...(chance(random, 0.3) && { n: 1 + random.integer(3) }),
    ...(chance(random, 0.3) && { logprobs: true, top_logprobs: random.integer(6) }),
    ...(chance(random, 0.3) && { presence_penalty: 0.5, frequency_penalty: 0.5 }),
    ...(chance(random, 0.2) && { stop: ["zzz", "\n\n\n"] }),
    ...(chance(random, 0.3) && { x_milora: { routes: true } }),
    ...(chance(random, 0.5) && streamed),
  };
  await soak.ask("chat", CHAT, { body, key: of(soak.tenants, random).key });
};

const completion: Actor = async (soak, random) => {
  const tokens = () => Array.from({ length: 2 + random.integer(60) }, () => 4 + random.integer(400));
  const beams = chance(random, 0.15);
  const body = {
    model: anyModel(soak, random),
    prompt: of(
      [words(random, 30), words(random, 200), tokens(), [tokens(), tokens()], [words(random, 9), "a"]],
      random,
    ),
    max_tokens: 1 + random.integer(32),
    ...(beams && { use_beam_search: true, beam_width: 2 + random.integer(3) }),
    ...(!beams && chance(random, 0.3) && { logprobs: random.integer(4), echo: chance(random, 0.5) }),
    ...(!beams && chance(random, 0.5) && { temperature: 0 }),
    ...(!beams && chance(random, 0.4) && streamed),
    ...(chance(random, 0.3) && { ignore_eos: true }),
  };
  await soak.ask("completion", COMPLETIONS, { body, key: of(soak.tenants, random).key });
};

/** Hangs up: before the answer, in its middle, in the middle of an upload. */
const impatient: Actor = async (soak, random) => {
  const { key } = of(soak.tenants, random);
  if (chance(random, 0.15)) {
    const body = of(soak.archives, random);
    const upload = { method: "PUT", body, contentType: "application/x-tar", key } as const;
    await soak.ask("cut upload", "/v1/adapters/cut", { ...upload, cutBodyAt: random.integer(body.length) }, 201);
    return;
  }
  const body = { model: anyModel(soak, random), prompt: words(random, 150), max_tokens: 64, ignore_eos: true };
  const stream = chance(random, 0.8);
  const cutAfter = stream ? random.integer(12) : 0;
  await soak.ask("cut", COMPLETIONS, { body: { ...body, ...(stream && streamed) }, key, cutAfter });
};

type Wrong = readonly [who: string, path: string, request: Parameters<Soak["ask"]>[2], ...statuses: number[]];

/** Every one is to be refused, as told here. */
const confused: Actor = async (soak, random, turn) => {
  const [first, second] = soak.tenants as [TenantOfSoak, TenantOfSoak];
  const { key } = first;
  const model = anyModel(soak, random);
  const wrong: readonly Wrong[] = [
    ["no JSON", COMPLETIONS, { body: '{"model": "x', key }, 400],
    ["no prompt", COMPLETIONS, { body: { model }, key }, 400],
    ["prompt of numbers that are no tokens", COMPLETIONS, { body: { model, prompt: [1e8] }, key }, 400],
    ["temperature", CHAT, { body: { model, messages: [{ role: "user", content: "a" }], temperature: -1 }, key }, 400],
    ["role", CHAT, { body: { model, messages: [{ role: "nobody", content: "a" }] }, key }, 400],
    ["tools", CHAT, { body: { model, messages: [{ role: "user", content: "a" }], tools: [{}] }, key }, 400],
    ["unknown model", COMPLETIONS, { body: { model: "nobody-has-this", prompt: "a" }, key }, 404],
    ["foreign model", COMPLETIONS, { body: { model: `${second.id}/own-0`, prompt: "a" }, key }, 404],
    ["prompt too long", COMPLETIONS, { body: { model, prompt: Array(100_000).fill(5) }, key }, 400],
    ["text too long", COMPLETIONS, { body: { model, prompt: "a ".repeat(300_000) }, key }, 400],
    ["body too large", COMPLETIONS, { body: "x".repeat(9 * 1024 * 1024), key }, 413],
    ["no key", COMPLETIONS, { body: { model, prompt: "a" } }, 401],
    ["unknown key", COMPLETIONS, { body: { model, prompt: "a" }, key: `mk_${"0".repeat(43)}` }, 401],
    ["admin's route", "/admin/v1/tenants", { key }, 403],
    ["unknown route", "/v1/nothing", { key }, 404],
    ["not there to be removed", "/v1/adapters/nobody-has-this", { method: "DELETE", key }, 404],
    [
      "no archive",
      "/v1/adapters/bad",
      { method: "PUT", body: "not a tar", contentType: "application/x-tar", key },
      400,
    ],
    [
      "cut archive",
      "/v1/adapters/bad",
      { method: "PUT", body: soak.archives[0]!.subarray(0, 700), contentType: "application/x-tar", key },
      400,
    ],
    [
      "name",
      "/v1/adapters/..%2Fbad",
      { method: "PUT", body: soak.archives[0]!, contentType: "application/x-tar", key },
      400,
      404,
    ],
    [
      "directory outside",
      "/v1/load_lora_adapter",
      { body: { lora_name: "out", lora_path: "/etc" }, key: soak.adminKey },
      403,
    ],
  ];
  const [who, path, request, ...statuses] = wrong[turn % wrong.length]!;
  await soak.ask(`wrong: ${who}`, path, request, ...statuses);
};

/** Uploads an adapter, uses it, removes it while it answers. */
const owner: Actor = async (soak, random, turn, copy) => {
  const { key } = of(soak.tenants, random);
  const name = `owned-${copy}-${turn % 20}`;
  const path = `/v1/adapters/${name}`;
  const use = { model: name, prompt: words(random, 20), temperature: 0, ignore_eos: true };
  const upload = async (body: Uint8Array) =>
    soak.ask("upload", path, { method: "PUT", body, contentType: "application/x-tar", key }, 201);
  await upload(soak.archives[turn % soak.archives.length]!);
  await soak.ask("use of an upload", COMPLETIONS, { body: { ...use, max_tokens: 8 }, key });
  let during: Promise<unknown> = Promise.resolve();
  const begun = new Promise<void>((resolve) => {
    const body = { ...use, ...streamed, max_tokens: 48 };
    during = soak
      .ask("use of what is removed then", COMPLETIONS, { body, key, onEvent: resolve })
      .then(() => resolve());
  });
  if (chance(random, 0.3)) await upload(soak.archives[(turn + 1) % soak.archives.length]!);
  if (chance(random, 0.5)) await soak.ask("list", "/v1/adapters", { key });
  if (chance(random, 0.3)) await during;
  await begun; // else the server may hear of the removal first
  const body = { ...use, ...streamed, max_tokens: 24 };
  const late = soak.ask("use while it is removed", COMPLETIONS, { body, key }, 200, 404);
  await soak.ask("removal", path, { method: "DELETE", key });
  await Promise.all([during, late]);
  await soak.ask("use after removal", COMPLETIONS, { body: { ...use, max_tokens: 4 }, key }, 404);
};

/** Makes keys and takes them back, changes tenants, lets one use another's adapter. */
const administrator: Actor = async (soak, random) => {
  const key = soak.adminKey;
  const { id } = of(soak.tenants, random);
  const made = await soak.ask("new key", "/admin/v1/keys", { body: { tenant: id, label: "soak" }, key }, 201);
  if (made?.status !== 201) return;
  const { key: row, secret } = JSON.parse(made.text) as { key: { id: string }; secret: string };
  const use = { model: anyModel(soak, random), prompt: words(random, 10), max_tokens: 4 };
  await soak.ask("use of a new key", COMPLETIONS, { body: use, key: secret });
  const weight = 0.5 + random.uniform() * 2;
  await soak.ask("weight", `/admin/v1/tenants/${id}`, { method: "PATCH", body: { weight }, key });
  await soak.ask("revocation", `/admin/v1/keys/${row.id}`, { method: "DELETE", key });
  await soak.ask("use of a revoked key", COMPLETIONS, { body: use, key: secret }, 401);
  const [from, to] = soak.tenants as [TenantOfSoak, TenantOfSoak];
  const grant = `/admin/v1/adapters/own-0/grants/${to.id}?tenant=${from.id}`;
  const granted = { ...use, model: `${from.id}/own-0` };
  await soak.ask("grant", grant, { method: "PUT", key });
  await soak.ask("use of a grant", COMPLETIONS, { body: granted, key: to.key });
  await soak.ask("grant taken back", grant, { method: "DELETE", key });
  await soak.ask("use of a grant taken back", COMPLETIONS, { body: granted, key: to.key }, 404);
  await soak.ask("usage", "/admin/v1/usage?by=tenant,adapter", { key });
};

/** vLLM's way: an adapter of a directory comes and goes; others are pinned and let go. */
const loader: Actor = async (soak, random, turn, copy) => {
  const key = soak.adminKey;
  const lora_name = `loaded-${copy}-${turn % 20}`;
  const load = { lora_name, lora_path: of(soak.directories, random) };
  const body = { model: lora_name, prompt: words(random, 30), max_tokens: 12 };
  await soak.ask("load", "/v1/load_lora_adapter", { body: load, key });
  await soak.ask("load again", "/v1/load_lora_adapter", { body: load, key }, 409);
  await soak.ask("use of what is loaded", COMPLETIONS, { body, key: of(soak.tenants, random).key });
  const pin = `/v1/adapters/${of(soak.shared, random)}/pin`;
  await soak.ask("pin", pin, { method: "PUT", key });
  await soak.ask("unload", "/v1/unload_lora_adapter", { body: { lora_name }, key });
  await soak.ask("use of what is unloaded", COMPLETIONS, { body, key: of(soak.tenants, random).key }, 404);
  await soak.ask("unpin", pin, { method: "DELETE", key });
};

/** More at once than their tenant may have: refused or answered, nothing else. */
const crowd: Actor = async (soak, random) => {
  const { key } = soak.crowd;
  const body = { model: anyModel(soak, random), prompt: words(random, 20), max_tokens: 8 };
  await Promise.all(Array.from({ length: 12 }, () => soak.ask("crowd", COMPLETIONS, { body, key }, 200, 429)));
};

const watcher: Actor = async (soak, random) => {
  const { key } = of(soak.tenants, random);
  await soak.ask("health", "/healthz", {});
  await soak.ask("readiness", "/readyz", {});
  await soak.ask("models", "/v1/models", { key });
  await soak.ask("adapters", "/v1/adapters", { key });
  await soak.ask("document", "/openapi.json", { key });
};

/** Each with how many do it at a time, and how long they rest between two turns at most, ms. */
export const ACTORS: Readonly<Record<string, readonly [actor: Actor, count: number, restMs: number]>> = {
  chat: [chat, 3, 200],
  completion: [completion, 3, 200],
  impatient: [impatient, 2, 300],
  confused: [confused, 1, 200],
  owner: [owner, 1, 1000],
  administrator: [administrator, 1, 1000],
  loader: [loader, 1, 1000],
  crowd: [crowd, 1, 3000],
  watcher: [watcher, 1, 2000],
};

/** Beside hundreds of streams: fewer who chat, more that comes and goes. */
export const ACTORS_BESIDE: typeof ACTORS = {
  ...ACTORS,
  chat: [chat, 2, 500],
  completion: [completion, 2, 500],
  owner: [owner, 2, 1000],
  loader: [loader, 2, 1000],
  guest: [guest, 4, 1000],
  mover: [mover, 2, 500],
};
