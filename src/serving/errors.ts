/** @file What a server refuses: an error with the HTTP status that it answers with. */
import { MiloraError } from "../base/index.ts";

export type ServingErrorCode =
  /** No key, or one that is unknown, expired or revoked. */
  | "UNAUTHENTICATED"
  /** The key does not allow this. */
  | "FORBIDDEN"
  /** No such route. */
  | "ROUTE_NOT_FOUND"
  /** No such thing, or not the caller's. */
  | "NOT_FOUND"
  /** No such training run below the folders that are shown. */
  | "RUN_NOT_FOUND"
  /** A run in which no prompts were routed to experts. */
  | "RUN_NOT_ROUTED"
  /** No such reproduction below the folders that are shown. */
  | "REPRODUCTION_NOT_FOUND"
  /** No such grid below the folders that are shown. */
  | "GRID_NOT_FOUND"
  /** No such grid in the database, or no longer. */
  | "SWEEP_NOT_FOUND"
  /** The head of a request is larger than the server takes. */
  | "HEADERS_TOO_LARGE"
  /** The body is larger than the server takes. */
  | "PAYLOAD_TOO_LARGE"
  /** The body is of a kind that the route does not read. */
  | "MEDIA_TYPE_UNSUPPORTED"
  /** The request did not arrive in time. */
  | "REQUEST_TIMEOUT"
  /** The server is shutting down. */
  | "DRAINING"
  /** The database does not answer at the moment. */
  | "DATABASE_UNREACHABLE"
  /** The store of adapters' files does not answer at the moment, or refuses. */
  | "ADAPTER_STORE_UNREACHABLE"
  /** A tenant's quota is used up for now. */
  | "QUOTA_EXCEEDED"
  /** Wrong keys of one address. */
  | "TOO_MANY_ATTEMPTS";

export class ServingError extends MiloraError {
  declare readonly code: ServingErrorCode;
  readonly status: number;
  /** When it is worth trying again. */
  readonly retryAfterSeconds?: number;

  constructor(
    code: ServingErrorCode,
    status: number,
    message: string,
    options: { cause?: unknown; retryAfterSeconds?: number } = {},
  ) {
    super(code, message, { cause: options.cause, exitCode: 1 });
    this.status = status;
    if (options.retryAfterSeconds !== undefined) this.retryAfterSeconds = options.retryAfterSeconds;
  }
}
