/** @file Finds the blocks of code in Markdown, and does what a reader would: runs commands, programs, writes files. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, openSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parse as parseYaml } from "yaml";
import { root, run } from "./project.ts";

/**
 * What a block may need that is not everywhere: ```sh needs=hub. Such blocks are counted, and commands in them parsed; those that
 * need a service are run where the check has started one.
 */
export const NEEDS = {
  checkout: "builds or tests the checkout itself, which continuous integration does",
  gpu: "a GPU",
  registry: "milora in the package registry; package.check.ts installs it from a file",
  hub: "a download from the Hugging Face hub",
  judge: "a judge that is paid",
  postgres: "a PostgreSQL server",
  objects: "a PostgreSQL server and a store of objects",
  python: "Python and its packages",
  hours: "hours, or weights of 7 billion parameters",
} as const;

export interface Block {
  readonly document: string;
  /** Of its fence, from 1. */
  readonly line: number;
  readonly language: string;
  readonly needs: keyof typeof NEEDS | undefined;
  /** Goes on running, until the document ends: a server. */
  readonly background: boolean;
  /** The file that a reader is told to write. */
  readonly file: string | undefined;
  readonly text: string;
}

const WORDS = /^(needs=(?<needs>\w+)|background|file=(?<file>[\w./-]+))$/;

/** All fenced blocks of a document. Throws when the words after a language are none of those above. */
export function blocksOf(document: string, markdown = readFileSync(join(root, document), "utf8")): Block[] {
  return [...markdown.matchAll(/^```(\S*)(.*)\n([\s\S]*?)^```$/gm)].map((match) => {
    const line = markdown.slice(0, match.index).split("\n").length;
    const words = match[2]!.split(" ").filter(Boolean);
    const parts = words.map((word) => WORDS.exec(word));
    const needs = parts.map((part) => part?.groups?.needs).find(Boolean);
    if (parts.includes(null) || (needs !== undefined && !(needs in NEEDS))) {
      throw new Error(`${document}:${line}: what is ${JSON.stringify(match[2]!.trim())}?`);
    }
    return {
      document,
      line,
      language: match[1]!,
      needs: needs as Block["needs"],
      background: words.includes("background"),
      file: parts.map((part) => part?.groups?.file).find(Boolean),
      text: match[3]!,
    };
  });
}

/** Languages of blocks that show something and ask for nothing to be done. */
const SHOWN = ["text", "python"];
const DATA: Readonly<Record<string, (text: string) => unknown>> = {
  json: (text) =>
    text.trim().includes("}\n{")
      ? text
          .trim()
          .split("\n")
          .map((line) => JSON.parse(line))
      : JSON.parse(text),
  yaml: (text) => parseYaml(text),
  csv: () => {},
  jinja: () => {},
};

/** Throws when a block of data is not what its language says, or when the language is unknown. */
export function checkBlock(block: Block): void {
  if (["sh", "ts", ...SHOWN].includes(block.language)) return;
  const check = DATA[block.language];
  if (!check)
    throw new Error(
      `${placeOf(block)}: nobody knows what to do with ${block.language || "a block without a language"}`,
    );
  check(block.text);
}

export const placeOf = ({ document, line }: Block): string => `${document}:${line}`;

/** Type checks and compiles the programs of documents, in one go; gives the path of what can be run by place. */
export async function compilePrograms(path: string, blocks: readonly Block[]): Promise<Map<string, string>> {
  const programs = blocks.filter(({ language }) => language === "ts");
  const names = programs.map((_, index) => `program-${index}.mts`);
  for (const [index, { text }] of programs.entries()) writeFileSync(join(path, names[index]!), text);
  mkdirSync(join(path, "node_modules/@types"), { recursive: true });
  for (const name of ["@types/node", "undici-types", "openai", "typescript"]) {
    symlinkSync(join(root, "node_modules", name), join(path, "node_modules", name));
  }
  symlinkSync(root, join(path, "node_modules/milora"));
  const compilerOptions = { module: "nodenext", target: "es2022", strict: true, types: ["node"], skipLibCheck: true };
  writeFileSync(join(path, "tsconfig.json"), JSON.stringify({ compilerOptions, files: names }));
  if (names.length > 0) await run(process.execPath, [join(root, "node_modules/typescript/bin/tsc")], { cwd: path });
  return new Map(programs.map((block, index) => [placeOf(block), join(path, names[index]!.replace(/mts$/, "mjs"))]));
}

export interface Done {
  readonly place: string;
  readonly seconds: number;
}

export interface Following {
  /** Trains for a few steps only. */
  readonly quick?: boolean;
  /** What can be provided of that which blocks need, each with the words of documents that stand for it. */
  readonly services?: Services;
  /** What readers of this page have already: a command. */
  readonly before?: string | undefined;
  /** Told of each block that was done. */
  readonly report?: (done: Done) => void;
}

export type Services = Partial<Record<keyof typeof NEEDS, Readonly<Record<string, string>>>>;

/** Whether a block is run where there are these services. */
export const isRun = ({ needs }: Block, services: Services = {}): boolean => needs === undefined || needs in services;

