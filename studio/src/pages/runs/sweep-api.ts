/** @file What the pages of sweeps ask for, and how often: while something is to be done, every two seconds. */
import { keepPreviousData, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import type {
  GridDetail,
  GridSummary,
  SweepCellState,
  SweepDetail,
  SweepList,
  SweepSummary,
} from "../../../../src/serving/studio/types.ts";
import { ask, withQuery } from "../../api/client.ts";

const LIVE_MS = 2000;
/** What is done may be started anew, and what has failed tried again, from elsewhere. */
const QUIET_MS = 10_000;

/** While files are read. */
const READING_MS = 500;

/** Cells of a page. */
export const CELLS = 100;

const isOpen = ({ jobs }: SweepSummary): boolean => jobs.waiting + jobs.retrying + jobs.running > 0;

export function useSweeps() {
  return useQuery({
    queryKey: ["sweeps"],
    queryFn: ({ signal }) => ask<SweepList>("/studio/v1/sweeps", { signal }),
    refetchInterval: ({ state }) => (state.data?.sweeps.some(isOpen) ? LIVE_MS : QUIET_MS),
  });
}

export interface CellFilter {
  readonly state?: SweepCellState | undefined;
  readonly text?: string | undefined;
  readonly from?: number | undefined;
}

const path = (id: string, rest = ""): string => `/studio/v1/sweeps/${encodeURIComponent(id)}${rest}`;

export function useSweep(id: string, { state, text, from }: CellFilter) {
  return useQuery({
    queryKey: ["sweeps", id, state, text, from],
    queryFn: ({ signal }) => ask<SweepDetail>(withQuery(path(id), { state, text, from, limit: CELLS }), { signal }),
    placeholderData: keepPreviousData,
    refetchInterval: ({ state: { data } }) => (data === undefined || isOpen(data) ? LIVE_MS : QUIET_MS),
  });
}

/** Whether somebody works on a grid of a folder is not known: one that is not finished may grow. */
const gridInterval = (grid: GridSummary | undefined): number =>
  grid && grid.cells.done < grid.cells.total ? LIVE_MS : QUIET_MS;

export function useGrids() {
  return useQuery({
    queryKey: ["grids"],
    queryFn: async ({ signal }) => (await ask<{ grids: GridSummary[] }>("/studio/v1/grids", { signal })).grids,
    refetchInterval: ({ state }) => Math.min(QUIET_MS, ...(state.data ?? []).map(gridInterval)),
  });
}

export function useGrid(id: string) {
  return useQuery({
    queryKey: ["grids", id],
    queryFn: ({ signal }) => ask<GridDetail>(`/studio/v1/grids/${encodeURIComponent(id)}`, { signal }),
    refetchInterval: ({ state: { data } }) =>
      data && data.read < data.trainings.done + data.cells.done ? READING_MS : gridInterval(data),
  });
}

/** Jobs that are tried again; all that failed where none are named. */
export function useRetry(id: string) {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: (jobs: readonly string[] | undefined) =>
      ask<{ jobs: number }>(path(id, "/retry"), { method: "POST", json: jobs ? { jobs } : {} }),
    onSuccess: () => queries.invalidateQueries({ queryKey: ["sweeps"] }),
  });
}
