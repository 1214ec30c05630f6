/** @file The OpenAI protocol as far as judging needs it: one request, and what answers of all kinds mean. */
import { z } from "zod";
import { InputError, reasonOf } from "../../base/index.ts";
import type { JudgeMessage } from "./prompts.ts";

/** Where a judge is, and how it is asked. */
export interface JudgeEndpoint {
  /** The part before `/chat/completions`. */
  readonly url: string;
  readonly model: string;
  /** Sent as a bearer token, and never written anywhere. */
  readonly key?: string | undefined;
  /** Undefined: not sent, for models that know only one. */
  readonly temperature: number | undefined;
  readonly maxTokens: number;
  /** For one attempt, answer included. */
  readonly timeoutMs: number;
}

const completionSchema = z.object({
  choices: z
    .array(
      z.object({
        message: z.object({ content: z.string().nullish(), refusal: z.string().nullish() }),
        finish_reason: z.string().nullish(),
      }),
    )
    .min(1),
  usage: z.object({ prompt_tokens: z.number().min(0), completion_tokens: z.number().min(0) }).nullish(),
});

const detailsSchema = z.object({
  message: z.string(),
  code: z.union([z.string(), z.number()]).nullish(),
  param: z.string().nullish(),
});
/** OpenAI's form, then those of servers that are like it. */
const errorSchema = z.union([
  z.object({ error: detailsSchema }).transform(({ error }) => error),
  z.object({ error: z.string() }).transform(({ error }) => ({ message: error, code: undefined, param: undefined })),
  z.object({ detail: z.string() }).transform(({ detail }) => ({ message: detail, code: undefined, param: undefined })),
  detailsSchema,
]);

/** What came of one attempt. */
export type Attempt =
  | { readonly kind: "answer"; readonly answer: JudgeAnswer }
  /** Worth another attempt. */
  | { readonly kind: "again"; readonly why: string; readonly pauseMs: number | undefined }
  /** The parameter that this model does not take. */
  | { readonly kind: "parameter"; readonly name: string; readonly error: InputError }
  | { readonly kind: "error"; readonly error: InputError };

export interface JudgeAnswer {
  readonly text: string;
  /** `stop`, `length` where the judge was cut off, or why it would not judge. */
  readonly finishReason: string | null;
  readonly usage: { readonly promptTokens: number; readonly completionTokens: number } | null;
}

/** 408 and 409 as in OpenAI's own clients: the server gave up waiting, or on a lock. */
const PASSING = new Set([408, 409, 429]);
/** Of a 429 that waiting does not help with. */
const SPENT = /insufficient_quota|billing/;
/** Refusals that are about one conversation: it has no verdict, the others go on. */
const UNJUDGEABLE = /content_filter|content_policy|context_length_exceeded/;
const MOST_SHOWN = 300;
/** Beginnings of a key that are shorter tell no more of it than what kind it is. */
const FEWEST_HIDDEN = 8;

