/** @file The rings of the last hour and of the last errors: what they hold, when they turn over, and that they do not grow. */
import { expect, test } from "vitest";
import type { ScheduledRequest } from "../../generation/index.ts";
import { Faults, KEPT_ERRORS } from "./faults.ts";
import { both, HISTORY_SECONDS, History } from "./history.ts";

const request = {} as ScheduledRequest;

function clocked() {
  const clock = { ms: 1_000_500 };
  const history = new History(() => clock.ms);
  return { clock, history, observer: history.observer };
}

test("a point is of what happened in its second, and only of seconds that are over", () => {
  const { clock, history, observer } = clocked();
  expect(history.read(900)).toMatchObject({ from: 1000, tokens: [], firstTokenP50: [] });
  observer.firstToken!(request, 30);
  for (const ms of [4, 1, 3, 2]) observer.token!(request, ms);
  history.answered(false);
  history.answered(true);
  expect(history.read(900).tokens).toEqual([]);
  clock.ms = 1_001_000;
  observer.token!(request, 100); // told before the point is written: of the second before
  history.tick();
  observer.token!(request, 7);
  clock.ms = 1_002_999;
  expect(history.read(900)).toEqual({
    ...{ from: 1000, waiting: [0, 0], running: [0, 0], tokens: [6, 1], requests: [2, 0], errors: [1, 0] },
    ...{ firstTokenP50: [30, null], firstTokenP95: [30, null] },
    ...{ betweenTokensP50: [3, 7], betweenTokensP95: [100, 7] },
  });
  expect(history.read(1)).toMatchObject({ from: 1001, tokens: [1], betweenTokensP50: [7] });
});

test("percentiles are those of the sorted times, however many there are", () => {
  const { clock, history, observer } = clocked();
  for (let i = 0; i < 1000; i++) observer.token!(request, (i * 617) % 1000);
  for (let i = 0; i < 20_000; i++) observer.firstToken!(request, i < 10_000 ? 1e6 : 5);
  clock.ms += 1000;
  const point = history.read(1);
  expect(point).toMatchObject({ betweenTokensP50: [499], betweenTokensP95: [949] });
  expect(point).toMatchObject({ tokens: [21_000], firstTokenP50: [5], firstTokenP95: [5] }); // of the last ones
});

test("seconds in which the process was held up are there, with the queue as it is now", () => {
  const { clock, history, observer } = clocked();
  history.watch({ stats: () => ({ waiting: 3, running: 2 }) as never });
  observer.token!(request, 9);
  clock.ms += 3000;
  expect(history.read(10)).toMatchObject({
    ...{ from: 1000, tokens: [1, 0, 0], waiting: [3, 3, 3], running: [2, 2, 2] },
    betweenTokensP50: [9, null, null],
  });
  history[Symbol.dispose]();
});

test("after an hour the oldest points go; a pause of a day costs no more than an hour", () => {
  const { clock, history } = clocked();
  for (let second = 0; second < HISTORY_SECONDS + 10; second++) {
    for (let i = second % 7; i > 0; i--) history.answered(false);
    clock.ms += 1000;
    history.tick();
  }
  const { from, requests } = history.read(HISTORY_SECONDS * 2);
  expect(from).toBe(1010);
  expect(requests).toEqual(Array.from({ length: HISTORY_SECONDS }, (_, i) => (i + 10) % 7));
  history.answered(true);
  clock.ms += 86_400_000;
  const later = history.read(HISTORY_SECONDS);
  expect(later.from).toBe(from + 86_400);
  expect(later.requests).toHaveLength(HISTORY_SECONDS);
  expect(later.requests.slice(1).every((count) => count === 0)).toBe(true);
});

test("two observers are told the same", () => {
  const told: string[] = [];
  const observer = (name: string) => ({
    firstToken: (_: ScheduledRequest, ms: number) => void told.push(`${name} first ${ms}`),
    step: ({ rows }: { rows: number }) => void told.push(`${name} step ${rows}`),
  });
  const all = both(observer("a"), observer("b"));
  all.firstToken!(request, 1);
  all.token!(request, 2); // neither asks for it
  all.step!({ rows: 3, adapters: 1, ms: 4 });
  expect(told).toEqual(["a first 1", "b first 1", "a step 3", "b step 3"]);
});

test("of errors the last ones are kept, newest first", () => {
  const faults = new Faults();
  expect(faults.list()).toEqual([]);
  const of = { method: "GET", route: "/v1/models", status: 401, code: "UNAUTHENTICATED", tenant: null, adapter: null };
  for (let i = 0; i < KEPT_ERRORS + 3; i++) {
    faults.add({ at: "", requestId: `${i}`, ...of });
    if (i === 1) expect(faults.list().map(({ requestId }) => requestId)).toEqual(["1", "0"]);
  }
  const ids = faults.list().map(({ requestId }) => Number(requestId));
  expect(ids).toEqual(Array.from({ length: KEPT_ERRORS }, (_, i) => KEPT_ERRORS + 2 - i));
});
