/** @file One reproduction: the paper's tables with our numbers beside, its figures, what differs, what failed. */
import type { PlotOptions } from "@observablehq/plot";
import { useCallback } from "react";
import { Link } from "wouter";
import type { ReproducedChart, ReproducedTable, Reproduction } from "../../../../src/serving/studio/types.ts";
import {
  Card,
  Chart,
  type Column,
  DataTable,
  DownloadButton,
  expertName,
  Loaded,
  number,
  Page,
  percent,
  SelectField,
  seriesColor,
  time,
} from "../../ui/index.ts";
import { useAddress } from "./address.ts";
import { useReproduction } from "./api.ts";
import { Failures } from "./failures.tsx";
import { HeatMap } from "./heat-map.tsx";
import { cellOf, csvOf, isNumeric, isOfPaper, type Row, sortValue } from "./reproduced.ts";

export function ReproductionPage({ id }: { id: string }) {
  return (
    <Page title={id} tools={<Link href="/runs/reproductions">All reproductions</Link>}>
      <Loaded query={useReproduction(id)} what="Reading the report">
        {(report) => <Shown report={report} />}
      </Loaded>
    </Page>
  );
}

function Shown({ report }: { report: Reproduction }) {
  const { get, set } = useAddress();
  const { studies, differences, failures, id: _, ...facts } = report;
  const only = studies.find(({ name }) => name === get("study"));
  return (
    <div className="stack">
      <div className="spread">
        <p>
          Zhang et al. 2024, <i>MiLoRA</i>, arXiv 2410.18035. Preset {facts.preset} on {facts.model}, {facts.seeds}{" "}
          {facts.seeds === 1 ? "seed" : "seeds"}, {facts.machine}, {time(facts.made)}.
        </p>
        <DownloadButton
          name={`${report.id.split("/").at(-1)}.json`}
          type="application/json"
          text={() => JSON.stringify({ ...facts, studies, differences, failures }, null, 2)}
          label="Everything as JSON"
        />
      </div>
      <Failures of={failures} text="These could not be measured:" />
      <div className="row">
        <SelectField
          label="Table or figure"
          value={only?.name ?? ""}
          options={[["", "all"], ...studies.map(({ name, title }) => [name, title] as const)]}
          onChange={({ target }) => set({ study: target.value })}
        />
      </div>
      {(only ? [only] : studies).map((study) => (
        <Study key={study.name} study={study} />
      ))}
      {!only && <Differences of={differences} methods={facts.methods} />}
    </div>
  );
}

function Study({
  study: { title, about, tables, charts, cells, done, skipped },
}: {
  study: Reproduction["studies"][number];
}) {
  return (
    <Card title={title}>
      <p>
        {about}{" "}
        <span className="muted">
          {done} of {cells} cells measured.
        </span>
      </p>
      {tables.map((table) => (
        <Table key={table.name} table={table} of={title} />
      ))}
      {charts.length > 0 && (
        <div className="grid wide">
          {charts.map((chart) =>
            chart.kind === "lines" ? (
              <Figure key={chart.name} chart={chart} />
            ) : (
              <ShareMap key={chart.name} chart={chart} />
            ),
          )}
        </div>
      )}
      {skipped.length > 0 && (
        <details>
          <summary>Left out: {skipped.length}</summary>
          <ul>
            {skipped.map((line) => (
              <li key={line}>{line}</li>
            ))}
          </ul>
        </details>
      )}
    </Card>
  );
}

interface Numbered {
  readonly row: Row;
  readonly place: number;
}

function Table({ table, of }: { table: ReproducedTable; of: string }) {
  const { name, title, notes } = table;
  const columns = table.columns.map((column, i): Column<Numbered> => {
    const paper = isOfPaper(column);
    return {
      ...{ key: column.key, title: column.title || column.key, numeric: isNumeric(table, column), head: i === 0 },
      value: ({ row }) => sortValue(row[column.key]),
      cell: ({ row }) => {
        const { text, spread } = cellOf(row[column.key], column);
        return (
          <span className={paper ? "of-paper" : undefined}>
            {text}
            {spread && <span className="spread-of"> ({spread})</span>}
          </span>
        );
      },
    };
  });
  return (
    <div className="stack">
      <div className="spread">
        <h3>{title}</h3>
        {table.rows.length > 0 && (
          <DownloadButton name={`${name}.csv`} type="text/csv" text={() => csvOf(table)} label={`${name}.csv`} />
        )}
      </div>
      {table.rows.length > 0 && (
        <DataTable
          caption={`${of}: ${title}`}
          columns={columns}
          rows={table.rows.map((row, place) => ({ row, place }))}
          keyOf={({ place }) => String(place)}
        />
      )}
      {notes?.map((note) => (
        <p key={note} className="muted">
          {note}
        </p>
      ))}
    </div>
  );
}

