/** @file What can go wrong while generating: a failure of the engine, and how requests are refused. */
import { InputError, MiloraError } from "../base/index.ts";

/** Not the user's input but the engine's state or the numbers it was given. */
export type GenerationErrorCode =
  /** The engine was disposed. */
  | "ENGINE_CLOSED"
  /** The engine cannot be disposed while calls are under way. */
  | "ENGINE_BUSY"
  /** The logits hold NaN, or nothing but -Infinity. */
  | "LOGITS_NOT_FINITE"
  /** An adapter went while a request used it. */
  | "ADAPTER_DISPOSED"
  /** The scheduler has as many requests waiting as it may have, in all or of one tenant. */
  | "OVERLOADED"
  /** A request's deadline passed before its answer was whole. */
  | "DEADLINE_EXCEEDED"
  /** The scheduler is being shut down. */
  | "DRAINING";

/** What keeps a request from its answer though nothing is wrong with it: `code` says what. */
export class GenerationError extends MiloraError {
  declare readonly code: GenerationErrorCode;
  /** OVERLOADED: when it is worth trying again. */
  readonly retryAfterSeconds?: number;

  constructor(
    code: GenerationErrorCode,
    message: string,
    options: { cause?: unknown; retryAfterSeconds?: number } = {},
  ) {
    super(code, message, { cause: options.cause, exitCode: 1 });
    if (options.retryAfterSeconds !== undefined) this.retryAfterSeconds = options.retryAfterSeconds;
  }
}

/** What the model returns cannot be chosen from. */
export function logitsNotFinite(): GenerationError {
  return new GenerationError(
    "LOGITS_NOT_FINITE",
    "the model's logits are not numbers; the weights of the backbone or the adapter are damaged",
  );
}

/** Codes of the `InputError`s of this room. */
export type RequestErrorCode =
  /** The prompt, or prompt + maxNewTokens, does not fit the context. */
  | "PROMPT_TOO_LONG"
  /** No token, or token ids outside the vocabulary. */
  | "PROMPT_INVALID"
  | "SAMPLING_OPTIONS_INVALID"
  /** The adapter was made for another backbone. */
  | "ADAPTER_MISMATCH"
  /** The adapter's method does not choose experts for a prompt. */
  | "NOT_ROUTED"
  /** Text is asked for (stop strings), and the backbone has no tokenizer. */
  | "TOKENIZER_MISSING";

/** Collects the problems of many requests, so that all are told at once; the first problem's code is the error's. */
export class Problems {
  readonly #list: { code: RequestErrorCode; text: string }[] = [];

  add(code: RequestErrorCode, text: string): void {
    this.#list.push({ code, text });
  }

  /** @param where what was asked for, as in the error's message */
  throwIfAny(where: string): void {
    const first = this.#list[0];
    if (!first) return;
    throw new InputError(
      first.code,
      where,
      this.#list.map((problem) => problem.text),
    );
  }
}
