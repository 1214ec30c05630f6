/** @file Judgements on disk, each by all that decides it, so that none is paid for twice. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InputError, readJson, reasonOf, writeFileAtomic } from "../../base/index.ts";
import { digestOf } from "../store.ts";
import type { JudgeMessage } from "./prompts.ts";
import type { JudgeAnswer, JudgeEndpoint } from "./protocol.ts";

const answerSchema = z.object({
  text: z.string(),
  finishReason: z.string().nullable(),
  usage: z.object({ promptTokens: z.number(), completionTokens: z.number() }).nullable(),
});

const recordSchema = z.object({
  url: z.string(),
  model: z.string(),
  temperature: z.number().nullable(),
  maxTokens: z.number(),
  messages: z.array(z.object({ role: z.enum(["system", "user"]), content: z.string() })),
  answer: answerSchema,
  made: z.string(),
});

/** A directory with a file for each judgement. */
export class JudgmentCache {
  readonly #directory: string;
  readonly #known = new Map<string, JudgeAnswer>();
  readonly #decided: { url: string; model: string; temperature: number | null; maxTokens: number };

  constructor(directory: string, { url, model, temperature, maxTokens }: JudgeEndpoint) {
    this.#directory = directory;
    this.#decided = { url, model, temperature: temperature ?? null, maxTokens };
  }

  keyOf(messages: readonly JudgeMessage[]): string {
    return digestOf([this.#decided, messages]);
  }

  #path(key: string): string {
    return join(this.#directory, key.slice(0, 2), `${key}.json`);
  }

  /** A file that is no judgement, or one of something else, counts as none. */
  get(key: string): JudgeAnswer | undefined {
    const known = this.#known.get(key);
    const path = this.#path(key);
    if (known || !existsSync(path)) return known;
    try {
      const { url, model, temperature, maxTokens, messages, answer } = readJson(path, recordSchema);
      if (digestOf([{ url, model, temperature, maxTokens }, messages]) !== key) return undefined;
      this.#known.set(key, answer);
      return answer;
    } catch {
      return undefined;
    }
  }

  put(key: string, messages: readonly JudgeMessage[], answer: JudgeAnswer): void {
    this.#known.set(key, answer);
    const record = { ...this.#decided, messages, answer, made: new Date().toISOString() };
    try {
      writeFileAtomic(this.#path(key), `${JSON.stringify(record)}\n`);
    } catch (error) {
      throw new InputError("OUTPUT_UNWRITABLE", this.#directory, reasonOf(error), { cause: error });
    }
  }
}
