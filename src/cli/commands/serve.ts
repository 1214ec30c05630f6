/** @file `milora serve`: one backbone and many adapters behind OpenAI's API. */
import { setFlagsFromString } from "node:v8";
import { type Command, Option } from "commander";
import { InputError } from "../../base/index.ts";
import { environmentSettings, parseServerConfig, qualified, Server, type ServerConfig } from "../../serving/index.ts";
import { readConfigFile } from "../../training/index.ts";
import { collect, deviceFlag, examples, integer, jsonFlag, threadsFlag, weightsFlag } from "../flags.ts";
import { untilTold } from "../interrupt.ts";
import { merge, parseSettings, type Settings } from "../settings.ts";
import { note, paint, print, printJson } from "../terminal.ts";

interface Flags {
  readonly config?: string;
  readonly set?: string[];
  readonly model?: string;
  readonly name?: string;
  readonly weights?: string;
  readonly device?: string;
  readonly chatTemplate?: string;
  readonly threads?: number;
  readonly adapter?: string[];
  readonly preload?: string[];
  readonly adapterDir?: string[];
  readonly data?: string;
  readonly database?: string;
  readonly adapterStore?: string;
  readonly runs?: string[];
  readonly host?: string;
  readonly port?: number;
  readonly auth?: string;
  readonly maxBatch?: number;
  readonly context?: number;
  readonly logLevel?: string;
  readonly logPrompts?: boolean;
  readonly json?: boolean;
}

export function configure(command: Command): void {
  examples(
    command
      .option("--config <file>", "settings in YAML or JSON; flags win over the environment, that over the file")
      .option("--set <key=value>", "one setting of the config, e.g. limits.maxWaiting=64; may be repeated", collect)
      .option("--model <dir>", "backbone: a Hugging Face directory, a .gguf file, or ORG/NAME once pulled")
      .option("--name <name>", "what clients call the backbone (default: the last part of --model)")
      .addOption(weightsFlag())
      .addOption(deviceFlag())
      .option("--chat-template <file>", "Jinja file for chats, or alpaca (default: the model's own template)")
      .option("--adapter <name=dir>", "install an adapter for all tenants; may be repeated", collect)
      .option("--preload <name>", "load an installed adapter now and keep it in memory; may be repeated", collect)
      .option("--adapter-dir <dir>", "POST /v1/load_lora_adapter may read below it; may be repeated", collect)
      .option("--data <dir>", "installed adapters, and the database without --database (default: milora-data)")
      .option("--database <url>", "PostgreSQL that several servers may share (default: the environment's DATABASE_URL)")
      .option(
        "--adapter-store <url>",
        "s3://BUCKET/PREFIX that has the adapters' files (default: a directory in --data)",
      )
      .option("--runs <dir>", "folder of training runs that the studio shows; may be repeated", collect)
      .option("--host <address>", "address to listen on (default: 127.0.0.1)")
      .option("--port <n>", "port to listen on, 0 for a free one (default: 8000)", integer(0))
      .addOption(
        new Option(
          "--auth <mode>",
          "auto: no keys on the loopback address until tenants or keys are made; required; open",
        ).choices(["auto", "required", "open"]),
      )
      .option("--max-batch <n>", "sequences that decode together (default: 16)", integer(1))
      .option("--context <n>", "most tokens of a prompt with its answer (default: the backbone's)", integer(1))
      .addOption(threadsFlag())
      .addOption(
        new Option("--log-level <level>", "least level of the log on stderr (default: info)").choices([
          "trace",
          "debug",
          "info",
          "warn",
          "error",
          "silent",
        ]),
      )
      .option("--log-prompts", "also log prompts and answers")
      .addOption(jsonFlag())
      .action(serve),
    [
      "milora serve --model assets/tiny-llama",
      "milora serve --model DIR --weights int4 --adapter subjects=runs/demo/subjects-milora/best",
      "milora serve --model DIR --runs runs",
      "DATABASE_URL=postgres://USER:PASSWORD@HOST/milora milora serve --model DIR --data /shared/milora",
      "milora serve --config serve.yaml --host 0.0.0.0 --port 8080",
      "MILORA_SERVE_LIMITS__MAX_BATCH=32 milora serve --model DIR --port 0 --json",
    ],
  );
}

