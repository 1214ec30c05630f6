/** @file Packs milora as for the registry, and puts the tarball into a project of its own, as its users have it. */
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

export const root = join(import.meta.dirname, "../..");

export interface PackedFile {
  readonly path: string;
  readonly size: number;
}

export interface Packed {
  readonly files: readonly PackedFile[];
  /** Bytes of the tarball, and of what is in it. */
  readonly size: number;
  readonly unpackedSize: number;
  readonly filename: string;
}

export interface Manifest {
  readonly dependencies: Readonly<Record<string, string>>;
  readonly devDependencies: Readonly<Record<string, string>>;
}

export const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as Manifest;

/** A directory below the system's temporary one; `remove` it at the end. */
export function scratch(): { readonly path: string; remove(): void } {
  const path = mkdtempSync(join(tmpdir(), "milora-package-"));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** `npm pack` in a checkout that is built; the tarball goes into a folder. */
export async function pack(into: string, checkout = root): Promise<Packed> {
  const args = ["pack", "--json", "--ignore-scripts", "--pack-destination", into];
  const { stdout } = await run("npm", args, { cwd: checkout });
  return (JSON.parse(stdout) as Packed[])[0]!;
}

export interface Finished {
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end; what it printed is in the error when it fails. */
export function run(
  program: string,
  args: readonly string[],
  options: { readonly cwd: string; readonly env?: NodeJS.ProcessEnv; readonly seconds?: number },
): Promise<Finished> {
  const env = { ...process.env, NO_COLOR: "1", FORCE_COLOR: undefined, NODE_ENV: undefined, ...options.env };
  const settings = { cwd: options.cwd, env, maxBuffer: 2 ** 26, timeout: 1000 * (options.seconds ?? 600) };
  return new Promise((resolve, reject) => {
    execFile(program, args, settings, (error, stdout, stderr) => {
      if (!error) resolve({ stdout, stderr });
      else reject(new Error(`${program} ${args.join(" ")}\n${stdout}\n${stderr}`.trim(), { cause: error }));
    });
  });
}

/**
 * A project with nothing but what the package declares: its files as in the tarball, its dependencies linked to those
 * installed here, those of development absent.
 */
export async function project(path: string): Promise<Packed> {
  const packed = await pack(path);
  const modules = join(path, "node_modules");
  mkdirSync(modules, { recursive: true });
  await run("tar", ["xzf", join(path, packed.filename), "-C", modules], { cwd: path });
  renameSync(join(modules, "package"), join(modules, "milora"));
  for (const name of Object.keys(manifest.dependencies)) link(modules, name);
  writeFileSync(join(path, "package.json"), '{ "private": true, "type": "module" }\n');
  return packed;
}

/** Links an installed package into a project's node_modules. */
export function link(modules: string, name: string): void {
  const target = join(modules, name);
  mkdirSync(dirname(target), { recursive: true });
  symlinkSync(join(root, "node_modules", name), target);
}

/** What a TypeScript user may write, with milora's types used where they matter. */
export const PROGRAM = `
import { Adapter, Backbone, Engine, type EngineOptions, graph, InputError, loadRows, renderPrompt, trainingConfigSchema } from "milora";

const options: EngineOptions = { maxBatch: 2 };
using backbone = await Backbone.load(process.argv[2] as string);
using engine = Engine.create(backbone, options);
const prompt: number[] = backbone.tokenizer.encode("The cell membrane");
const [result] = await engine.generate([{ prompt, options: { maxNewTokens: 8 } }]);
const text: string = result!.text;
const wrong = trainingConfigSchema.safeParse({ nonsense: true });
const load: (directory: string, config: typeof backbone.config) => Adapter = Adapter.load;
try {
  load("nowhere", backbone.config);
} catch (error) {
  if (!(error instanceof InputError)) throw error;
  console.log(JSON.stringify({ text, valid: wrong.success, code: error.code, graph: typeof graph, rows: typeof loadRows, render: typeof renderPrompt }));
}
`;

/** How users set TypeScript up: as Node resolves, old and new, and as bundlers do. */
export const RESOLUTIONS = [
  { module: "node16", moduleResolution: "node16" },
  { module: "nodenext", moduleResolution: "nodenext" },
  { module: "esnext", moduleResolution: "bundler" },
] as const;

/** Compiles the program in a project, libraries' types checked too; gives the path of what can be run. */
export async function compile(path: string, resolution: (typeof RESOLUTIONS)[number], tsc: string): Promise<string> {
  const outDir = `out-${resolution.moduleResolution}`;
  writeFileSync(join(path, "use.mts"), PROGRAM);
  const compilerOptions = {
    ...resolution,
    outDir,
    target: "es2022",
    strict: true,
    types: ["node"],
    skipLibCheck: false,
  };
  const config = join(path, `tsconfig.${resolution.moduleResolution}.json`);
  writeFileSync(config, JSON.stringify({ compilerOptions, files: ["use.mts"] }));
  await run(process.execPath, [tsc, "-p", config], { cwd: path });
  return join(path, outDir, "use.mjs");
}
