/** @file Several runs beside each other: their curves in one chart, where their configs differ, which came out best. */
import { useMemo } from "react";
import { Link } from "wouter";
import type { RunDetail, RunSeries } from "../../../../src/serving/studio/types.ts";
import {
  Card,
  Checkbox,
  type Column,
  DataTable,
  Empty,
  ErrorNote,
  Loading,
  Note,
  number,
  Page,
} from "../../ui/index.ts";
import { type Address, rangeOf, runLink, useAddress, viewOf } from "./address.ts";
import { useRunsOf, useSeriesOf } from "./api.ts";
import { settingsOf } from "./config.tsx";
import { LineChart } from "./line-chart.tsx";
import { chartedNames, evaluationPoints, type Line, seriesPoints, titleOf } from "./lines.ts";
import { RangeControls } from "./range.tsx";
import { Reading, StateBadge, Steps } from "./state.tsx";

const MOST = 6;

export function ComparePage() {
  const address = useAddress();
  const ids = [...new Set(address.all("id"))].slice(0, MOST);
  return (
    <Page title="Compare runs" tools={<Link href="/runs">All runs</Link>}>
      {ids.length < 2 ? (
        <Empty title="Choose at least two runs">
          <p>
            Check them in <Link href="/runs">the list of runs</Link>.
          </p>
        </Empty>
      ) : (
        <Compared ids={ids} address={address} />
      )}
    </Page>
  );
}

function Compared({ ids, address }: { ids: readonly string[]; address: Address }) {
  const queries = useRunsOf(ids);
  const failed = queries.flatMap(({ error }, i) => (error ? [[ids[i]!, error] as const] : []));
  const runs = queries.flatMap(({ data }) => (data?.problem === null ? [data] : []));
  const broken = queries.flatMap(({ data }) => (data && data.problem !== null ? [data] : []));
  if (queries.some(({ isPending }) => isPending)) return <Loading what="Reading the runs" />;
  return (
    <div className="stack">
      {failed.map(([id, error]) => (
        <ErrorNote key={id} error={error} />
      ))}
      {broken.map(({ id, problem }) => (
        <Note key={id} kind="bad">
          {id} cannot be shown: {problem}
        </Note>
      ))}
      <Best runs={runs} />
      <Overlaid runs={runs} address={address} />
      <Difference runs={runs} address={address} />
    </div>
  );
}

/** The best of a quantity stands out. */
function bestOf(runs: readonly RunDetail[], value: (run: RunDetail) => number | null, most = false): Set<string> {
  const known = runs.flatMap((run) => value(run) ?? []);
  const best = most ? Math.max(...known) : Math.min(...known);
  return new Set(known.length > 1 ? runs.filter((run) => value(run) === best).map(({ id }) => id) : []);
}

function Best({ runs }: { runs: readonly RunDetail[] }) {
  const columns = useMemo((): readonly Column<RunDetail>[] => {
    const figure = (key: string, title: string, value: (run: RunDetail) => number | null, most = false) => {
      const best = bestOf(runs, value, most);
      const cell = (run: RunDetail) =>
        best.has(run.id) ? <strong className="best">{number(value(run), 4)} ★</strong> : number(value(run), 4);
      return { key, title, value, cell, numeric: true };
    };
    return [
      {
        ...{ key: "run", title: "Run", head: true, value: ({ id }) => id },
        cell: ({ id }) => (
          <span className="nowrap">
            <span className={`swatch series-${runs.findIndex((run) => run.id === id) + 1}`} />
            <Link href={runLink(id)}>{id}</Link>
          </span>
        ),
      },
      { key: "state", title: "State", cell: (run) => <StateBadge run={run} /> },
      { key: "steps", title: "Steps", value: ({ step }) => step, cell: (run) => <Steps run={run} /> },
      figure("perplexity", "Best perplexity", ({ bestPerplexity }) => bestPerplexity),
      figure("loss", "Last loss", ({ loss }) => loss),
      figure("speed", "Tokens/s", ({ tokensPerSecond }) => tokensPerSecond && Math.round(tokensPerSecond), true),
      figure("time", "Time of the steps, s", ({ seconds }) => seconds),
    ];
  }, [runs]);
  return (
    <Card title="What they came to">
      <DataTable caption="Runs that are compared" columns={columns} rows={runs} keyOf={({ id }) => id} />
    </Card>
  );
}

