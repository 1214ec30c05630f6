/** @file Damaged files that milora keeps for itself, and damaged answers of those whom it asks: stores of objects, judges. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { hostname } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, test } from "vitest";
import { InputError } from "../../src/base/index.ts";
import { JudgmentCache } from "../../src/evaluation/judge/cache.ts";
import { attempt, type JudgeEndpoint } from "../../src/evaluation/judge/protocol.ts";
import { ratingOf, winnerOf } from "../../src/evaluation/judge/verdict.ts";
import { RowStore } from "../../src/evaluation/store.ts";
import { digestOfFiles, isUnchanged, rememberUnchanged } from "../../src/serving/adapters/files.ts";
import { Bucket, BucketError } from "../../src/serving/adapters/storage/bucket.ts";
import { bucketLocation } from "../../src/serving/adapters/storage/location.ts";
import { ObjectStorage } from "../../src/serving/adapters/storage/objects.ts";
import { lockDirectory } from "../../src/serving/store/lock.ts";
import { isTraining } from "../../src/training/index.ts";
import { byteDamage, damageBytes, damageJson, hold, jsonDamage, scratch, settings, Tally, TIMEOUT } from "./support.ts";

const directory = scratch();
const some = <T>(one: fc.Arbitrary<T>) => fc.array(one, { minLength: 1, maxLength: 3 });

/** What is answered to whom. */
let answerOf: (head: string) => Buffer;
let server: Server;
let url: string;

