/** @file Asks the server: one way to send requests, and one kind of error for all that goes wrong. */

/** What the server said, or that it could not be reached (status 0). */
export class ApiError extends Error {
  override readonly name = "ApiError";
  readonly status: number;
  readonly code: string;
  /** Field of the request that is wrong. */
  readonly param: string | null;
  /** Each problem by itself, where there are several. */
  readonly problems: readonly string[];
  readonly requestId: string | null;
  readonly retryAfterSeconds: number | null;

  constructor(status: number, body: ErrorBody, response?: Response) {
    super(body.message);
    this.status = status;
    this.code = body.code;
    this.param = body.param ?? null;
    this.problems = body.problems ?? [];
    this.requestId = response?.headers.get("x-request-id") ?? null;
    const retry = Number(response?.headers.get("retry-after") ?? Number.NaN);
    this.retryAfterSeconds = Number.isFinite(retry) ? retry : null;
  }
}

interface ErrorBody {
  readonly message: string;
  readonly code: string;
  readonly param?: string | null;
  readonly problems?: readonly string[];
}

export interface Ask {
  readonly method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  /** Sent as JSON. */
  readonly json?: unknown;
  /** Sent as it is. */
  readonly body?: NonNullable<RequestInit["body"]>;
  readonly type?: string;
  readonly signal?: AbortSignal;
}

/** Told of every answer 401: the session is over. */
export const signedOut = new EventTarget();

/**
 * The answer to a request, once its head is there and says that all is well. Requests carry a header that pages of other
 * sites cannot send.
 *
 * @throws ApiError; DOMException AbortError
 */
export async function send(path: string, { method = "GET", json, body, type, signal }: Ask = {}): Promise<Response> {
  const headers: Record<string, string> = { "x-milora-studio": "1" };
  if (json !== undefined) headers["content-type"] = "application/json";
  if (type !== undefined) headers["content-type"] = type;
  const sent = json === undefined ? body : JSON.stringify(json);
  let response: Response;
  try {
    response = await fetch(path, {
      ...{ method, headers, credentials: "same-origin" as const },
      ...(sent !== undefined && { body: sent }),
      ...(signal && { signal }),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, {
      code: "SERVER_UNREACHABLE",
      message: "The server cannot be reached. Is it still running?",
    });
  }
  if (response.ok) return response;
  const error = await errorOf(response);
  if (error.status === 401 && path !== "/studio/v1/session") signedOut.dispatchEvent(new Event("signed-out"));
  throw error;
}

/** The JSON that a request is answered with. @throws as `send` */
export async function ask<T>(path: string, request: Ask = {}): Promise<T> {
  const response = await send(path, request);
  return (await response.json()) as T;
}

async function errorOf(response: Response): Promise<ApiError> {
  const unknown = { code: `HTTP_${response.status}`, message: `The server answered ${response.status}.` };
  try {
    const { error } = (await response.json()) as { error?: ErrorBody };
    return new ApiError(response.status, error ?? unknown, response);
  } catch {
    return new ApiError(response.status, unknown, response);
  }
}

/** A path with a query; what is undefined is left out. */
export function withQuery(path: string, query: Readonly<Record<string, string | number | undefined>>): string {
  const given = Object.entries(query).filter(([, value]) => value !== undefined);
  const text = new URLSearchParams(given.map(([name, value]): [string, string] => [name, String(value)])).toString();
  return text === "" ? path : `${path}?${text}`;
}