function Overlaid({ runs, address }: { runs: readonly RunDetail[]; address: Address }) {
  const range = rangeOf(address);
  const queries = useSeriesOf(runs, range);
  const all = queries.map(({ data }) => data);
  const known = all.filter((data) => data !== undefined);
  const view = viewOf(address);
  const last = Math.max(1, ...runs.map(({ step }) => step));
  const domain = [range.from ?? Math.min(1, last), Math.min(range.to ?? last, last)] as const;
  // What was measured is the same object as long as nothing has changed.
  // biome-ignore lint/correctness/useExhaustiveDependencies: the lists are made anew each time, their parts are not
  const charts = useMemo(() => chartsOf(runs, all, domain), [...runs, ...all, ...domain]);
  if (queries.some(({ isPending }) => isPending)) return <Loading what="Reading their steps" />;
  const failed = queries.find(({ error }) => error);
  return (
    <div className="stack">
      {failed && <ErrorNote error={failed.error} />}
      <RangeControls address={address} last={last} />
      <Reading indexed={Math.min(1, ...known.map(({ indexed }) => indexed))} />
      <div className="grid wide">
        {charts.map(({ title, lines }) => (
          <LineChart key={title} {...{ title, lines, domain, view }} onZoom={(from, to) => address.set({ from, to })} />
        ))}
      </div>
    </div>
  );
}

function chartsOf(
  runs: readonly RunDetail[],
  all: readonly (RunSeries | undefined)[],
  [from, to]: readonly [number, number],
) {
  const known = all.filter((data) => data !== undefined);
  const lineOf = (points: (run: RunDetail, series: RunSeries) => Line["points"], dots = false): Line[] =>
    runs.flatMap((run, i) => {
      const series = all[i];
      const found = series ? points(run, series) : [];
      return found.length ? [{ label: run.id, series: i + 1, points: found, dots }] : [];
    });
  const perplexity = lineOf(
    ({ evaluations }) =>
      evaluationPoints(
        evaluations.filter(({ step }) => step >= from && step <= to),
        (evaluation) => evaluation.perplexity,
      ),
    true,
  );
  const charts = chartedNames(known).map((name) => ({
    title: titleOf(name),
    lines: lineOf((_, series) => seriesPoints(series, name)),
  }));
  if (perplexity.length > 0) charts.splice(1, 0, { title: "Dev perplexity", lines: perplexity });
  return charts;
}

interface Row {
  readonly name: string;
  readonly values: readonly string[];
}

function Difference({ runs, address }: { runs: readonly RunDetail[]; address: Address }) {
  const everything = address.get("same") === "1";
  const settings = runs.map(({ config }) => new Map(settingsOf(config).map(({ name, value }) => [name, value])));
  const names = [...new Set(settings.flatMap((one) => [...one.keys()]))];
  const rows = names.map((name): Row => ({ name, values: settings.map((one) => one.get(name) ?? "–") }));
  const differing = rows.filter(({ values }) => new Set(values).size > 1);
  const shown = everything ? rows : differing;
  const columns: readonly Column<Row>[] = [
    { key: "name", title: "Setting", head: true, value: ({ name }) => name, cell: ({ name }) => <code>{name}</code> },
    ...runs.map(
      ({ id }, i): Column<Row> => ({
        ...{ key: id, title: id },
        cell: ({ values }) => <span className="value">{values[i]}</span>,
      }),
    ),
  ];
  return (
    <Card
      title="Config"
      tools={
        <Checkbox
          label={`Also the ${rows.length - differing.length} settings that are equal`}
          checked={everything}
          onChange={({ target }) => address.set({ same: target.checked ? "1" : undefined })}
        />
      }
    >
      {shown.length === 0 ? (
        <Empty title="Their configs are equal" />
      ) : (
        <DataTable
          caption="Settings in which the runs differ"
          columns={columns}
          rows={shown}
          keyOf={({ name }) => name}
        />
      )}
    </Card>
  );
}
