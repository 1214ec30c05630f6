/** @file `milora generate`: streams a continuation of a prompt to stdout. */
import { readFileSync } from "node:fs";
import { type Command, Option } from "commander";
import { InputError } from "../../base/index.ts";
import type { GenerationRequest, GenerationResult, SamplingOptions } from "../../generation/index.ts";
import type { Tokenizer } from "../../models/index.ts";
import type { DeviceName } from "../../runtime/index.ts";
import { renderPrompt } from "../../training/index.ts";
import {
  adapterFlag,
  collect,
  deviceFlag,
  examples,
  integer,
  jsonFlag,
  modelFlag,
  number,
  threadsFlag,
  weightsFlag,
} from "../flags.ts";
import { InterruptError, onInterrupt } from "../interrupt.ts";
import { type Opened, open } from "../open.ts";
import { drawRoutes } from "../routes.ts";
import { note, paint, print, printJson } from "../terminal.ts";

interface Flags {
  readonly model: string;
  readonly adapter?: string;
  readonly weights?: "float32" | "int8" | "int4";
  readonly threads?: number;
  readonly device?: DeviceName;
  readonly prompt?: string;
  readonly instruction?: string;
  readonly chat?: string;
  readonly system?: string;
  readonly maxNewTokens: number;
  readonly temperature: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly seed: number;
  readonly beams: number;
  readonly stop?: string[];
  readonly route?: boolean;
  readonly json?: boolean;
}

export function configure(command: Command): void {
  examples(
    command
      .addOption(modelFlag())
      .addOption(adapterFlag())
      .addOption(
        new Option("--prompt <text>", "text to continue as it is; without any prompt flag, stdin is").conflicts([
          "instruction",
          "chat",
        ]),
      )
      .addOption(
        new Option(
          "--instruction <text>",
          "an instruction, put into the Alpaca template that adapters are trained with",
        ).conflicts("chat"),
      )
      .option("--chat <text>", "a user's message, put into the model's own chat template")
      .option("--system <text>", "system message before --chat")
      .option("--max-new-tokens <n>", "longest continuation", integer(1), 128)
      .option("--temperature <t>", "0 takes the likeliest token", number(0), 0)
      .option("--top-p <p>", "sample from the fewest tokens that hold this probability", number(0, 1))
      .option("--top-k <k>", "sample from the k likeliest tokens", integer(1))
      .option("--seed <n>", "seed of the sampling", integer(0), 0)
      .option("--beams <n>", "beam search with n beams; nothing is streamed then", integer(1), 1)
      .option("--stop <text>", "end before this text; may be repeated", collect)
      .option("--route", "show which experts each layer chose (routed adapters)")
      .addOption(weightsFlag())
      .addOption(threadsFlag())
      .addOption(deviceFlag())
      .addOption(jsonFlag())
      .action(generate),
    [
      'milora generate --model assets/tiny-llama --prompt "The cell membrane"',
      'milora generate --model assets/tiny-llama --adapter runs/demo/subjects-milora/best --route --instruction "Which subject …"',
      "echo Hello | milora generate --model DIR --temperature 0.8 --top-p 0.95 --json",
    ],
  );
}

async function generate(flags: Flags): Promise<void> {
  if (flags.system !== undefined && flags.chat === undefined)
    throw new InputError("FLAG_INVALID", "--system", "needs --chat");
  using interrupt = onInterrupt();
  using opened = await open(flags);
  const { adapter, backbone } = opened;
  if (flags.route && !adapter?.method.properties.routed) {
    throw new InputError("FLAG_INVALID", "--route", "needs an --adapter of a method that routes, such as milora");
  }
  const options: SamplingOptions = {
    maxNewTokens: flags.maxNewTokens,
    temperature: flags.temperature,
    seed: flags.seed,
    beams: flags.beams,
    ...(flags.topP === undefined ? {} : { topP: flags.topP }),
    ...(flags.topK === undefined ? {} : { topK: flags.topK }),
    ...(flags.stop === undefined ? {} : { stop: flags.stop }),
  };
  const prompt = encodePrompt(flags, backbone.tokenizer);
  const request = { prompt, options, signal: interrupt.signal, ...(adapter ? { adapter } : {}) };
  const result = await answer(opened, request, flags);
  if (flags.json) printJson(result);
  else report(result, opened, flags);
  if (result.finishReason === "cancelled") throw new InterruptError();
}

function encodePrompt(flags: Flags, tokenizer: Tokenizer): number[] {
  if (flags.chat !== undefined) {
    const system = flags.system === undefined ? [] : [{ role: "system", content: flags.system }];
    const messages = [...system, { role: "user", content: flags.chat }];
    return tokenizer.encode(tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true }), {
      addSpecialTokens: false,
    });
  }
  const row = { number: 1, form: "instruction", input: "", output: "" } as const;
  if (flags.instruction !== undefined) {
    return renderPrompt({ ...row, instruction: flags.instruction }, tokenizer, { template: "alpaca" });
  }
  const text = flags.prompt ?? readStdin();
  if (text === "") {
    const problem = flags.prompt === undefined ? "is empty: stdin held nothing, and no --prompt, --instruction or --chat is given" : "is empty"; // biome-ignore format: one line
    throw new InputError("PROMPT_INVALID", "prompt", problem);
  }
  return renderPrompt({ ...row, instruction: text }, tokenizer, { template: "none" });
}

function readStdin(): string {
  if (process.stdin.isTTY) {
    throw new InputError("FLAG_INVALID", "prompt", "give --prompt, --instruction or --chat, or pipe the text in");
  }
  return readFileSync(0, "utf8").replace(/\n$/, "");
}

/** Streams to stdout where that is possible and nobody asked for JSON. */
async function answer({ engine }: Opened, request: GenerationRequest, flags: Flags): Promise<GenerationResult> {
  if (flags.json || flags.beams > 1) {
    const [result] = await engine.generate([request]);
    if (!flags.json) process.stdout.write(result!.text);
    return result!;
  }
  const stream = engine.stream(request);
  for (;;) {
    const step = await stream.next();
    if (step.done) return step.value;
    process.stdout.write(step.value.text);
  }
}

function report(result: GenerationResult, { adapter }: Opened, flags: Flags): void {
  if (!result.text.endsWith("\n")) print();
  if (flags.route && result.route && adapter) {
    const experts = adapter.method.routing!(adapter.config).experts;
    note(`\n${drawRoutes(["experts of this prompt"], [result.route.experts], experts, process.stderr)}`);
  }
  if (process.stderr.isTTY) {
    const { prefillMs, decodeMs, steps } = result.timing;
    const speed = steps > 0 ? ` · ${(steps / (decodeMs / 1000)).toFixed(0)} tokens/s` : "";
    note(paint("dim", `prompt ${prefillMs.toFixed(0)} ms · ${result.tokens.length} tokens${speed}`, process.stderr));
  }
}
