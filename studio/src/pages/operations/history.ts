/** @file The last minutes of the server, of which each second only what is new is asked for. */
import { useQuery, useQueryClient } from "@tanstack/react-query";
import type { ServerHistory } from "../../../../src/serving/studio/types.ts";
import { ask, withQuery } from "../../api/client.ts";
import { adminPath } from "./api.ts";

export function useHistory(seconds: number) {
  const queries = useQueryClient();
  const queryKey = ["admin", "history", seconds];
  return useQuery({
    queryKey,
    refetchInterval: 1000,
    queryFn: async ({ signal }) => {
      const last = (most: number) => ask<ServerHistory>(withQuery(adminPath("history"), { seconds: most }), { signal });
      const known = queries.getQueryState<ServerHistory>(queryKey);
      if (!known?.data) return last(seconds);
      const missing = Math.ceil((Date.now() - known.dataUpdatedAt) / 1000) + 3;
      if (missing >= seconds) return last(seconds);
      return joined(known.data, await last(missing), seconds) ?? last(seconds);
    },
  });
}

const length = ({ waiting }: ServerHistory): number => waiting.length;

/** What was known and what is new, at most `seconds` of it; undefined where seconds between them are missing. */
function joined(known: ServerHistory, news: ServerHistory, seconds: number): ServerHistory | undefined {
  const kept = news.from - known.from;
  if (kept < 0 || kept > length(known)) return undefined;
  const dropped = Math.max(0, kept + length(news) - seconds);
  const column = <T>(name: Exclude<keyof ServerHistory, "from">): readonly T[] =>
    [...known[name].slice(0, kept), ...news[name]].slice(dropped) as T[];
  return {
    from: known.from + dropped,
    ...{ waiting: column("waiting"), running: column("running"), tokens: column("tokens") },
    ...{ requests: column("requests"), errors: column("errors") },
    ...{ firstTokenP50: column("firstTokenP50"), firstTokenP95: column("firstTokenP95") },
    ...{ betweenTokensP50: column("betweenTokensP50"), betweenTokensP95: column("betweenTokensP95") },
  };
}

export interface Point {
  readonly at: Date;
  readonly waiting: number;
  readonly running: number;
  readonly tokens: number;
  readonly requests: number;
  readonly errors: number;
  readonly firstTokenP50: number | null;
  readonly firstTokenP95: number | null;
  readonly betweenTokensP50: number | null;
  readonly betweenTokensP95: number | null;
}

/** Points that a chart has room for: rates as means, queues and times as the largest of the seconds that they stand for. */
export function pointsOf(history: ServerHistory, most = 300): Point[] {
  const width = Math.max(1, Math.ceil(length(history) / most));
  const points: Point[] = [];
  for (let start = 0; start + width <= length(history); start += width) {
    const of = <T>(column: readonly T[]): readonly T[] => column.slice(start, start + width);
    const largest = (column: readonly (number | null)[]): number | null => {
      const values = of(column).filter((value) => value !== null);
      return values.length > 0 ? Math.max(...values) : null;
    };
    const mean = (column: readonly number[]): number => of(column).reduce((a, b) => a + b, 0) / width;
    points.push({
      at: new Date((history.from + start) * 1000),
      ...{ waiting: largest(history.waiting) ?? 0, running: largest(history.running) ?? 0 },
      ...{ tokens: mean(history.tokens), requests: mean(history.requests), errors: mean(history.errors) },
      ...{ firstTokenP50: largest(history.firstTokenP50), firstTokenP95: largest(history.firstTokenP95) },
      ...{ betweenTokensP50: largest(history.betweenTokensP50), betweenTokensP95: largest(history.betweenTokensP95) },
    });
  }
  return points;
}