/**
 * JavaScript's heap, some 60 MiB of a server, may double before it is searched for garbage. Left to itself it is searched when it
 * has grown by a fifth, with as many threads as there are: 0.1 s of processor time, which those who decode wait for.
 */
const HEAP_GROWTH_PERCENT = 100;

async function serve(flags: Flags): Promise<void> {
  const config = configOf(flags);
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWTH_PERCENT}`);
  const started = performance.now();
  const server = await Server.start(config);
  const seconds = (performance.now() - started) / 1000;
  await announce(server, config, seconds, flags.json ?? false);
  await untilTold();
  await server.stop();
}

/** Flags over the environment over the file. */
function configOf(flags: Flags): ServerConfig {
  const file = flags.config === undefined ? {} : (readConfigFile(flags.config) as Settings);
  const environment = parseSettings(environmentSettings(process.env));
  const settings = [environment, parseSettings(flags.set ?? []), settingsOf(flags)].reduce(merge, file);
  if (settings.model === undefined) throw new InputError("FLAG_INVALID", "serve", "needs --model");
  return parseServerConfig(settings, flags.config ?? "serve");
}

function settingsOf({ adapter, preload, adapterDir, runs, maxBatch, ...flags }: Flags): Settings {
  const same = [
    "model",
    "name",
    "weights",
    "device",
    "threads",
    "data",
    "database",
    "adapterStore",
    "host",
    "port",
    "auth",
    "context",
    "chatTemplate",
  ] as const;
  const log = ["logLevel", "logPrompts"] as const;
  return {
    ...Object.fromEntries([...same, ...log].flatMap((key) => (flags[key] === undefined ? [] : [[key, flags[key]]]))),
    ...(maxBatch !== undefined && { limits: { maxBatch } }),
    ...(adapter && { adapters: Object.fromEntries(adapter.map(adapterOf)) }),
    ...(preload && { preload }),
    ...(adapterDir && { adapterDirectories: adapterDir }),
    ...(runs && { runs }),
  };
}

function adapterOf(text: string): [string, string] {
  const at = text.indexOf("=");
  if (at < 1) throw new InputError("FLAG_INVALID", "--adapter", `"${text}" is not of the form NAME=DIR`);
  return [text.slice(0, at), text.slice(at + 1)];
}

async function announce(
  { url, services }: Server,
  { data, limits }: ServerConfig,
  seconds: number,
  json: boolean,
): Promise<void> {
  const { base, registry, engine, open } = services;
  const adapters = (await registry.all()).map(qualified);
  const { maxBatch } = limits;
  if (json) {
    const backbone = engine.backbone.digest;
    printJson({
      url,
      pid: process.pid,
      model: base,
      backbone,
      adapters,
      auth: open ? "open" : "required",
      data,
      maxBatch,
      seconds,
    });
    return;
  }
  const key = open ? "" : ' -H "Authorization: Bearer $KEY"';
  const shown = adapters.length > 8 ? [...adapters.slice(0, 8), `and ${adapters.length - 8} more`] : adapters;
  print(`${paint("bold", url)}  ready after ${seconds.toFixed(1)} s, up to ${maxBatch} sequences at a time`);
  print(`  models    ${[base, ...shown].join(", ")}`);
  print(`  studio    ${url}/studio/`);
  print(`  docs      ${url}/docs`);
  print(`  metrics   ${url}/metrics`);
  print(
    `  keys      ${open ? "none needed: everybody who reaches it is the tenant default" : "needed: milora keys create"}`,
  );
  print(`  try       curl ${url}/v1/completions${key} -H "content-type: application/json" \\`);
  print(`              -d '{"model": "${adapters[0] ?? base}", "prompt": "Hello", "max_tokens": 16}'`);
  if (process.stdout.isTTY) note(paint("dim", "Ctrl-C ends it once running answers are done", process.stderr));
}
