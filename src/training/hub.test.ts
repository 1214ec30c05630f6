/** @file Data sets by name, against a server with the hub's routes: listing, choice of files, cache, checksums, refusals. */
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parquetWriteBuffer } from "hyparquet-writer";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { chooseFiles, fetchDataSet, parseHubSource } from "./hub.ts";
import { loadRows } from "./rows.ts";

const prompts = ["a", "b", "c"];
const parquet = Buffer.from(
  parquetWriteBuffer({
    columnData: [
      { name: "question", data: prompts, type: "STRING" },
      { name: "reply", data: prompts.map((text) => `${text}!`), type: "STRING" },
    ],
  }),
);
const lines = Buffer.from('{"prompt":"p","completion":"r"}\n');
const CONVERTED_COMMIT = "c".repeat(40);
const MAIN_COMMIT = "d".repeat(40);

/** What the server has: commits by revision, files by commit. */
const revisions: Record<string, string> = { "refs/convert/parquet": CONVERTED_COMMIT, main: MAIN_COMMIT };
const contents: Record<string, Record<string, Buffer>> = {
  [CONVERTED_COMMIT]: { "default/train/0000.parquet": parquet, "default/test/0000.parquet": parquet },
  [MAIN_COMMIT]: { "README.md": Buffer.from("# x"), "train.jsonl": lines, "test.jsonl": lines },
};
const requests: string[] = [];
let damaged = false;
let authorization: string | undefined;

const server = createServer((request, response) => {
  const path = decodeURIComponent(new URL(request.url!, "http://x").pathname);
  requests.push(path);
  authorization = request.headers.authorization;
  const json = (value: unknown): void => {
    response.setHeader("content-type", "application/json").end(JSON.stringify(value));
  };
  const info = /^\/api\/datasets\/org\/set\/revision\/(.+)$/.exec(path);
  const commit = info ? (revisions[info[1]!] ?? Object.values(revisions).find((sha) => sha === info[1])) : undefined;
  if (commit) return json({ _id: "1", id: "org/set", sha: commit, private: false });
  const tree = /^\/api\/datasets\/org\/set\/tree\/([0-9a-f]{40})$/.exec(path);
  if (tree) {
    const entries = Object.entries(contents[tree[1]!]!).map(([name, content]) => {
      const git = createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex");
      const sha256 = createHash("sha256").update(content).digest("hex");
      const lfs = name.endsWith(".parquet") ? { lfs: { oid: sha256, size: content.length, pointerSize: 130 } } : {};
      return { type: "file", path: name, size: content.length, oid: git, ...lfs };
    });
    return json([{ type: "directory", path: "default", size: 0, oid: "" }, ...entries]);
  }
  const file = /^\/datasets\/org\/set\/resolve\/([0-9a-f]{40})\/(.+)$/.exec(path);
  const content = file ? contents[file[1]!]?.[file[2]!] : undefined;
  if (content) {
    const sent = damaged ? Buffer.from(content).fill(0, 1, 2) : content;
    response.setHeader("etag", '"1"');
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    if (!range) return response.end(sent);
    const [from, to] = [Number(range[1]), Number(range[2])];
    response.writeHead(206, { "content-range": `bytes ${from}-${to}/${sent.length}` });
    return response.end(sent.subarray(from, to + 1));
  }
  response.writeHead(path.includes("/gated/") ? 403 : 404).end("{}");
});

