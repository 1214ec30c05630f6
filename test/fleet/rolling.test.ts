/** @file Replacing servers behind nginx, with the guide's configuration, under load: no request fails. */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, describe, expect, test } from "vitest";
import { freePort, NO_OBJECT_STORE, ObjectStore } from "../../src/serving/adapters/storage/testing.ts";
import { makeAdapter, scratch } from "../../src/serving/http/testing.ts";
import { openStore } from "../../src/serving/index.ts";
import { NO_OWN_POSTGRES, Servers } from "../../src/serving/store/testing.ts";
import { MODEL, Replica, until } from "../serving-postgres/replicas.ts";
import { Nginx, NO_NGINX } from "./nginx.ts";

const { directory, remove } = scratch();
afterAll(remove);

const TENANTS = 8;
const MISSING = NO_OWN_POSTGRES ?? NO_NGINX;

describe.skipIf(MISSING)(`a fleet ${MISSING ?? ""}`, () => {
  const servers = new Servers();
  servers.use(true);

  const places = [["a directory", undefined], ["a store of objects", NO_OBJECT_STORE]] as const; // biome-ignore format: one line
  test.each(places.filter(([, missing]) => missing === undefined))(
    "with its adapters in %s: each of two servers is replaced twice, and nobody notices",
    async (place) => {
      const objects = place === "a directory" ? undefined : await ObjectStore.start();
      await using _objects = objects;
      const database = await servers.database();
      await using store = await openStore({ url: database });
      const admin = (await store.keys.create({ admin: true })).secret;
      const ports = [await freePort(), await freePort()] as const;
      const bucket = await objects?.bucket("fleet");
      const start = (which: 0 | 1): Promise<Replica> => {
        const kept = bucket === undefined ? [] : ["--adapter-store", `s3://${bucket}`];
        const flags = [
          "--port",
          String(ports[which]),
          "--threads",
          "1",
          "--set",
          "http.drainDelaySeconds=0.5",
          ...kept,
        ];
        const data = `${directory}/${place}/${bucket === undefined ? "shared" : which}`;
        return Replica.start(database, data, admin, flags, objects?.environment);
      };
      const replicas = [await start(0), await start(1)];
      await using nginx = await Nginx.start(await freePort(), [`127.0.0.1:${ports[0]}`, `127.0.0.1:${ports[1]}`]);

      // Each tenant has a key, and most an adapter of their own.
      const keys: string[] = [];
      for (let i = 0; i < TENANTS; i++) {
        await store.tenants.create({ id: `tenant${i}` });
        keys.push((await store.keys.create({ tenant: `tenant${i}` })).secret);
        if (i % 3 === 0) continue;
        const path = await makeAdapter(directory, i % 3 === 1 ? "milora" : "lora", i);
        expect((await replicas[i % 2]!.install("own", path, `tenant${i}`)).status).toBe(201);
      }

      let ended = false;
      let answered = 0;
      let moment = "before";
      /** Servers that are gone, too. */
      const all = [...replicas];
      const failures: string[] = [];
      /** All that is known of a request that failed. */
      const toldOf = (id: string, failure: string, when: string): string => {
        const seen = nginx.passed.find((passed) => passed.id === id);
        const lines = all.flatMap(({ output, url }) => output.split("\n").filter((line) => line.includes(id)).map((line) => `${url} ${line}`)); // biome-ignore format: one line
        const nearby = all.flatMap(({ output, url }) => output.split("\n").filter((line) => /"level":"(warn|error)"|draining|stopped/.test(line)).map((line) => `${url} ${line}`)); // biome-ignore format: one line
        return [`${id} began ${when}, ended ${moment}: ${failure}`, `nginx: ${JSON.stringify(seen)}`, ...lines, "besides:", ...nearby.slice(-20), nginx.complaints.slice(-4000)].join("\n"); // biome-ignore format: one line
      };
      const expected = new Map<string, string>();
      const client = async (tenant: number, stream: boolean): Promise<void> => {
        const model = tenant % 3 === 0 ? MODEL : "own";
        for (let i = 0; !ended; i++) {
          // Streams that last longer than a server's delay, and short answers.
          const body = { model, prompt: "The cell", max_tokens: stream ? 40 : 8, temperature: 0, ignore_eos: true, stream }; // biome-ignore format: one line
          const kind = `tenant${tenant}-${stream ? "stream" : "answer"}`;
          const [id, when] = [`${kind}-${i}`, `${moment} (${new Date().toISOString()})`];
          const failure = await ask(nginx.url, keys[tenant]!, id, body, (text) => {
            const first = expected.get(kind) ?? text;
            expected.set(kind, first);
            return text === first;
          });
          if (failure === undefined) answered++;
          else failures.push(toldOf(id, failure, when));
        }
      };
      const load = keys.flatMap((_, tenant) => [client(tenant, true), client(tenant, false)]);
      const goesOn = async (): Promise<void> => {
        const before = answered;
        await until(async () => answered >= before + TENANTS || failures.length > 0);
      };
      await goesOn();
      const codes: (number | null)[] = [];
      for (const which of [0, 1, 0, 1] as const) {
        moment = `while server ${which} ended`;
        codes.push(await replicas[which]!.end("SIGTERM"));
        moment = `while server ${which} was away`;
        replicas[which] = await start(which);
        all.push(replicas[which]!);
        moment = `when server ${which} was back`;
        await goesOn();
      }
      ended = true;
      await Promise.all(load);
      expect(failures).toEqual([]);
      expect(codes).toEqual([0, 0, 0, 0]);
      const { passed } = nginx;
      expect(passed.filter(({ status }) => status !== 200)).toEqual([]);
      // It was not luck: servers refused what came too late, and were not there at all for a while.
      expect(passed.filter(({ upstream }) => upstream[0] === "503").length).toBeGreaterThan(0);
      expect(passed.filter(({ upstream }) => upstream[0] === "502").length).toBeGreaterThan(0);
      await Promise.all(replicas.map((replica) => replica.end("SIGTERM")));
    },
  );
});

/** @returns what is wrong with the answer */
async function ask(
  url: string,
  key: string,
  id: string,
  body: { stream: boolean; max_tokens: number },
  same: (text: string) => boolean,
): Promise<string | undefined> {
  // biome-ignore format: one line
  try {
    const response = await fetch(`${url}/v1/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json", "x-request-id": id },
      body: JSON.stringify(body),
    });
    const text = await response.text();
    if (response.status !== 200) return `${response.status} ${text}`;
    if (!body.stream) {
      const { choices } = JSON.parse(text) as { choices: { text: string }[] };
      return same(choices[0]!.text) ? undefined : `another answer: ${choices[0]!.text}`;
    }
    const events = text.split("\n\n").filter((event) => event !== "");
    if (events.at(-1) !== "data: [DONE]") return `a stream that ends with ${events.at(-1)}`;
    const parts = events.slice(0, -1).map((event) => JSON.parse(event.slice("data: ".length)) as { choices: { text: string }[]; error?: unknown }); // biome-ignore format: one line
    const wrong = parts.find(({ error }) => error !== undefined);
    if (wrong) return JSON.stringify(wrong);
    const whole = parts.map(({ choices }) => choices[0]?.text ?? "").join("");
    return same(whole) ? undefined : `another stream: ${whole}`;
  } catch (error) {
    await sleep(10);
    return String((error as Error).cause ?? error);
  }
}