type Lines = Extract<ReproducedChart, { kind: "lines" }>;

function Figure({ chart }: { chart: Lines }) {
  const { title, x, labels, lines } = chart;
  const nameOf = useCallback((at: number) => labels?.[at] ?? number(at), [labels]);
  const options = useCallback(
    (plot: typeof import("@observablehq/plot"), _width: number): PlotOptions => ({
      ...{ height: 260, marginLeft: 48 },
      x: { label: x, ...(labels ? { ticks: labels.map((_, i) => i) } : { ticks: 6 }), tickFormat: nameOf },
      y: { label: null, grid: true, nice: true },
      marks: lines.flatMap(({ points, spread, dashed }, i) => {
        const stroke = seriesColor(i + 1);
        const data = points.map(([at, y], p) => ({ at, y, low: spread?.[p]?.[0], high: spread?.[p]?.[1] }));
        const spreads = data.filter(({ low, high }) => typeof low === "number" && typeof high === "number");
        return [
          plot.areaY(spreads, { x: "at", y1: "low", y2: "high", fill: stroke, fillOpacity: 0.15 }),
          plot.lineY(data, { x: "at", y: "y", stroke, ...(dashed && { strokeDasharray: "4 3" }) }),
          plot.dot(
            data.filter(({ y }) => y !== null),
            { x: "at", y: "y", fill: stroke, r: 3 },
          ),
        ];
      }),
    }),
    [lines, x, labels, nameOf],
  );
  const places = [...new Set(lines.flatMap(({ points }) => points.map(([at]) => at)))].sort((a, b) => a - b);
  const table = () => ({
    columns: [x, ...lines.map(({ label }) => label)],
    rows: places.map((place) => [
      nameOf(place),
      ...lines.map(({ points }) => number(points.find(([at]) => at === place)?.[1], 4)),
    ]),
  });
  const legend = lines.map(({ label }, i) => ({ label, series: i + 1 }));
  const describe = lines
    .map(({ label, points }) => `${label}: ${points.map(([at, y]) => `${number(y)} at ${nameOf(at)}`).join(", ")}`)
    .join(". ");
  return <Chart {...{ title, describe, options, table, legend }} />;
}

function ShareMap({ chart }: { chart: Extract<ReproducedChart, { kind: "shares" }> }) {
  const { title, rows, columns, most, from, to } = chart;
  const mean = (row: number) => columns.reduce((sum, column) => sum + (column[row] ?? 0), 0) / columns.length;
  const describe = `mean of the layers ${rows.map((row, r) => `${expertName(row)} ${percent(mean(r))}`).join(", ")}`;
  return (
    <HeatMap
      {...{ title, describe, columns, most, from, to }}
      rows={rows.map(expertName)}
      nameOf={(layer) => `layer ${layer}`}
    />
  );
}

type Difference = Reproduction["differences"][number];

function Differences({ of, methods }: { of: readonly Difference[]; methods: number }) {
  const columns: readonly Column<Difference>[] = [
    { key: "setting", title: "Setting", head: true, value: ({ setting }) => setting, cell: ({ setting }) => setting },
    { key: "paper", title: "Paper", cell: ({ paper }) => <span className="value">{paper}</span> },
    { key: "here", title: "Here", cell: ({ here }) => <span className="value">{here}</span> },
    {
      ...{ key: "methods", title: "Of" },
      cell: ({ methods: named }) => (named.length === methods && methods > 1 ? "all methods" : named.join(", ")),
    },
  ];
  return (
    <Card title="Settings that are not the paper's">
      {of.length === 0 ? (
        <p>None.</p>
      ) : (
        <DataTable
          caption="Settings here and in the paper"
          columns={columns}
          rows={of}
          keyOf={({ setting, methods: named }) => `${setting} ${named.join()}`}
        />
      )}
    </Card>
  );
}
