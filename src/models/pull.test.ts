/** @file Pulling models, against a server with the hub's routes: choice of files, resuming, checksums, refusals, names. */
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"; // biome-ignore format: one line
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { Backbone } from "./backbone.ts";
import { readBackboneConfig } from "./config-file.ts";
import { hubToken } from "./hub.ts";
import { filesToPull, parseModelName, pulledModel, pullModel, resolveModel } from "./pull.ts";

const SOURCE = "test/fixtures/backbones/llama-untied";
const COMMIT = "a".repeat(40);
/** Ignored by a pull. */
const OTHERS = [
  "expected.json",
  "pytorch_model.bin",
  "model.fp16.safetensors",
  "onnx/model.onnx",
  "flax_model.msgpack",
  "README.md",
];
const contents = new Map<string, Buffer>([
  ...readdirSync(SOURCE).map((name) => [name, readFileSync(join(SOURCE, name))] as const),
  ...OTHERS.map((name) => [name, Buffer.from(name)] as const),
  ["tokenizer.json", Buffer.from("{}")],
]);
const SHARD = "model-00001-of-00003.safetensors";
const shard = contents.get(SHARD)!;

/** What the server does wrong at its next requests for files. */
let faults: { break?: number; damage?: boolean; busy?: number; ignoreRange?: boolean; slow?: boolean };
const requests: { path: string; range: string | undefined; authorization: string | undefined }[] = [];

const server = createServer((request, response) => {
  const path = decodeURIComponent(new URL(request.url!, "http://x").pathname);
  const { range, authorization } = request.headers;
  requests.push({ path, range, authorization });
  const json = (value: unknown): void => {
    response.setHeader("content-type", "application/json").end(JSON.stringify(value));
  };
  if (/\/(gated|private|nobody)\//.test(path)) {
    const status = path.includes("/gated/") ? 403 : path.includes("/private/") ? 401 : 404;
    response.writeHead(status, { "content-type": "application/json" }).end('{"error":"no"}');
    return;
  }
  if (faults.busy) {
    faults.busy--;
    response.writeHead(503).end("busy");
    return;
  }
  if (/^\/api\/models\/org\/model\/revision\/(main|v1|a{40})$/.test(path)) {
    json({ _id: "1", id: "org/model", modelId: "org/model", sha: COMMIT, private: false, gated: false });
  } else if (path === `/api/models/org/model/tree/${COMMIT}`) {
    const entries = [...contents].map(([name, content]) => {
      const git = createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex");
      const sha256 = createHash("sha256").update(content).digest("hex");
      const lfs = name.endsWith(".safetensors") ? { lfs: { oid: sha256, size: content.length, pointerSize: 130 } } : {};
      return { type: "file", path: name, size: content.length, oid: git, ...lfs };
    });
    json([...entries, { type: "file", path: "../evil.json", size: 1, oid: "0" }]);
  } else if (path.startsWith(`/org/model/resolve/${COMMIT}/`)) {
    const port = (server.address() as AddressInfo).port;
    response.writeHead(302, { location: `http://localhost:${port}/store/${path.split(`${COMMIT}/`)[1]}` }).end();
  } else if (path.startsWith("/store/") && contents.has(path.slice(7))) send(path.slice(7), range);
  else response.writeHead(404, { "content-type": "application/json" }).end('{"error":"none"}');

  function send(name: string, asked: string | undefined): void {
    const whole = Buffer.from(contents.get(name)!);
    if (faults.damage) whole[whole.length - 1]! ^= 1;
    const from = faults.ignoreRange ? 0 : Number(/^bytes=(\d+)-$/.exec(asked ?? "")?.[1] ?? 0);
    const body = whole.subarray(from);
    const headers = { "content-length": body.length, etag: `"${name}"` };
    if (from > 0)
      response.writeHead(206, { ...headers, "content-range": `bytes ${from}-${whole.length - 1}/${whole.length}` }); // biome-ignore format: one line
    else response.writeHead(200, headers);
    if (faults.break !== undefined && name === SHARD) {
      const at = faults.break;
      delete faults.break;
      response.write(body.subarray(0, at), () => setTimeout(() => response.destroy(), 20));
    } else if (faults.slow && name === SHARD) response.write(body.subarray(0, 1000));
    else response.end(body);
  }
});