/** Sends one request. Never throws for what a server or network does. */
export async function attempt(
  endpoint: JudgeEndpoint,
  messages: readonly JudgeMessage[],
  limit: "max_tokens" | "max_completion_tokens",
): Promise<Attempt> {
  const { url, model, key, temperature, maxTokens, timeoutMs } = endpoint;
  const body = { model, messages, n: 1, ...(temperature !== undefined && { temperature }), [limit]: maxTokens };
  let response: Response;
  let text: string;
  try {
    response = await fetch(`${url}/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", ...(key !== undefined && { authorization: `Bearer ${key}` }) },
      body: JSON.stringify(body),
      redirect: "manual",
      signal: AbortSignal.timeout(timeoutMs),
    });
    text = await response.text();
  } catch (error) {
    return { kind: "again", why: networkReason(error, timeoutMs), pauseMs: undefined };
  }
  return response.ok ? answered(endpoint, text) : refused(endpoint, response, text);
}

function networkReason(error: unknown, timeoutMs: number): string {
  if (error instanceof Error && error.name === "TimeoutError") return `no answer within ${timeoutMs / 1000} s`;
  const { cause } = error as { cause?: unknown };
  return cause instanceof Error
    ? `${reasonOf(error)}: ${cause.message || (cause as { code?: string }).code}`
    : reasonOf(error);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Of a server's text: one line, not too long, and without the key, which some repeat, nor its beginning, where an answer was cut. */
function shown({ key = "" }: JudgeEndpoint, text: string): string {
  let bare = text.slice(0, 100 * MOST_SHOWN);
  const fewest = Math.max(1, Math.min(FEWEST_HIDDEN, key.length));
  for (let n = key.length; n >= fewest; n--) bare = bare.replaceAll(key.slice(0, n), "…");
  const line = bare.replace(/\s+/g, " ").trim();
  return line.length > MOST_SHOWN ? `${line.slice(0, MOST_SHOWN)}…` : line;
}

function answered(endpoint: JudgeEndpoint, text: string): Attempt {
  const found = completionSchema.safeParse(parsed(text));
  if (!found.success) {
    const hint = "is --judge-url right? It usually ends in /v1";
    const problem = `its answer is no chat completion (${shown(endpoint, text).slice(0, 80)}); ${hint}`;
    return { kind: "error", error: new InputError("JUDGE_ANSWER_INVALID", endpoint.url, problem) };
  }
  const { choices, usage } = found.data;
  const { message, finish_reason } = choices[0]!;
  const answer: JudgeAnswer = {
    text: message.content ?? message.refusal ?? "",
    finishReason: finish_reason ?? null,
    usage: usage ? { promptTokens: usage.prompt_tokens, completionTokens: usage.completion_tokens } : null,
  };
  return { kind: "answer", answer };
}

function refused(endpoint: JudgeEndpoint, response: Response, text: string): Attempt {
  const { status, headers } = response;
  const details = errorSchema.safeParse(parsed(text));
  const { message, code, param } = details.success
    ? details.data
    : { message: text, code: undefined, param: undefined };
  const said = shown(endpoint, message);
  const why = `HTTP ${status}${said === "" ? "" : `: ${said}`}`;
  const error = (name: string, advice: string) =>
    ({ kind: "error", error: new InputError(name, endpoint.url, `${why}; ${advice}`) }) as const;
  if (status === 429 && SPENT.test(String(code))) {
    return error("JUDGE_REQUEST_REFUSED", "the account has nothing left; what was judged is kept");
  }
  if (PASSING.has(status) || status >= 500) return { kind: "again", why, pauseMs: retryAfter(headers) };
  if (status === 401 || status === 403) {
    const advice = endpoint.key === undefined ? "no key was sent" : "the key is not accepted";
    return error("JUDGE_KEY_REFUSED", `${advice}: set MILORA_JUDGE_KEY, or name its variable with --judge-key-env`);
  }
  if (status === 404) {
    return error(
      "JUDGE_NOT_FOUND",
      `check --judge-model (${endpoint.model}) and --judge-url, which usually ends in /v1`,
    );
  }
  if (status >= 300 && status < 400) {
    const to = shown(endpoint, headers.get("location") ?? "elsewhere");
    return error("JUDGE_REQUEST_REFUSED", `it sends requests on to ${to}: give that address to --judge-url`);
  }
  if (status === 400 && UNJUDGEABLE.test(String(code))) {
    return { kind: "answer", answer: { text: "", finishReason: String(code), usage: null } };
  }
  const advice = error(
    "JUDGE_REQUEST_REFUSED",
    "correct the request's settings (--judge-temperature, --judge-max-tokens)",
  );
  const named = param ?? /max_tokens|temperature/.exec(said)?.[0];
  return status === 400 && typeof named === "string" ? { kind: "parameter", name: named, error: advice.error } : advice;
}

/** Milliseconds that the server asks to wait: seconds, a date, or OpenAI's own header. */
function retryAfter(headers: Headers): number | undefined {
  const exact = Number(headers.get("retry-after-ms") ?? Number.NaN);
  if (exact >= 0) return exact;
  const text = headers.get("retry-after");
  if (text === null) return undefined;
  const seconds = Number(text);
  const wait = Number.isNaN(seconds) ? Date.parse(text) - Date.now() : seconds * 1000;
  return wait >= 0 ? wait : undefined;
}