let cache: string;
beforeAll(() => new Promise<void>((done) => server.listen(0, "127.0.0.1", done)));
afterAll(() => new Promise((done) => server.close(done)));
beforeEach(() => {
  cache = mkdtempSync(join(tmpdir(), "milora-hub-"));
  vi.stubEnv("MILORA_CACHE", cache);
  vi.stubEnv("HF_ENDPOINT", `http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
  vi.stubEnv("HF_TOKEN", "");
  vi.stubEnv("HF_HUB_OFFLINE", "");
  requests.length = 0;
  damaged = false;
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(cache, { recursive: true });
});

const downloads = (): string[] => requests.filter((path) => path.includes("/resolve/"));

describe("parseHubSource", () => {
  it("takes names apart", () => {
    expect(parseHubSource("hf:org/set")).toEqual({ name: "org/set", split: "train" });
    expect(parseHubSource("hf:org/set@v1.0:main/test")).toEqual({
      name: "org/set",
      revision: "v1.0",
      config: "main",
      split: "test",
    });
    expect(parseHubSource("hf:org/set/validation")).toEqual({ name: "org/set", split: "validation" });
    for (const wrong of ["hf:set", "hf:org/set:", "hf:/set", "hf:org/set/a/b"]) {
      expect(() => parseHubSource(wrong)).toThrow(/is not of the form hf:org\/name/);
    }
  });
});

describe("chooseFiles", () => {
  const choose = (source: string, ...paths: string[]): string[] =>
    chooseFiles(
      source,
      paths.map((path) => ({ path })),
    ).map(({ path }) => path);

  it("finds splits by folder and by the beginning of a name", () => {
    const shards = ["data/train-00001-of-2.parquet", "data/train-00000-of-2.parquet", "data/test-00000-of-1.parquet"];
    expect(choose("hf:o/n", ...shards)).toEqual([shards[1], shards[0]]);
    expect(choose("hf:o/n/test", ...shards)).toEqual([shards[2]]);
    expect(choose("hf:o/n/test", "test.jsonl", "train.jsonl", "testimony.jsonl")).toEqual(["test.jsonl"]);
    expect(() => choose("hf:o/n/dev", ...shards)).toThrow(
      /no file belongs to the split "dev"; data files: data\/train/,
    );
  });

  it("wants a config where there are several", () => {
    const files = ["main/train/0.parquet", "socratic/train/0.parquet", "main/test/0.parquet"];
    expect(choose("hf:o/n:main", ...files)).toEqual([files[0]]);
    expect(choose("hf:o/n:socratic/train", ...files)).toEqual([files[1]]);
    expect(() => choose("hf:o/n", ...files)).toThrow(
      /several configs, name one as hf:org\/name:config: main, socratic/,
    );
    expect(() => choose("hf:o/n:other", ...files)).toThrow(/has no config "other"/);
    expect(choose("hf:o/n", "default/train/0.parquet", "extra/train/0.parquet")).toEqual(["default/train/0.parquet"]);
  });
});

describe("fetchDataSet", () => {
  it("fetches the parquet of a split once, and reads its rows", async () => {
    const columns = { prompt: "question", completion: "reply" };
    const rows = await loadRows("hf:org/set", { columns });
    expect(rows).toMatchObject(prompts.map((prompt) => ({ prompt, response: `${prompt}!` })));
    expect(new Set(downloads())).toEqual(
      new Set([`/datasets/org/set/resolve/${CONVERTED_COMMIT}/default/train/0000.parquet`]),
    );
    const before = downloads().length;
    expect(await loadRows("hf:org/set", { columns })).toEqual(rows);
    expect(downloads()).toHaveLength(before);
    expect(authorization).toBeUndefined();
  });

  it("takes a revision's own files, and sends the token", async () => {
    vi.stubEnv("HF_TOKEN", "hf_test");
    expect(await loadRows("hf:org/set@main/test")).toMatchObject([{ prompt: "p", response: "r" }]);
    expect(authorization).toBe("Bearer hf_test");
  });

  it("fetches again what was damaged in the cache, and keeps nothing that arrives damaged", async () => {
    const [path] = await fetchDataSet("hf:org/set/test");
    writeFileSync(path!, "broken");
    await fetchDataSet("hf:org/set/test");
    expect((await loadRows(path!, { columns: { prompt: "question", completion: "reply" } })).length).toBe(3);
    damaged = true;
    await expect(fetchDataSet("hf:org/set@main")).rejects.toThrow(/train\.jsonl\): arrived damaged/);
    const kept = readdirSync(cache, { recursive: true, encoding: "utf8" });
    expect(kept.filter((name) => /jsonl|tmp/.test(name))).toEqual([]);
  });

  it("goes on without the hub with what is in the cache", async () => {
    const paths = await fetchDataSet("hf:org/set");
    vi.stubEnv("HF_ENDPOINT", "http://127.0.0.1:9");
    expect(await fetchDataSet("hf:org/set")).toEqual(paths);
    vi.stubEnv("HF_HUB_OFFLINE", "1");
    expect(await fetchDataSet("hf:org/set")).toEqual(paths);
    await expect(fetchDataSet("hf:org/set/test")).rejects.toThrow(/is not in the cache, and HF_HUB_OFFLINE is set/);
    await expect(fetchDataSet("hf:org/other")).rejects.toThrow(/hf:org\/other: /);
  });

  it("does not ask again what a full commit holds", async () => {
    await fetchDataSet(`hf:org/set@${MAIN_COMMIT}`);
    requests.length = 0;
    await fetchDataSet(`hf:org/set@${MAIN_COMMIT}`);
    expect(requests).toEqual([]);
  });

  it("says what is wrong", async () => {
    await expect(fetchDataSet("hf:org/none")).rejects.toThrow(/the hub has no such data set or revision/);
    await expect(fetchDataSet("hf:org/set@v9")).rejects.toThrow(/the hub has no such data set or revision/);
    await expect(fetchDataSet("hf:gated/set")).rejects.toThrow(/accept the data set's terms there, and set HF_TOKEN/);
    vi.stubEnv("HF_ENDPOINT", "http://127.0.0.1:9");
    await expect(fetchDataSet("hf:org/set")).rejects.toThrow(/cannot be fetched/);
  });
});
