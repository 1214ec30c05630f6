/** @file What the pages of runs ask for, and how often: while a process trains, every two seconds. */
import { keepPreviousData, useQueries, useQuery } from "@tanstack/react-query";
import type {
  Reproduction,
  ReproductionSummary,
  RunActivations,
  RunDetail,
  RunExperts,
  RunSeries,
  RunSummary,
} from "../../../../src/serving/studio/types.ts";
import { ask, withQuery } from "../../api/client.ts";

const LIVE_MS = 2000;
/** A run that was stopped may be resumed. */
const QUIET_MS = 10_000;
/** While a long file is read. */
const READING_MS = 500;

/** Points of a chart: more than one finds place for would not be seen. */
export const POINTS = 600;
/** Columns of a heat map. */
export const HEAT_POINTS = 44;

interface Changing {
  readonly state: RunSummary["state"];
  readonly indexed: number;
}

function interval(run: Changing | undefined): number {
  if (run === undefined) return QUIET_MS;
  if (run.indexed < 1) return READING_MS;
  return run.state === "running" ? LIVE_MS : QUIET_MS;
}

const path = (id: string, rest = ""): string => `/studio/v1/runs/${encodeURIComponent(id)}${rest}`;

export function useRuns() {
  return useQuery({
    queryKey: ["runs"],
    queryFn: async ({ signal }) => (await ask<{ runs: RunSummary[] }>("/studio/v1/runs", { signal })).runs,
    refetchInterval: ({ state }) => Math.min(QUIET_MS, ...(state.data ?? []).map(interval)),
  });
}

const detail = (id: string) => ({
  queryKey: ["runs", id],
  queryFn: ({ signal }: { signal: AbortSignal }) => ask<RunDetail>(path(id), { signal }),
  refetchInterval: ({ state }: { state: { data?: RunDetail | undefined } }) => interval(state.data),
});

export const useRun = (id: string) => useQuery(detail(id));
export const useRunsOf = (ids: readonly string[]) => useQueries({ queries: ids.map(detail) });

export interface Range {
  readonly from?: number | undefined;
  readonly to?: number | undefined;
}

const series = (id: string, { from, to }: Range, run: Changing | undefined) => ({
  queryKey: ["runs", id, "series", from, to],
  queryFn: ({ signal }: { signal: AbortSignal }) =>
    ask<RunSeries>(withQuery(path(id, "/series"), { from, to, points: POINTS }), { signal }),
  placeholderData: keepPreviousData,
  ...asRunning(run),
});

/** As often as the run itself; not at all where it is neither trained nor read. */
function asRunning(run: Changing | undefined) {
  const still = run === undefined || (run.state !== "running" && run.indexed === 1);
  return {
    refetchInterval: ({ state }: { state: { data?: { readonly indexed?: number } | undefined } }) =>
      (state.data?.indexed ?? 1) < 1 ? READING_MS : still ? (false as const) : LIVE_MS,
  };
}

export const useSeries = (id: string, range: Range, run: Changing) => useQuery(series(id, range, run));
export const useSeriesOf = (runs: readonly (Changing & { readonly id: string })[], range: Range) =>
  useQueries({ queries: runs.map((run) => series(run.id, range, run)) });

export function useExperts(id: string, run: Changing) {
  return useQuery({
    queryKey: ["runs", id, "experts"],
    queryFn: ({ signal }) => ask<RunExperts>(withQuery(path(id, "/experts"), { points: HEAT_POINTS }), { signal }),
    ...asRunning(run),
  });
}

/** The best adapter changes with evaluations. */
export function useActivations(id: string, evaluations: number, run: Changing) {
  return useQuery({
    queryKey: ["runs", id, "activations", evaluations],
    queryFn: ({ signal }) => ask<RunActivations>(path(id, "/activations"), { signal }),
    placeholderData: keepPreviousData,
    refetchInterval: run.state === "running" && QUIET_MS,
  });
}

export function useReproductions() {
  return useQuery({
    queryKey: ["reproductions"],
    queryFn: async ({ signal }) =>
      (await ask<{ reproductions: ReproductionSummary[] }>("/studio/v1/reproductions", { signal })).reproductions,
    refetchInterval: QUIET_MS,
  });
}

export function useReproduction(id: string) {
  return useQuery({
    queryKey: ["reproductions", id],
    queryFn: ({ signal }) => ask<Reproduction>(`/studio/v1/reproductions/${encodeURIComponent(id)}`, { signal }),
    refetchInterval: QUIET_MS,
  });
}
