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

/** An error in words, with each problem and the request's id. */
export function ErrorNote({ error, retry }: { error: unknown; retry?: () => void }) {
  const known = error instanceof ApiError ? error : undefined;
  return (
    <div className="note bad" role="alert">
      <p>{known?.problems.length ? "This was refused:" : error instanceof Error ? error.message : String(error)}</p>
      {known && known.problems.length > 0 && (
        <ul>
          {known.problems.map((problem) => (
            <li key={problem}>{problem}</li>
          ))}
        </ul>
      )}
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
