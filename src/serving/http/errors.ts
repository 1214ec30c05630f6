/** @file Errors as HTTP answers: the status of each code, and the body that OpenAI's clients read. */
import type { z } from "zod";
import { InputError, MiloraError } from "../../base/index.ts";
import { ServingError } from "../errors.ts";

/** Statuses of errors that do not carry their own. An `InputError` of another code is 400, everything else 500. */
const STATUS: Readonly<Record<string, number>> = {
  MODEL_NOT_FOUND: 404,
  ADAPTER_NOT_FOUND: 404,
  TENANT_NOT_FOUND: 404,
  KEY_NOT_FOUND: 404,
  GRANT_NOT_FOUND: 404,
  DEADLINE_EXCEEDED: 408,
  ADAPTER_EXISTS: 409,
  ADAPTER_PINNED: 409,
  TENANT_EXISTS: 409,
  TENANT_NOT_EMPTY: 409,
  PAYLOAD_TOO_LARGE: 413,
  ADAPTER_TOO_LARGE: 413,
  STORAGE_EXCEEDED: 413,
  OVERLOADED: 429,
  OUTPUT_UNWRITABLE: 507,
  ADAPTERS_BUSY: 503,
  DRAINING: 503,
  ENGINE_CLOSED: 503,
  ADAPTER_CORRUPT: 500,
};

/** Status of a request whose client went away, in logs and metrics only. */
export const CLIENT_CLOSED = 499;

/** OpenAI's classes of errors. */
const TYPE: Readonly<Record<number, string>> = {
  401: "authentication_error",
  403: "permission_error",
  404: "not_found_error",
  408: "timeout_error",
  409: "conflict_error",
  429: "rate_limit_error",
};

/** Messages of these are for the caller though the failure is the server's. */
const TOLD = new Set(["LOGITS_NOT_FINITE", "ADAPTER_CORRUPT"]);

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string;
    /** Each of them by itself, where the message lists several. */
    readonly problems?: readonly string[];
  };
}

export interface ErrorAnswer {
  readonly status: number;
  readonly retryAfterSeconds?: number;
  readonly body: ErrorBody;
}

/** A field of the body is wrong: which one OpenAI's clients are told as `param`. */
export class RequestError extends InputError {
  readonly param: string | undefined;

  constructor(problems: string | readonly string[], param?: string) {
    super("REQUEST_INVALID", "the request", problems);
    this.param = param;
  }
}

/** Checks a body. Throws `RequestError` with every problem. */
export function parseRequest<S extends z.ZodType>(schema: S, body: unknown): z.output<S> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const { issues } = result.error;
  const problems = issues.map((issue) => {
    const text = issue.code === "invalid_union" ? unionText(issue) : issue.message;
    return issue.path.length ? `${issue.path.map(String).join(".")}: ${text}` : text;
  });
  const param = issues[0]?.path[0];
  throw new RequestError(problems, param === undefined ? undefined : String(param));
}

/** zod says "Invalid input" of a union; the reasons of its members say more. */
function unionText(issue: z.core.$ZodIssueInvalidUnion): string {
  const reasons = issue.errors.map((member) => member[0]?.message ?? "").filter((text) => text !== "");
  return reasons.length ? [...new Set(reasons)].join(", or: ") : issue.message;
}

/** What a client is told of an error. Nothing of a failure inside: only that there was one, and the request's id. */
export function answerOf(error: unknown, requestId: string): ErrorAnswer {
  const { statusCode } = error as { statusCode?: unknown };
  // fastify's own errors: malformed bodies, media types, sizes.
  if (!(error instanceof MiloraError) && typeof statusCode === "number" && statusCode >= 400 && statusCode < 500) {
    return answer(statusCode, codeOfStatus(statusCode), (error as Error).message, null, error);
  }
  if (!(error instanceof MiloraError)) return internal(requestId);
  const status =
    error instanceof ServingError ? error.status : (STATUS[error.code] ?? (error instanceof InputError ? 400 : 500));
  if (status === 500 && !TOLD.has(error.code)) return internal(requestId);
  return answer(status, error.code, error.message, (error as { param?: string }).param ?? null, error);
}

function codeOfStatus(status: number): string {
  if (status === 413) return "PAYLOAD_TOO_LARGE";
  if (status === 415) return "MEDIA_TYPE_UNSUPPORTED";
  if (status === 408) return "REQUEST_TIMEOUT";
  return status === 404 ? "ROUTE_NOT_FOUND" : "REQUEST_INVALID";
}

function answer(status: number, code: string, message: string, param: string | null, error: unknown): ErrorAnswer {
  const { retryAfterSeconds } = error as { retryAfterSeconds?: unknown };
  const type = TYPE[status] ?? (status >= 500 ? "server_error" : "invalid_request_error");
  const retry = typeof retryAfterSeconds === "number" ? Math.max(1, Math.ceil(retryAfterSeconds)) : undefined;
  const needed = retry ?? (status === 429 || status === 503 ? 1 : undefined);
  const problems = error instanceof InputError && error.problems.length > 1 && { problems: error.problems };
  return {
    status,
    ...(needed !== undefined && { retryAfterSeconds: needed }),
    body: { error: { message, type, param, code, ...problems } },
  };
}

function internal(requestId: string): ErrorAnswer {
  const message = `the server failed to answer; its log says why under the request id ${requestId}`;
  return { status: 500, body: { error: { message, type: "server_error", param: null, code: "INTERNAL_ERROR" } } };
}
