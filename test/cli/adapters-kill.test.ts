/** @file Installing adapters under kill -9: after each restart the registry holds what was acknowledged, whole, and nothing else. */
import { spawn } from "node:child_process";
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { Random } from "../../src/base/index.ts";
import { Adapter, methodOf } from "../../src/methods/index.ts";
import { readBackboneConfig } from "../../src/models/index.ts";
import { fixture, root, temporary } from "./milora.ts";

/** `MILORA_KILLS=1000 npx vitest run test/cli/adapters-kill.test.ts` looks longer. */
const KILLS = Number(process.env.MILORA_KILLS) || 8;

/** Checks what it finds, says so, then installs and removes without end, telling before and after each. */
const CHILD = `
import { createReadStream, readdirSync, writeSync } from "node:fs";
import { join } from "node:path";
import { openStore } from "./dist/serving/store/index.js";
import { AdapterRegistry, DirectoryStorage } from "./dist/serving/adapters/index.js";
import { digestOfFiles } from "./dist/serving/adapters/files.js";
import { readBackboneConfig } from "./dist/models/index.js";
const [directory, model, seed, ...sources] = process.argv.slice(1);
const say = (value) => writeSync(1, JSON.stringify(value) + "\\n");
const files = join(directory, "adapters");
const store = await openStore({ directory });
const limits = { graceMs: 0 };
const registry = await AdapterRegistry.open({ storage: new DirectoryStorage(directory), adapters: store.adapters, backbone: readBackboneConfig(model), limits });
const all = await registry.all();
const rows = [];
for (const record of all) {
  const digest = await digestOfFiles(join(files, record.digest));
  await registry.load(record);
  rows.push([record.name, record.digest, digest === record.digest]);
}
say({ rows, stored: readdirSync(files).filter((name) => name !== ".drafts"), drafts: readdirSync(join(files, ".drafts")) });
for (let i = Number(seed); ; i++) {
  const name = "n" + (i % 3);
  const owner = null;
  if (i % 7 === 6) {
    say({ begin: name, digest: null });
    await registry.remove(owner, name).catch((error) => { if (error.code !== "MODEL_NOT_FOUND") throw error; });
    if (i % 2) await registry.sweep();
    say({ end: name, digest: null });
    continue;
  }
  const source = sources[i % sources.length];
  const [path, digest] = source.split("=");
  say({ begin: name, digest });
  const installed = await registry.install(
    path.endsWith(".tar") ? { archive: createReadStream(path, { highWaterMark: 4096 }) } : { directory: path },
    { owner, name },
  );
  say({ end: name, digest: installed.digest });
}
`;

interface Checked {
  readonly rows: [name: string, digest: string, whole: boolean][];
  readonly stored: string[];
  readonly drafts: string[];
}

type Line = Checked | { begin: string; digest: string | null } | { end: string; digest: string | null };

/** Runs the child, and kills it so many milliseconds after it began to install; what it had said. */
function runAndKill(args: readonly string[], after: number): Promise<Line[]> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--input-type=module", "-e", CHILD, ...args], { cwd: root });
    let said = "";
    let complaints = "";
    let killed = false;
    child.stderr.on("data", (text) => {
      complaints += text;
    });
    child.stdout.on("data", (text) => {
      if (said === "") setTimeout(() => (killed = child.kill("SIGKILL")), after);
      said += text;
    });
    child.on("close", (code) => {
      if (!killed) reject(new Error(`ended with ${code}: ${complaints}`));
      // The last line may be cut.
      else resolve(said.split("\n").slice(0, -1).map((line) => JSON.parse(line) as Line)); // biome-ignore format: one line
    });
  });
}

test(`${KILLS} kills`, { timeout: 60_000 + KILLS * 10_000 }, async () => {
  const model = fixture("backbones/llama-gqa");
  const backbone = readBackboneConfig(model);
  const directory = join(temporary(), "data");
  mkdirSync(directory);
  const sources: string[] = [];
  const { AdapterRegistry, DirectoryStorage } = await import("../../src/serving/adapters/index.ts");
  const { entriesOf, Rows, tar } = await import("../../src/serving/adapters/testing.ts");
  const probe = await AdapterRegistry.open({
    storage: new DirectoryStorage(temporary()),
    adapters: new Rows(),
    backbone,
  });
  for (const r of [2, 8, 16]) {
    const path = join(temporary(), "adapter");
    using adapter = Adapter.create(methodOf("lora"), { r }, backbone, r);
    for (const key of adapter.tensors.keys()) if (key.includes("lora_B")) adapter.values(key).fill(r / 100);
    await adapter.save(path);
    const { digest } = await probe.install({ directory: path }, { owner: null, name: "probe" });
    const archive = `${path}.tar`;
    writeFileSync(archive, await tar(entriesOf(path)));
    sources.push(`${path}=${digest}`, `${archive}=${digest}`);
  }
  await probe[Symbol.asyncDispose]();

  const random = new Random(Number(process.env.MILORA_KILLS) ? Date.now() : 7);
  const expected = new Map<string, string | null>();
  /** What was begun and not acknowledged when the kill came. */
  let open: { name: string; digest: string | null } | undefined;
  const seen = { open: 0, drafts: 0, installs: 0 };
  for (let kill = 0; kill <= KILLS; kill++) {
    const lines = await runAndKill([directory, model, String(random.integer(1000)), ...sources], random.integer(250));
    const { rows, stored, drafts } = lines[0] as Checked;
    const found = new Map(rows.map(([name, digest]) => [name, digest]));
    for (const name of new Set([...expected.keys(), ...found.keys()])) {
      const allowed = [expected.get(name) ?? null, ...(open?.name === name ? [open.digest] : [])];
      expect(allowed).toContain(found.get(name) ?? null);
    }
    expect(rows.every(([, , whole]) => whole)).toBe(true);
    expect(stored.sort()).toEqual([...new Set(found.values())].sort());
    expect(drafts).toEqual([]);
    expected.clear();
    for (const [name, digest] of found) expected.set(name, digest);
    open = undefined;
    for (const line of lines.slice(1)) {
      if ("begin" in line) open = { name: line.begin, digest: line.digest };
      else if ("end" in line) {
        seen.installs++;
        expected.set(line.end, line.digest);
        open = undefined;
      }
    }
    if (open) seen.open++;
    seen.drafts += readdirSync(join(directory, "adapters", ".drafts")).length;
  }
  expect(seen.installs).toBeGreaterThan(0);
  expect(seen.open).toBeGreaterThan(KILLS / 2);
  expect(seen.drafts).toBeGreaterThan(0);
});
