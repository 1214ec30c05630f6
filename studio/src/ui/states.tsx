/** @file What a page shows when there is nothing yet, nothing at all, or something went wrong. */
import type { UseQueryResult } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { ApiError } from "../api/client.ts";
import { Button } from "./controls.tsx";

export function Loading({ what = "Loading" }: { what?: string }) {
  return (
    <p className="loading" role="status">
      {what} …
    </p>
  );
}

export function Empty({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <div className="card empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}

export function Note({ kind = "plain", children }: { kind?: "plain" | "good" | "warn" | "bad"; children: ReactNode }) {
  return (
    <div className={`note ${kind}`} role={kind === "bad" ? "alert" : undefined}>
      {children}
    </div>
  );
}

/** Problems that are listed at once; an adapter of another shape has one for each tensor. */
const LISTED = 20;

/** What several problems are of, as the server's messages begin. */
function headOf({ message }: ApiError): string {
  const [where = ""] = message.split(/: \d+ problems: /);
  return where === "the request" ? "This was refused:" : `${where}:`;
}

function Problems({ problems }: { problems: readonly string[] }) {
  const list = (some: readonly string[]) => (
    <ul>
      {some.map((problem) => (
        <li key={problem}>{problem}</li>
      ))}
    </ul>
  );
  return (
    <>
      {list(problems.slice(0, LISTED))}
      {problems.length > LISTED && (
        <details>
          <summary>{problems.length - LISTED} more</summary>
          {list(problems.slice(LISTED))}
        </details>
      )}
    </>
  );
}

/** An error in words, with each problem and the request's id. */
export function ErrorNote({ error, retry }: { error: unknown; retry?: () => void }) {
  const known = error instanceof ApiError ? error : undefined;
  return (
    <div className="note bad" role="alert">
      <p>{known?.problems.length ? headOf(known) : error instanceof Error ? error.message : String(error)}</p>
      {known && known.problems.length > 0 && <Problems problems={known.problems} />}
      {known && known.status >= 500 && known.requestId && <p className="muted">Request {known.requestId}</p>}
      {retry && (
        <Button small onClick={retry}>
          Try again
        </Button>
      )}
    </div>
  );
}

/** A query's data, or what stands in its place. What was shown before stays while it is asked for again. */
export function Loaded<T>({
  query,
  what,
  children,
}: {
  query: UseQueryResult<T>;
  what?: string;
  children: (data: T) => ReactNode;
}) {
  const { data, error, refetch } = query;
  if (data === undefined) {
    return error ? <ErrorNote error={error} retry={() => void refetch()} /> : <Loading {...(what && { what })} />;
  }
  return (
    <>
      {error && <ErrorNote error={error} retry={() => void refetch()} />}
      {children(data)}
    </>
  );
}