let cache: string;
beforeAll(() => new Promise<void>((done) => server.listen(0, done)));
afterAll(() => new Promise((done) => server.close(done)));
beforeEach(() => {
  cache = mkdtempSync(join(tmpdir(), "milora-pull-"));
  vi.stubEnv("MILORA_CACHE", cache);
  vi.stubEnv("HF_ENDPOINT", `http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
  vi.stubEnv("HF_TOKEN", "");
  vi.stubEnv("HF_HOME", join(cache, "huggingface"));
  requests.length = 0;
  faults = {};
});
afterEach(() => {
  vi.unstubAllEnvs();
  server.closeAllConnections();
  rmSync(cache, { recursive: true });
});

const stored = () => requests.filter(({ path }) => path.startsWith("/store/"));
const fetched = (name: string) => stored().filter(({ path }) => path === `/store/${name}`);

describe("pullModel", () => {
  it("fetches config, tokenizer and safetensors; the name then stands for the directory", async () => {
    vi.stubEnv("HF_TOKEN", "hf_secret");
    const progress: number[] = [];
    const pulled = await pullModel("org/model", { onProgress: (done, total) => progress.push(done / total) });
    const names = readdirSync(pulled.directory).sort();
    expect(names).toEqual([...contents.keys()].filter((name) => !OTHERS.includes(name)).sort());
    for (const name of names) expect(readFileSync(join(pulled.directory, name))).toEqual(contents.get(name));
    expect(progress.at(-1)).toBe(1);
    expect(progress).toEqual(progress.toSorted((a, b) => a - b));
    // The token goes to the hub and not where it redirects to.
    expect(requests.find(({ path }) => path.includes("/resolve/"))!.authorization).toBe("Bearer hf_secret");
    expect(stored().every(({ authorization }) => authorization === undefined)).toBe(true);
    expect(resolveModel("org/model")).toBe(pulled.directory);
    expect(resolveModel(`org/model@${COMMIT}`)).toBe(pulled.directory);
    expect(readBackboneConfig("org/model")).toEqual(readBackboneConfig(SOURCE));
    using byName = await Backbone.load("org/model", { weights: "int4" });
    using byPath = await Backbone.load(SOURCE, { weights: "int4" });
    expect(byName.digest).toBe(byPath.digest);
    requests.length = 0;
    await pullModel("org/model@v1");
    expect(stored()).toEqual([]);
    expect(pulledModel("org/model@v1")!.directory).toBe(pulled.directory);
  });

  it("goes on where the connection broke, by itself", async () => {
    faults.break = 3000;
    const { directory } = await pullModel("org/model");
    expect(readFileSync(join(directory, SHARD))).toEqual(shard);
    const ranges = fetched(SHARD).map(({ range }) => range);
    expect(ranges).toEqual([undefined, "bytes=3000-"]);
  });

  it("begins anew where the server does not go on", async () => {
    faults = { break: 3000, ignoreRange: true };
    const { directory } = await pullModel("org/model");
    expect(readFileSync(join(directory, SHARD))).toEqual(shard);
  });

  it("leaves what has arrived when it is interrupted, and goes on with it the next time", async () => {
    faults.slow = true;
    const controller = new AbortController();
    const pulling = pullModel("org/model", {
      signal: controller.signal,
      onProgress: (_, __, file) => {
        if (file === SHARD) controller.abort(new Error("stop"));
      },
    });
    await expect(pulling).rejects.toThrow("stop");
    const part = join(cache, "models/org/model", COMMIT, `${SHARD}.part`);
    expect(statSync(part).size).toBe(1000);
    expect(pulledModel("org/model")).toBeUndefined();
    expect(() => resolveModel("org/model")).toThrow(/milora model pull org\/model/);
    faults = {};
    requests.length = 0;
    const { directory } = await pullModel("org/model");
    expect(fetched(SHARD).map(({ range }) => range)).toEqual(["bytes=1000-"]);
    expect(readFileSync(join(directory, SHARD))).toEqual(shard);
    expect(existsSync(part)).toBe(false);
  });

  it("tries again when the server is busy", async () => {
    faults.busy = 2;
    await pullModel("org/model");
    expect(requests.filter(({ path }) => path.includes("/revision/"))).toHaveLength(3);
  });

  it("keeps nothing whose checksum is not the hub's, and mends what was changed here", async () => {
    faults.damage = true;
    await expect(pullModel("org/model")).rejects.toThrow(/arrived damaged/);
    expect(pulledModel("org/model")).toBeUndefined();
    const left = readdirSync(cache, { recursive: true, encoding: "utf8" }).filter((name) => /json|part|safet/.test(name)); // biome-ignore format: one line
    expect(left).toEqual([]);
    faults = {};
    const { directory } = await pullModel("org/model");
    writeFileSync(join(directory, SHARD), Buffer.alloc(shard.length));
    requests.length = 0;
    await pullModel("org/model");
    expect(stored().map(({ path }) => path)).toEqual([`/store/${SHARD}`]);
    expect(readFileSync(join(directory, SHARD))).toEqual(shard);
  });

  it("into a directory of one's own, and only what is asked for", async () => {
    const output = join(cache, "own");
    const { directory } = await pullModel("org/model", { output, include: ["*-00002-of-*", "onnx/*.onnx"] });
    expect(directory).toBe(output);
    expect(existsSync(join(output, "model-00002-of-00003.safetensors"))).toBe(true);
    expect(existsSync(join(output, "onnx", "model.onnx"))).toBe(true);
    expect(existsSync(join(output, SHARD))).toBe(false);
    expect(existsSync(join(output, "config.json"))).toBe(true);
    expect(pulledModel("org/model")).toBeUndefined();
    await expect(pullModel("org/model", { output, include: ["*.gguf"] })).rejects.toThrow(/no file matches \*\.gguf; it has/); // biome-ignore format: one line
  });

  it("says what is wrong", async () => {
    const refused = { code: "MODEL_UNAVAILABLE" };
    await expect(pullModel("nobody/model")).rejects.toMatchObject({ ...refused, message: expect.stringMatching(/no such model or revision/) }); // biome-ignore format: one line
    await expect(pullModel("org/model@v9")).rejects.toThrow(/no such model or revision/);
    await expect(pullModel("private/model")).rejects.toThrow(/not public: check the name, or set HF_TOKEN/);
    await expect(pullModel("gated/model")).rejects.toThrow(/accept the model's terms at http.*\/gated\/model, and set HF_TOKEN/); // biome-ignore format: one line
    await expect(pullModel("model")).rejects.toThrow(/not of the form ORG\/NAME/);
    vi.stubEnv("HF_ENDPOINT", "http://127.0.0.1:9");
    await expect(pullModel("org/model")).rejects.toThrow(/cannot be fetched/);
  });
});

describe("filesToPull", () => {
  const choose = (names: string[], include?: string[]) =>
    filesToPull("org/model", names.map((path) => ({ path })), include).map(({ path }) => path); // biome-ignore format: one line

  it("takes GGUF files by pattern, and says which there are", () => {
    const files = ["README.md", "tiny.Q4_0.gguf", "tiny.Q8_0.gguf"];
    expect(choose(files, ["*Q4_0.gguf"])).toEqual(["tiny.Q4_0.gguf"]);
    expect(() => choose(files)).toThrow(/--include "tiny.Q4_0.gguf"; there are tiny.Q4_0.gguf, tiny.Q8_0.gguf/);
  });

  it("reads no pickle, and says how to convert it", () => {
    expect(() => choose(["config.json", "pytorch_model.bin"])).toThrow(/pickle only.*save_pretrained/);
    expect(() => choose(["README.md"])).toThrow(/not a model that can be used here/);
  });
});

describe("names", () => {
  it("are told from paths", () => {
    expect(parseModelName("org/model")).toEqual({ name: "org/model", revision: "main" });
    expect(parseModelName("org/model@refs/pr/1")).toEqual({ name: "org/model", revision: "refs/pr/1" });
    for (const path of ["./org/model", "../model", "model", "a/b/c", "/org/model", "org/..", "org/model@../x"]) {
      expect(parseModelName(path)).toBeUndefined();
    }
    expect(resolveModel("assets/tiny-llama")).toBe("assets/tiny-llama"); // a path that is there
    expect(() => readBackboneConfig("no/such")).toThrow(/no such directory, and no such model has been pulled/);
  });

  it("of GGUF repositories stand for the file that was pulled", async () => {
    const gguf = readdirSync("test/fixtures/gguf").find((name) => name.endsWith(".gguf"))!;
    const directory = join(cache, "models/org/gguf", COMMIT);
    cpSync(join("test/fixtures/gguf", gguf), join(directory, gguf));
    const refs = join(cache, "models/org/gguf/refs");
    cpSync("test/fixtures/gguf", refs, { recursive: true }); // makes the folder
    writeFileSync(join(refs, "main.json"), JSON.stringify({ commit: COMMIT, files: [] }));
    expect(resolveModel("org/gguf")).toBe(join(directory, gguf));
  });

  it("have the token of the command line tool", () => {
    expect(hubToken()).toBeUndefined();
    writeFileSync(join(cache, "token"), "hf_file\n");
    vi.stubEnv("HF_TOKEN_PATH", join(cache, "token"));
    expect(hubToken()).toBe("hf_file");
    vi.stubEnv("HF_TOKEN", "hf_env");
    expect(hubToken()).toBe("hf_env");
  });
});
