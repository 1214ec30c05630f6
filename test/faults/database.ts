/** @file A PostgreSQL that is killed and comes back, under a server that is asked meanwhile; and installed adapters that are damaged. */
import { mkdirSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { openStore } from "../../src/serving/store/index.ts";
import { Cluster, NO_OWN_POSTGRES } from "../../src/serving/store/testing/cluster.ts";
import { count, faultsOf, must, type Outcome, type Settings, until } from "./children.ts";
import { damage } from "./disk.ts";
import { archivesOf, ask, completion, newData, serve } from "./server.ts";

/** Why no database can be stopped here. */
export const noDatabase = (): string | undefined => NO_OWN_POSTGRES;

/** Requests go on all the time; the database goes at any moment and stays away for up to two seconds. */
export async function databaseGone(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const data = join(settings.directory, "data");
  mkdirSync(data);
  await using cluster = await Cluster.startOwn();
  const location = { url: await cluster.create(), directory: data };
  const key = await (async () => {
    await using store = await openStore(location);
    await store.tenants.create({ id: "acme" });
    return (await store.keys.create({ admin: true })).secret;
  })();
  const { url, child, ended } = await serve(settings, data, { more: ["--database", location.url] });
  const [archive] = archivesOf(settings, 1);
  must((await ask(url, key, "PUT", "/v1/adapters/n0", archive)).status === 201, "no upload");
  let [answered, unclear, over] = [0, 0, false];
  /** Keys whose revocation was confirmed. */
  const revoked: string[] = [];
  const worker = async (model: string): Promise<void> => {
    while (!over) {
      const { status, body } = await ask(url, key, "POST", "/v1/completions", completion(model));
      if (status === 200) answered++;
      else must(status === 503 && body.error?.code === "DATABASE_UNREACHABLE", `status ${status} ${body.error?.code}`);
      count(seen, status === 200 ? "answered" : "refused (503)");
      if (status !== 200) await sleep(20);
    }
  };
  const keymaker = async (): Promise<void> => {
    while (!over) {
      const made = await ask(url, key, "POST", "/admin/v1/keys", { tenant: "acme" });
      if (made.status === 201) {
        const { key: row, secret } = made.body as unknown as { key: { id: string }; secret: string };
        const gone = await ask(url, key, "DELETE", `/admin/v1/keys/${row.id}`);
        if (gone.status === 200) revoked.push(secret);
        else unclear++;
      }
      await sleep(50);
    }
  };
  const workers = [worker("tiny"), worker("n0"), keymaker()];
  for (const _ of faultsOf(settings)) {
    await sleep(settings.random() * 1500);
    await cluster.stop();
    await sleep(settings.random() * 2000);
    await cluster.resume();
    await until(async () => (await ask(url, key, "GET", "/admin/v1/keys")).status === 200, "the server finds its database again"); // biome-ignore format: one line
  }
  over = true;
  await Promise.all(workers);
  for (const secret of revoked.slice(-100)) must((await ask(url, secret, "GET", "/v1/models")).status === 401, "a revoked key is let in"); // biome-ignore format: one line
  const usage = async (): Promise<number> => {
    const told = (await ask(url, key, "GET", "/admin/v1/usage?by=tenant")).body as unknown as { usage: { requests: number }[] }; // biome-ignore format: one line
    return told.usage.reduce((sum, { requests }) => sum + requests, 0);
  };
  await until(async () => (await usage()) === answered, `usage says ${await usage()} requests of ${answered}`, 20);
  child.kill("SIGTERM");
  must((await ended) === 0, "the server did not end in peace");
  Object.assign(seen, { "revocations confirmed": revoked.length, "revocations left open": unclear });
  return { scenario: "the database killed, away for up to 2 s, and back", seen };
}

/** Files of installed adapters lose their end or a bit: their requests are refused, others not, and an upload mends them. */
export async function damagedAdapters(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const data = join(settings.directory, "data");
  const key = await newData(data);
  const archives = archivesOf(settings, 2);
  const { url, child, ended } = await serve(settings, data);
  for (const [i, archive] of archives.entries()) must((await ask(url, key, "PUT", `/v1/adapters/n${i}`, archive)).status === 201, "no upload"); // biome-ignore format: one line
  for (const _ of faultsOf(settings)) {
    const { data: listed } = (await ask(url, key, "GET", "/v1/adapters")).body;
    const { digest } = listed!.find(({ name }) => name === "n0")!;
    await ask(url, key, "DELETE", "/admin/v1/adapters/n0/resident");
    const directory = join(data, "adapters", digest);
    const names = readdirSync(directory).filter((name) => name.startsWith("adapter_") && statSync(join(directory, name)).size > 0); // biome-ignore format: one line
    await sleep(30); // a tick of the file system's clock
    const name = names[Math.floor(settings.random() * names.length)]!;
    const how = damage(join(directory, name), settings.random);
    const answer = await ask(url, key, "POST", "/v1/completions", completion("n0"));
    must(answer.status === 500 && answer.body.error?.code === "ADAPTER_CORRUPT", `${name}, ${how}: ${answer.status} ${answer.body.error?.code}`); // biome-ignore format: one line
    count(seen, `${how}: refused`);
    must((await ask(url, key, "POST", "/v1/completions", completion("n1"))).status === 200, "another is refused, too");
    must((await ask(url, key, "PUT", "/v1/adapters/n0", archives[0])).status === 201, "no upload afterwards");
    must((await ask(url, key, "POST", "/v1/completions", completion("n0"))).status === 200, "not mended by an upload");
  }
  child.kill("SIGTERM");
  must((await ended) === 0, "the server did not end in peace");
  return { scenario: "damaged files of installed adapters", seen };
}