/** Does all that a document says, in its order, in a directory with the bundled model and data. */
export async function follow(path: string, document: string, options: Following = {}): Promise<void> {
  const { quick = false, services = {}, before, report } = options;
  const port = await freePort();
  const here = ({ text, needs }: Block): string => {
    // What is said of other machines is done on this one, where nobody else sees it.
    const places = { "127.0.0.1:8000": `127.0.0.1:${port}`, "0.0.0.0": "127.0.0.1" };
    const remote = {
      "/shared": join(path, "shared"),
      "/var/lib": join(path, "var"),
      "models/mine": "assets/tiny-llama",
    };
    const words = Object.entries({ ...places, ...(needs && { ...remote, ...services[needs] }) });
    return words.reduce((said, [from, to]) => said.replaceAll(from, to), text);
  };
  const all = blocksOf(document).filter((block) => isRun(block, services));
  const blocks = all.map((block) => ({ ...block, text: here(block) }));
  const programs = await compilePrograms(path, blocks);
  for (const name of ["assets", "configs", "docs"]) symlinkSync(join(root, name), join(path, name));
  for (const name of ["shared", "var"]) mkdirSync(join(path, name));
  mkdirSync(join(path, "node_modules/.bin"));
  writeFileSync(join(path, "node_modules/.bin/milora"), wrapper(quick), { mode: 0o755 });
  const env = {
    ...process.env,
    PATH: `${join(path, "node_modules/.bin")}:${process.env.PATH}`,
    MILORA_CACHE: join(path, "cache"),
    MILORA_SERVE_PORT: String(port),
    MILORA_DEBUG: undefined,
    DATABASE_URL: undefined,
    NO_COLOR: "1",
    NODE_ENV: undefined,
  };
  const servers: ChildProcess[] = [];
  try {
    if (before !== undefined) await run("bash", ["-c", script(before)], { cwd: path, env, seconds: SECONDS });
    for (const block of blocks) {
      checkBlock(block);
      const begin = performance.now();
      const { text } = block;
      if (block.file !== undefined) {
        mkdirSync(dirname(join(path, block.file)), { recursive: true });
        writeFileSync(join(path, block.file), text);
      } else if (block.language === "ts") {
        const program = script(`"${process.execPath}" "${programs.get(placeOf(block))}"`);
        await attempt(block, () => run("bash", ["-c", program], { cwd: path, env, seconds: SECONDS }));
      } else if (block.language === "sh" && block.background) {
        // The first is the one that the page speaks to.
        const own = servers.length === 0 ? port : await freePort();
        const file = join(path, `server-${servers.length}.log`);
        const log = openSync(file, "w");
        const command = script(`export MILORA_SERVE_PORT=${own}\n${text}`);
        const server = spawn("bash", ["-c", command], {
          ...{ cwd: path, env, stdio: ["ignore", log, log], detached: true },
        });
        servers.push(server);
        const said = () => readFileSync(file, "utf8");
        const asked = text.includes("milora studio") ? "studio/" : "readyz";
        await attempt(block, () => ready(`http://127.0.0.1:${own}/${asked}`, server, said));
      } else if (block.language === "sh") {
        await attempt(block, () => run("bash", ["-c", script(text)], { cwd: path, env, seconds: SECONDS }));
      }
      report?.({ place: placeOf(block), seconds: (performance.now() - begin) / 1000 });
    }
  } finally {
    for (const server of servers) await end(server);
  }
}

/** Blocks share their variables, as in one terminal. `npx` finds what is installed, here the wrapper. */
const script = (text: string): string =>
  `set -euo pipefail\nnpx() { "$@"; }\nif [ -f .variables ]; then . ./.variables; fi\n${text}\nexport -p > .variables`;

/** A worker ends with its work, so that the page goes on; the studio, as servers, on a port that is free. */
const wrapper = (quick: boolean): string => `#!/bin/sh
case "$1" in
worker) set -- "$@" --drain ;;
studio) set -- "$@" --port "$MILORA_SERVE_PORT" ;;
${quick ? 'train) set -- "$@" --quick --dev 0.02 ;;\ndemo) set -- "$@" --quick ;;' : ""}
esac
exec "${process.execPath}" "${join(root, "dist/cli/main.js")}" "$@"
`;

/** A block may take so long; none takes a tenth of it where nobody else computes. */
const SECONDS = 3600;

async function attempt(block: Block, action: () => Promise<unknown>): Promise<void> {
  try {
    await action();
  } catch (error) {
    throw new Error(`${placeOf(block)}: ${(error as Error).message}`, { cause: error });
  }
}

async function ready(url: string, server: ChildProcess, said: () => string): Promise<void> {
  for (let tries = 0; tries < 6000 && server.exitCode === null; tries++) {
    const answer = await fetch(url).catch(() => undefined);
    if (answer?.ok) return;
    await sleep(100);
  }
  throw new Error(`the server did not become ready\n${said()}`);
}

/** The whole group: the shell and what it runs. */
async function end(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null || server.pid === undefined) return;
  const gone = once(server, "exit");
  process.kill(-server.pid, "SIGTERM");
  await gone;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("no port is free");
  return address.port;
}