beforeAll(async () => {
  server = createServer((socket) => {
    let head = "";
    socket
      .on("error", () => {})
      .on("data", (part) => {
        if (head.includes("\r\n\r\n")) return; // what is sent
        head += part.toString("latin1");
        if (!head.includes("\r\n\r\n")) return;
        const answer = answerOf(head);
        const end = answer.indexOf("\r\n\r\n");
        socket.end(head.startsWith("HEAD ") && end >= 0 ? answer.subarray(0, end + 4) : answer);
      });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as { port: number }).port}`;
});
afterAll(() => new Promise((resolve) => server.close(resolve)));

type Headers = readonly string[];
const headOf = (status: string, bytes: number, headers: Headers = []): string =>
  `${[`HTTP/1.1 ${status}`, "connection: close", "date: Mon, 02 Mar 2026 10:00:00 GMT", ...headers, `content-length: ${bytes}`].join("\r\n")}\r\n\r\n`; // biome-ignore format: one line
const httpOf = (status: string, body: string | Buffer, headers?: Headers): Buffer =>
  Buffer.concat([Buffer.from(headOf(status, Buffer.byteLength(body), headers)), Buffer.from(body)]);

/** Damage to all of an answer, to its head, or to what it carries: then its length is right. */
const part = fc.constantFrom("all", "head", "body");
const damages = fc.record({ part, list: some(byteDamage) });
type Damages = typeof damages extends fc.Arbitrary<infer T> ? T : never;
function damaged(status: string, body: string | Buffer, { part, list }: Damages, headers?: Headers): Buffer {
  if (part === "all") return damageBytes(httpOf(status, body, headers), list);
  if (part === "body") return httpOf(status, damageBytes(Buffer.from(body), list), headers);
  const head = damageBytes(Buffer.from(headOf(status, Buffer.byteLength(body), headers)), list);
  return Buffer.concat([head, Buffer.from(body)]);
}

const bucketAt = () => {
  const environment = { AWS_ENDPOINT_URL: url, AWS_ACCESS_KEY_ID: "key", AWS_SECRET_ACCESS_KEY: "secret" };
  return new Bucket(bucketLocation("s3://bucket/some/where", environment), { stallMs: 5000, pauseMs: 0 });
};

/** As those who use a bucket do. */
async function told<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof BucketError)) throw error;
    throw new InputError("ADAPTER_STORE_REFUSED", error.kind, error.message || "says nothing");
  }
}

const DIGEST = "0123456789abcdef".repeat(4);
const entry = (key: string, bytes: number): string =>
  `<Contents><Key>some/where/${key}</Key><LastModified>2026-03-01T10:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag><Size>${bytes}</Size><StorageClass>STANDARD</StorageClass></Contents>`;
const page = (inside: string): string =>
  `<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>${inside}</ListBucketResult>`;
const first = page(
  `<IsTruncated>true</IsTruncated><NextContinuationToken>bmV4dA==</NextContinuationToken>${entry(`${DIGEST}/adapter_config.json`, 900)}${entry("a%20b%2Bc", 0)}`,
);
const second = page(`<IsTruncated>false</IsTruncated>${entry(`${DIGEST}/adapter_model.safetensors`, 7000)}`);

/** What stands in an element is replaced. */
const ELEMENTS = ["Key", "LastModified", "Size", "IsTruncated", "NextContinuationToken", "Contents", "Name"];
const CONTENTS = ["", "-1", "1e999", "9007199254740993", "NaN", "0x10", "true", "%", "%00", "%ff", "a&#0;", "&amp;lt;", "never", "+275760-09-13", "2026-03-01", "<Key>a</Key>", "<Contents>", "</Contents>", "<".repeat(2000), "x".repeat(100_000), "<Contents>".repeat(5000), "../../x", "\ud800"]; // biome-ignore format: one line
const elements = some(fc.record({ name: fc.constantFrom(...ELEMENTS), value: fc.constantFrom(...CONTENTS) }));
const replaced = (text: string, list: readonly { readonly name: string; readonly value: string }[]): string =>
  list.reduce((xml, { name, value }) => {
    const [open, close] = [`<${name}>`, `</${name}>`];
    const [from, to] = [xml.indexOf(open), xml.indexOf(close)];
    return from < 0 || to < from ? xml : xml.slice(0, from + open.length) + value + xml.slice(to);
  }, text);

test(
  "lists of a store of objects",
  async () => {
    const tally = new Tally();
    const isFurther = (head: string): boolean => head.includes("continuation-token=bmV4");
    await fc.assert(
      fc.asyncProperty(fc.boolean(), fc.oneof(damages, elements), async (which, how) => {
        const sound = which ? second : first;
        const wrong = Array.isArray(how) ? httpOf("200 OK", replaced(sound, how)) : damaged("200 OK", sound, how);
        answerOf = (head) => (isFurther(head) === which ? wrong : httpOf("200 OK", which ? first : second));
        await tally.check(() =>
          told(async () => {
            let pages = 0;
            for await (const { now, found } of bucketAt().list("")) {
              hold(Number.isFinite(now) && ++pages < 20, `page ${pages}, ${now}`);
              for (const { key, bytes, modified } of found) {
                hold(typeof key === "string" && Number.isSafeInteger(bytes) && bytes >= 0, `${key}: ${bytes}`);
                hold(Number.isFinite(modified), `${key}: ${modified}`);
              }
            }
          }),
        );
      }),
      settings(300),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test(
  "adapters of a store of objects, and what is said of them",
  async () => {
    const tally = new Tally();
    const fixture = "test/fixtures/lora/qv-suffixes";
    const [config, weights] = ["adapter_config.json", "adapter_model.safetensors"].map((name) => readFileSync(join(fixture, name))) as [Buffer, Buffer]; // biome-ignore format: one line
    const digest = await digestOfFiles(fixture);
    const cache = join(directory.path, "cache");
    // Nearly all damage is noticed: some answers have none.
    const few = fc.record({ part, list: fc.array(byteDamage, { maxLength: 2 }) });
    const header = ["last-modified: Sun, 01 Mar 2026 10:00:00 GMT", "etag: x"];
    const statuses = fc.constantFrom(...Array<string>(9).fill("200 OK"), "206 Partial", "204 None", "301 Moved", "404 Not Found", "503 Slow Down"); // biome-ignore format: one line
    await fc.assert(
      fc.asyncProperty(fc.boolean(), statuses, few, async (which, status, how) => {
        const wrong = damaged(status, which ? weights : config, how, header);
        answerOf = (head) => (head.includes("safetensors") === which ? wrong : httpOf("200 OK", which ? config : weights, header)); // biome-ignore format: one line
        await tally.check(async () => {
          await using storage = new ObjectStorage("s3://bucket", bucketAt(), { directory: cache, maxBytes: 1 << 20 });
          {
            using held = await storage.hold(digest);
            hold((await digestOfFiles(held.directory)) === digest, "other files than were asked for");
          }
          const facts = await told(() => bucketAt().look(`${digest}/adapter_config.json`));
          hold(facts === undefined || facts.bytes >= 0 || Number.isNaN(facts.bytes), `${facts?.bytes} bytes`);
        });
        rmSync(cache, { recursive: true, force: true });
      }),
      settings(150),
    );
    tally.conclude();
  },
  TIMEOUT,
);

const endpoint: JudgeEndpoint = { url: "", model: "judge", key: "secret-of-the-judge", temperature: 0, maxTokens: 9, timeoutMs: 5000 }; // biome-ignore format: one line
const messages = [
  { role: "system" as const, content: "Judge." },
  { role: "user" as const, content: "An answer." },
];

test(
  "answers of a judge",
  async () => {
    const tally = new Tally();
    const completion = { choices: [{ message: { content: "[[7]]", refusal: null }, finish_reason: "stop" }], usage: { prompt_tokens: 5, completion_tokens: 3 } }; // biome-ignore format: one line
    const failure = { error: { message: "no: secret-of-the-judge", code: "insufficient_quota", param: "max_tokens" } };
    const statuses = fc.constantFrom("200 OK", "200 OK", "200 OK", "400 Bad", "401 No", "404 None", "302 Found", "429 Later", "500 Broken"); // biome-ignore format: one line
    const waits = fc.constantFrom("retry-after: 3", "retry-after: -1", "retry-after: never", "retry-after: 1e999", "retry-after-ms: x", "retry-after: Fri, 31 Dec 9999 23:59:59 GMT"); // biome-ignore format: one line
    await fc.assert(
      fc.asyncProperty(statuses, waits, fc.oneof(damages, some(jsonDamage)), async (status, wait, how) => {
        const text = JSON.stringify(status === "200 OK" ? completion : failure);
        const wrong = Array.isArray(how) ? httpOf(status, damageJson(text, how), [wait]) : damaged(status, text, how, [wait]); // biome-ignore format: one line
        answerOf = () => wrong;
        await tally.check(async () => {
          const outcome = await attempt({ ...endpoint, url }, messages, "max_tokens");
          if (outcome.kind === "answer") {
            const { text, finishReason, usage } = outcome.answer;
            hold(typeof text === "string" && (finishReason === null || typeof finishReason === "string"), "a text");
            hold(usage === null || (usage.promptTokens >= 0 && usage.completionTokens >= 0), "counts");
            return [ratingOf(text), winnerOf(text)];
          }
          if (outcome.kind !== "again") throw outcome.error;
          hold(outcome.pauseMs === undefined || outcome.pauseMs >= 0, `a pause of ${outcome.pauseMs} ms`);
          hold(!outcome.why.includes(endpoint.key!.slice(0, 8)), "the key is told");
          throw new InputError("JUDGE_UNAVAILABLE", url, outcome.why);
        });
      }),
      settings(300),
    );
    tally.conclude();
  },
  TIMEOUT,
);

/** One line of a file, or all of it, is damaged. */
const textDamages = fc.oneof(
  some(jsonDamage),
  some(byteDamage).map((bytes) => ({ bytes })),
);
const damagedText = (
  text: string,
  how: typeof textDamages extends fc.Arbitrary<infer T> ? T : never,
): string | Buffer => (Array.isArray(how) ? damageJson(text, how) : damageBytes(Buffer.from(text), how.bytes));

test(
  "judgements that are kept",
  async () => {
    const tally = new Tally();
    const place = join(directory.path, "judgements");
    const [key] = [new JudgmentCache(place, endpoint).keyOf(messages)];
    const answer = { text: "So be it: [[7]]", finishReason: "stop", usage: { promptTokens: 5, completionTokens: 3 } };
    new JudgmentCache(place, endpoint).put(key, messages, answer);
    const path = join(place, key.slice(0, 2), `${key}.json`);
    const text = readFileSync(path, "utf8");
    await fc.assert(
      fc.asyncProperty(textDamages, async (how) => {
        writeFileSync(path, damagedText(text, how));
        await tally.check(() => {
          const found = new JudgmentCache(place, endpoint).get(key);
          if (found === undefined) throw new InputError("JSON_INVALID", path, "is no judgement");
          hold(typeof found.text === "string", "a text");
          hold(found.finishReason === null || typeof found.finishReason === "string", "a reason");
          const { promptTokens = 0, completionTokens = 0 } = found.usage ?? {};
          hold(promptTokens >= 0 && completionTokens >= 0, "counts");
          return ratingOf(found.text);
        });
      }),
      settings(300),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test(
  "outputs of rows that are kept",
  async () => {
    const tally = new Tally();
    const path = join(directory.path, "rows.jsonl");
    const kept = [
      { task: "t", row: 0, key: "a", output: { kind: "choice", logLikelihoods: [-1.5, -2], greedy: [true, false] } },
      { task: "t", row: 1, key: "b", output: { kind: "generate", text: "so\n", tokens: 3 } },
    ].map((line) => JSON.stringify(line));
    const file = `${kept.join("\n")}\n`;
    await fc.assert(
      fc.asyncProperty(textDamages, fc.nat({ max: 1 }), async (how, which) => {
        const line = Array.isArray(how) ? [kept[which]!, damagedText(kept[which]!, how)] : undefined;
        writeFileSync(path, line ? file.replace(line[0] as string, () => String(line[1])) : damagedText(file, how));
        await tally.check(() => {
          new RowStore(path);
          const store = new RowStore(path); // which the first one may have ended with a new line
          const outputs = ["a", "b"].map((key) => store.get(key));
          for (const output of outputs) {
            if (output?.kind === "choice") {
              const { logLikelihoods, greedy } = output;
              hold(logLikelihoods.length === greedy.length && logLikelihoods.every(Number.isFinite), "likelihoods");
            } else if (output) hold(typeof output.text === "string" && output.tokens >= 0, "a text");
          }
          if (outputs.includes(undefined)) throw new InputError("JSON_INVALID", path, "lacks an output");
        });
      }),
      settings(300),
    );
    tally.conclude();
  },
  TIMEOUT,
);

test(
  "locks of data directories and of runs, and notes of what was hashed",
  async () => {
    const tally = new Tally();
    const at = (name: string) => join(directory.path, name);
    for (const name of ["data", "run", "installed"]) mkdirSync(at(name), { recursive: true });
    for (const name of ["adapter_config.json", "adapter_model.safetensors"])
      writeFileSync(join(at("installed"), name), readFileSync(join("test/fixtures/lora/qv-suffixes", name)));
    while (!isUnchanged(at("installed"))) await rememberUnchanged(at("installed")); // not within a tick
    const note = readFileSync(join(at("installed"), "checked"), "utf8");
    // Each of them is of a process that lives.
    const kinds = {
      "data/lock": [
        JSON.stringify({ pid: process.ppid, started: null }),
        () => void lockDirectory(at("data"))[Symbol.dispose](),
      ],
      "run/training.lock": [`${process.ppid} ${hostname()}\n`, () => held(isTraining(at("run")))],
      "installed/checked": [note, () => held(!isUnchanged(at("installed")))],
    } as const satisfies Record<string, readonly [string, () => void]>;
    const names = fc.constantFrom(...(Object.keys(kinds) as (keyof typeof kinds)[]));
    const bytes = some(byteDamage).map((list) => ({ bytes: list }));
    const cases = names.chain((name) => fc.tuple(fc.constant(name), name === "data/lock" ? textDamages : bytes));
    await fc.assert(
      fc.asyncProperty(cases, async ([name, how]) => {
        const [text, read] = kinds[name];
        const content = damagedText(text, how);
        writeFileSync(at(name), content);
        await tally.check(read);
        if (name === "installed/checked" && !Buffer.from(note).equals(Buffer.from(content))) hold(!isUnchanged(at("installed")), "another note is believed"); // biome-ignore format: one line
        rmSync(at(name), { force: true });
      }),
      settings(300),
    );
    tally.conclude();
  },
  TIMEOUT,
);

/** Refused is what is still held. */
function held(is: boolean): void {
  if (is) throw new InputError("DATA_IN_USE", "it", "is held");
}
