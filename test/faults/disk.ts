/** @file Disks that are full, and files that are cut or have a bit flipped. */
import { execFileSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { count, faultsOf, must, type Outcome, run, type Settings, sumOf, told, until } from "./children.ts";
import { checkRun, isRun, outcomeOf, trainArgs, WRITERS } from "./kills.ts";
import { archivesOf, ask, newData, serve } from "./server.ts";

const sizeOf = (directory: string): number =>
  readdirSync(directory, { recursive: true, encoding: "utf8" }).reduce((sum, name) => sum + statSync(join(directory, name)).size, 0); // biome-ignore format: one line

/** A file system of its own of a given size; needs root and Linux. */
class Disk implements Disposable {
  readonly path: string;

  constructor(path: string, bytes: number) {
    mkdirSync(path, { recursive: true });
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${Math.max(4096, Math.floor(bytes))}`, "tmpfs", path]);
    this.path = path;
  }

  grow(bytes: number): void {
    execFileSync("mount", ["-o", `remount,size=${bytes}`, this.path]);
  }

  [Symbol.dispose](): void {
    execFileSync("umount", ["-l", this.path]);
  }
}

/** Why no disks can be made here. */
export function noDisks({ directory }: Settings): string | undefined {
  try {
    new Disk(join(directory, "probe"), 65_536)[Symbol.dispose]();
    return undefined;
  } catch {
    return "needs Linux and root, to mount a tmpfs";
  }
}

export async function fullWhileTraining(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const straight = join(settings.directory, "straight");
  const first = await run(settings, trainArgs(settings, straight));
  must(first.code === 0, first.stderr);
  const [wanted, bytes] = [outcomeOf(straight), sizeOf(straight)];
  for (const _ of faultsOf(settings)) {
    using disk = new Disk(join(settings.directory, "disk"), bytes * settings.random() * 1.6);
    const output = join(disk.path, "run");
    const ended = await run(settings, trainArgs(settings, output));
    if (ended.code !== 0) must(told(ended), `not told as an error is: ${ended.code} ${ended.stderr}`);
    checkRun(output, settings.model);
    count(seen, ended.code === 0 ? "fitted" : "told, and resumed with more room");
    disk.grow(1 << 28);
    const resume = isRun(output) ? ["--resume"] : [];
    if (!isRun(output)) rmSync(output, { recursive: true, force: true });
    const resumed = await run(settings, [...trainArgs(settings, output), ...resume]);
    must(resumed.code === 0, `not resumed: ${resumed.stderr}`);
    must(outcomeOf(output) === wanted, "another outcome after a full disk");
  }
  return { scenario: "disk full while training", seen };
}

export async function fullWhileWriting(settings: Settings, name: string): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const whole = join(settings.directory, "whole");
  must((await run(settings, WRITERS[name]!(settings, whole))).code === 0, `${name} failed`);
  const [wanted, bytes] = [sumOf(whole), sizeOf(whole)];
  for (const _ of faultsOf(settings)) {
    using disk = new Disk(join(settings.directory, "disk"), bytes * settings.random() * 1.1);
    const output = join(disk.path, "output");
    const ended = await run(settings, WRITERS[name]!(settings, output));
    if (ended.code === 0) must(sumOf(output) === wanted, "not all there");
    else {
      must(told(ended), `not told as an error is: ${ended.code} ${ended.stderr}`);
      must(readdirSync(disk.path).length === 0, `left behind: ${readdirSync(disk.path).join(", ")}`);
    }
    count(seen, ended.code === 0 ? "fitted" : "told, nothing left");
  }
  return { scenario: `disk full while ${name}`, seen };
}

/** Uploads onto a full disk are refused; the server answers on, and takes them when there is room. */
export async function fullWhileServing(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const archives = archivesOf(settings, 2);
  using disk = new Disk(join(settings.directory, "disk"), 1 << 28);
  const data = join(disk.path, "data");
  const key = await newData(data);
  const { url, child, ended } = await serve(settings, data);
  const filler = join(disk.path, "filler");
  const completion = { model: "tiny", prompt: "The cell", max_tokens: 2 };
  for (const i of faultsOf(settings)) {
    const free = Number(execFileSync("df", ["--output=avail", "-B1", disk.path]).toString().split("\n")[1]);
    const room = Math.floor(archives[0]!.length * settings.random() * 0.9);
    execFileSync("fallocate", ["-l", String(Math.max(1, free - room)), filler]);
    const refused = await ask(url, key, "PUT", "/v1/adapters/x", archives[i % 2]);
    count(seen, `upload ${refused.status} ${refused.body.error?.code ?? ""}`.trim());
    await until(() => readdirSync(join(data, "adapters/.drafts")).length === 0, "no drafts");
    count(seen, `completion ${(await ask(url, key, "POST", "/v1/completions", completion)).status}`);
    rmSync(filler);
    must((await ask(url, key, "PUT", "/v1/adapters/x", archives[i % 2])).status === 201, "no upload with room");
    must((await ask(url, key, "POST", "/v1/completions", { ...completion, model: "x" })).status === 200, "no answer");
  }
  child.kill("SIGTERM");
  must((await ended) === 0, "the server did not end in peace");
  return { scenario: "disk full while serving and uploading", seen };
}

/** The data directory can be read only for a while: uploads are refused, answers go on, and all is well afterwards. */
export async function readOnlyWhileServing(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const archives = archivesOf(settings, 3);
  using disk = new Disk(join(settings.directory, "disk"), 1 << 28);
  const data = join(disk.path, "data");
  const key = await newData(data);
  const { url, child, ended } = await serve(settings, data);
  must((await ask(url, key, "PUT", "/v1/adapters/x", archives[0])).status === 201, "no upload");
  let [answered, kept] = [0, (await ask(url, key, "GET", "/v1/adapters")).body.data![0]!.digest];
  const answers = async (model: string): Promise<void> => {
    const { status, body } = await ask(url, key, "POST", "/v1/completions", {
      model,
      prompt: "The cell",
      max_tokens: 2,
    });
    must(status === 200, `${model}: ${status} ${body.error?.code}`);
    answered++;
  };
  for (const i of faultsOf(settings)) {
    // What is open for writing, as the log of the database, forbids it for the whole; a second mount above it does not.
    const place = i % 2 ? data : join(data, "adapters");
    execFileSync("mount", ["--bind", place, place]);
    execFileSync("mount", ["-o", "remount,ro,bind", place]);
    try {
      await ask(url, key, "DELETE", "/admin/v1/adapters/x/resident");
      const refused = await ask(url, key, "PUT", "/v1/adapters/x", archives[1 + (i % 2)]);
      must(refused.status === 507 && refused.body.error?.code === "OUTPUT_UNWRITABLE", `an upload: ${refused.status} ${refused.body.error?.code}`); // biome-ignore format: one line
      count(seen, "uploads refused (507)");
      for (const model of ["tiny", "x"]) await answers(model);
      count(seen, "completions", 2);
      const made = await ask(url, key, "POST", "/admin/v1/tenants", { id: `t${i}` });
      count(seen, `tenants, ${made.status}`);
    } finally {
      execFileSync("umount", ["-l", place]);
    }
    const listed = (await ask(url, key, "GET", "/v1/adapters")).body.data!;
    must(listed.length === 1 && listed[0]!.digest === kept, "a refused upload is there");
    const uploaded = await ask(url, key, "PUT", "/v1/adapters/x", archives[i % 3]);
    must(uploaded.status === 201, `no upload afterwards: ${uploaded.status}`);
    kept = uploaded.body.digest!;
    await answers("x");
    await until(() => readdirSync(join(data, "adapters/.drafts")).length === 0, "no drafts");
  }
  const usage = async (): Promise<number> => {
    const told = (await ask(url, key, "GET", "/admin/v1/usage?by=tenant")).body as unknown as { usage: { requests: number }[] }; // biome-ignore format: one line
    return told.usage.reduce((sum, { requests }) => sum + requests, 0);
  };
  await until(async () => (await usage()) === answered, `usage says ${await usage()} requests of ${answered}`, 20);
  child.kill("SIGTERM");
  must((await ended) === 0, "the server did not end in peace");
  return { scenario: "the data directory read-only while serving", seen };
}

/** One bit, or the end. */
export function damage(path: string, random: () => number): string {
  const bytes = readFileSync(path);
  if (bytes.length === 0 || random() < 0.3) {
    truncateSync(path, Math.floor(random() * bytes.length));
    return "cut";
  }
  const at = Math.floor(random() * bytes.length);
  bytes[at]! ^= 1 << Math.floor(random() * 8);
  writeFileSync(path, bytes);
  return "bit flipped";
}

const filesOf = (directory: string): string[] =>
  readdirSync(directory, { recursive: true, encoding: "utf8" }).filter((name) =>
    statSync(join(directory, name)).isFile(),
  );

/** A damaged checkpoint is refused, or what was damaged does not matter: never another outcome. */
export async function damagedCheckpoints(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const straight = join(settings.directory, "straight");
  const first = await run(settings, trainArgs(settings, straight));
  must(first.code === 0, first.stderr);
  const wanted = sumOf(join(straight, "best"));
  const half = join(settings.directory, "half");
  // Stopped on its way: some attempts come too late.
  const at = (step: number): string => join(half, `checkpoints/step-${step}`);
  while (!existsSync(at(6)) || existsSync(at(8))) {
    rmSync(half, { recursive: true, force: true });
    await run(settings, trainArgs(settings, half), { ms: 0, since: () => existsSync(at(6)) });
  }
  rmSync(join(half, "training.lock"), { force: true });
  const newest = readdirSync(join(half, "checkpoints")).filter((name) => name.startsWith("step-")).sort().at(-1)!; // biome-ignore format: one line
  for (const _ of faultsOf(settings)) {
    const copy = join(settings.directory, "copy");
    cpSync(half, copy, { recursive: true });
    const names = filesOf(join(copy, "checkpoints", newest));
    const name = names[Math.floor(settings.random() * names.length)]!;
    const how = damage(join(copy, "checkpoints", newest, name), settings.random);
    const ended = await run(settings, [...trainArgs(settings, copy), "--resume"]);
    if (ended.code === 0) must(sumOf(join(copy, "best")) === wanted, `${name}, ${how}: another outcome`);
    else must(told(ended), `${name}, ${how}: ${ended.code} ${ended.stderr}`);
    count(seen, `${how}: ${ended.code === 0 ? "made no difference" : "refused"}`);
    rmSync(copy, { recursive: true });
  }
  return { scenario: "damaged checkpoints, resumed", seen };
}

/** `milora model info --verify` finds every damage of a prepared model's weights. */
export async function damagedModels(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const whole = join(settings.directory, "prepared");
  must((await run(settings, WRITERS["preparing a model"]!(settings, whole))).code === 0, "not prepared");
  must((await run(settings, ["model", "info", whole, "--verify"])).code === 0, "not verified");
  for (const _ of faultsOf(settings)) {
    const copy = join(settings.directory, "copy");
    cpSync(whole, copy, { recursive: true });
    const name = filesOf(copy).find((file) => file.endsWith(".safetensors"))!;
    const how = damage(join(copy, name), settings.random);
    const ended = await run(settings, ["model", "info", copy, "--verify"]);
    must(told(ended), `${how} of ${name} was not found: ${ended.code} ${ended.stderr}`);
    count(seen, `${how}: found`);
    rmSync(copy, { recursive: true });
  }
  return { scenario: "damaged prepared weights, verified", seen };
}
