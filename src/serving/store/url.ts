/** @file A PostgreSQL as it is named: its URL, and errors that tell what is wrong without the password. */
import type pg from "pg";
import { InputError, reasonOf } from "../../base/index.ts";
import { ServingError } from "../errors.ts";

const CONNECT_MS = 5000;
const RETRY_SECONDS = 1;

/** The database does not answer at the moment. What was counted is kept; what was asked may be asked again. */
export class DatabaseUnreachable extends ServingError {
  constructor(cause: unknown) {
    super("DATABASE_UNREACHABLE", 503, "the database does not answer; try again", {
      ...{ cause, retryAfterSeconds: RETRY_SECONDS },
    });
  }
}

/** Whether a text is the URL of a PostgreSQL. */
export function isDatabaseUrl(text: string): boolean {
  if (!/^postgres(ql)?:\/\//.test(text) || !URL.canParse(text)) return false;
  try {
    return decodeURIComponent(text) !== "";
  } catch {
    return false; // a % that escapes nothing
  }
}

/** Names a database for messages: never its user or password. */
export function databaseName(url: string): string {
  const { hostname, port, pathname, searchParams } = new URL(url);
  const host = searchParams.get("host") ?? (hostname || "localhost");
  const at = searchParams.get("port") ?? port;
  return `the database ${host}${at ? `:${at}` : ""}${pathname}`;
}

/** @throws InputError DATABASE_URL_INVALID, which does not quote it */
export function checkDatabaseUrl(url: string, where = "database"): string {
  if (isDatabaseUrl(url)) return url;
  throw new InputError("DATABASE_URL_INVALID", where, "is no URL such as postgres://USER:PASSWORD@HOST:5432/NAME");
}

/** What a connection is opened with. @throws InputError DATABASE_URL_INVALID */
export function connectionOf(url: string): pg.ClientConfig {
  return {
    ...{ connectionString: url, application_name: "milora", keepAlive: true, keepAliveInitialDelayMillis: 10_000 },
    connectionTimeoutMillis: CONNECT_MS,
  };
}

/** The causes of what failed may quote the URL (node's errors do), and are left out. */
export function unreachableAtStart(url: string, error: unknown): InputError {
  if (error instanceof InputError) return error;
  const failure = error instanceof DatabaseUnreachable ? error.cause : error;
  return new InputError("DATABASE_UNREACHABLE", databaseName(url), withoutPassword(url, reasonsOf(failure)));
}

/** Several addresses of one host fail with one error that says nothing itself. */
function reasonsOf(error: unknown): string {
  const reasons = error instanceof AggregateError ? error.errors.map(reasonOf) : [reasonOf(error)];
  return [...new Set(reasons)].join(", ") || "does not answer";
}

function withoutPassword(url: string, text: string): string {
  const { password } = new URL(url);
  const secrets = [url, password, decodeURIComponent(password)].filter((secret) => secret !== "");
  return secrets.reduce((rest, secret) => rest.replaceAll(secret, "***"), text);
}
