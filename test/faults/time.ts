/** @file A server whose clock jumps back and forth, or is a year late when it starts. */
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { count, faultsOf, must, type Outcome, type Settings, until } from "./children.ts";
import { archivesOf, ask, completion, newData, serve } from "./server.ts";

/** Replaces the clock by another one, in each thread. @param begin what sets `offset`, ms */
const clockOf = (begin: string): string => `
const Real = Date;
let offset = 0;
const now = () => Real.now() + offset;
globalThis.Date = class Date extends Real {
  constructor(...given) { if (given.length === 0) super(now()); else super(...given); }
  static now() { return now(); }
};
${begin}
`;

const DAY = 86_400_000;
/** By up to a month, back and forth. */
const JUMPS = `setInterval(() => { offset = Math.round((Math.random() - 0.5) * ${2 * 30 * DAY}); }, 20).unref();`;
const YEAR_AGO = `offset = ${-365 * DAY};`;

type Asked = Awaited<ReturnType<typeof ask>>;

const requestsOf = async (url: string, key: string): Promise<number> => {
  const { usage } = (await ask(url, key, "GET", "/admin/v1/usage?by=tenant")).body as unknown as { usage: { requests: number }[] }; // biome-ignore format: one line
  return usage.reduce((sum, one) => sum + one.requests, 0);
};

const codeOf = ({ status, body }: Asked): string => `${status} ${body.error?.code ?? ""}`;

/** Requests; an upload between each twenty, while what is unused is swept without a grace time. */
export async function jumpingClock(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const data = join(settings.directory, "data");
  const key = await newData(data);
  const script = join(settings.directory, "jumps.mjs");
  writeFileSync(script, clockOf(JUMPS));
  const archives = archivesOf(settings);
  const { url, child, ended } = await serve(settings, data, { node: ["--import", script] });
  let answered = 0;
  for (const i of faultsOf(settings)) {
    if (i % 20 === 0) {
      must((await ask(url, key, "PUT", "/v1/adapters/n0", archives[(i / 20) % 3])).status === 201, "no upload");
      count(seen, "uploads");
    }
    const answer = await ask(url, key, "POST", "/v1/completions", completion(i % 2 ? "tiny" : "n0"));
    count(seen, `${answer.status}`);
    if (answer.status === 200) answered++;
    must(answer.status === 200, `${codeOf(answer)} while the clock jumps`);
  }
  await until(async () => (await requestsOf(url, key)) === answered, `usage says ${await requestsOf(url, key)} requests of ${answered}`, 20); // biome-ignore format: one line
  child.kill("SIGTERM");
  must((await ended) === 0, "the server did not end in peace");
  return { scenario: "a clock that jumps by up to 30 days every 20 ms", seen };
}

/**
 * Restarts, the clock now right, now a year late, as of a machine whose battery is empty; killed each second time. All keys, revocations, adapters and
 * usage are there each time, and can be added to.
 */
export async function clockSetBack(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const data = join(settings.directory, "data");
  const key = await newData(data);
  const script = join(settings.directory, "late.mjs");
  writeFileSync(script, clockOf(YEAR_AGO));
  const archives = archivesOf(settings);
  const keys: string[] = [];
  const revoked: string[] = [];
  let [least, most] = [0, 0];
  for (let i = 0; ; i++) {
    const late = i % 2 === 1;
    const { url, child, ended } = await serve(settings, data, late ? { node: ["--import", script] } : {});
    if (i === 0) must((await ask(url, key, "POST", "/admin/v1/tenants", { id: "acme", limits: { tokensPerDay: 1_000_000, requestsPerMinute: 10 } })).status === 201, "no tenant"); // biome-ignore format: one line
    for (const secret of keys.slice(-3)) must((await ask(url, secret, "GET", "/v1/models")).status === 200, "a key is not known"); // biome-ignore format: one line
    for (const secret of revoked.slice(-3)) must((await ask(url, secret, "GET", "/v1/models")).status === 401, "a revoked key is let in"); // biome-ignore format: one line
    const requests = await requestsOf(url, key);
    must(requests >= least && requests <= most, `usage says ${requests} requests, not ${least} to ${most}`);
    least = most = requests;
    const expires = { expiresAt: new Date(Date.now() + 10 * DAY).toISOString() };
    const made = await ask(url, key, "POST", "/admin/v1/keys", { tenant: "acme", ...(i % 3 === 0 && expires) });
    must(made.status === 201, `no key: ${codeOf(made)}`);
    const { secret, key: row } = made.body as unknown as { secret: string; key: { id: string } };
    if (i % 2) {
      must((await ask(url, key, "DELETE", `/admin/v1/keys/${row.id}`)).status === 200, "no revocation");
      revoked.push(secret);
    } else keys.push(secret);
    must((await ask(url, key, "PUT", "/v1/adapters/n0", archives[i % 3])).status === 201, "no upload");
    for (const [who, model] of [
      [key, "n0"],
      [keys.at(-1)!, "tiny"],
    ] as const) {
      const answer = await ask(url, who, "POST", "/v1/completions", completion(model));
      must(answer.status === 200, `${codeOf(answer)} of ${model}`);
      most++;
    }
    await until(() => readdirSync(join(data, "adapters/.drafts")).length === 0, "no drafts");
    const kill = i % 4 >= 2 && settings.more();
    child.kill(kill ? "SIGKILL" : "SIGTERM");
    const code = await ended;
    must(kill || code === 0, "the server did not end in peace");
    if (!kill) least = most;
    settings.done++;
    count(seen, `${late ? "a year late" : "on time"}, ${kill ? "killed" : "ended"}`);
    if (!kill && !settings.more()) break;
  }
  return { scenario: "started with a clock that is a year late, and on time again", seen };
}
