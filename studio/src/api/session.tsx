/** @file Who is signed in: asked once, kept for all pages. */
import { type QueryClient, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { createContext, type ReactNode, useContext, useEffect } from "react";
import type { StudioSession } from "../../../src/serving/studio/types.ts";
import { ask, signedOut } from "./client.ts";

const PATH = "/studio/v1/session";
const KEY = ["session"];

export function useSessionQuery() {
  const queries = useQueryClient();
  useEffect(() => {
    const over = () => void queries.invalidateQueries({ queryKey: KEY });
    signedOut.addEventListener("signed-out", over);
    return () => signedOut.removeEventListener("signed-out", over);
  }, [queries]);
  return useQuery({ queryKey: KEY, queryFn: ({ signal }) => ask<StudioSession>(PATH, { signal }), staleTime: 60_000 });
}

export function useSignIn() {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: (key: string) => ask<StudioSession>(PATH, { method: "POST", json: { key } }),
    onSuccess: (session) => takeOver(queries, session),
  });
}

export function useSignOut() {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: () => ask<StudioSession>(PATH, { method: "DELETE" }),
    onSuccess: (session) => takeOver(queries, session),
  });
}

/** Forgets what whoever was here before has seen. The session itself stays: the frame watches it. */
function takeOver(queries: QueryClient, session: StudioSession): void {
  queries.removeQueries({ predicate: ({ queryKey }) => queryKey[0] !== KEY[0] });
  queries.setQueryData(KEY, session);
}

const Session = createContext<StudioSession | undefined>(undefined);

export function SessionProvider({ session, children }: { session: StudioSession; children: ReactNode }) {
  return <Session value={session}>{children}</Session>;
}

/** Who is signed in. Only below the frame, which shows pages to those who are. */
export function useSession(): StudioSession {
  const session = useContext(Session);
  if (!session) throw new Error("useSession is for pages inside the frame");
  return session;
}
