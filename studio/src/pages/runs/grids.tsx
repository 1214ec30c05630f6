/** @file Grids that `milora sweep` has put into folders: which there are, and the table of one. */
import { Link } from "wouter";
import type { GridDetail, GridPoint, GridSummary } from "../../../../src/serving/studio/types.ts";
import { Badge, type Column, DataTable, DownloadButton, Empty, Loaded, number, Page, time } from "../../ui/index.ts";
import { link, runLink } from "./address.ts";
import { Failures } from "./failures.tsx";
import { cellOf, csvOf, isNumeric } from "./reproduced.ts";
import { useGrid, useGrids, useSweeps } from "./sweep-api.ts";
import { Share, SweepList } from "./sweeps.tsx";

const isWhole = ({ cells, trainings }: GridSummary): boolean =>
  cells.done === cells.total && trainings.done === trainings.total;

function GridBadge({ grid }: { grid: GridSummary }) {
  return isWhole(grid) ? <Badge kind="good">finished</Badge> : <Badge>not finished</Badge>;
}

const COLUMNS: readonly Column<GridSummary>[] = [
  {
    ...{ key: "name", title: "Name", head: true, value: ({ id }) => id },
    cell: ({ id }) => <Link href={link("/runs/grid", { id })}>{id}</Link>,
  },
  { key: "state", title: "State", cell: (grid) => <GridBadge grid={grid} /> },
  { key: "axes", title: "Tried", cell: ({ axes }) => axes.join(", ") },
  { key: "evaluations", title: "Measured on", cell: ({ evaluations }) => evaluations.join(", ") },
  {
    ...{ key: "trainings", title: "Trainings", value: ({ trainings }) => trainings.total },
    cell: ({ trainings, id }) => <Share of={trainings} what={`Trainings of ${id}`} />,
  },
  {
    ...{ key: "cells", title: "Measured", value: ({ cells }) => cells.total },
    cell: ({ cells, id }) => <Share of={cells} what={`Measured cells of ${id}`} />,
  },
  {
    ...{ key: "updated", title: "Last finished", value: ({ updatedAt }) => updatedAt },
    cell: ({ updatedAt }) => <span className="nowrap">{time(updatedAt)}</span>,
  },
];

/** Those of folders; with a database, those that are not in it. */
export function GridList() {
  return (
    <Loaded query={useGrids()} what="Looking for grids">
      {(grids) =>
        grids.length === 0 ? (
          <Empty title="There are no grids yet">
            <p>A grid appears here as soon as it is begun:</p>
            <pre>milora sweep run grid.yaml --output runs/grid</pre>
          </Empty>
        ) : (
          <Table grids={grids} />
        )
      }
    </Loaded>
  );
}

function Table({ grids }: { grids: readonly GridSummary[] }) {
  return (
    <DataTable
      caption="Grids in folders"
      columns={COLUMNS}
      rows={grids}
      keyOf={({ id }) => id}
      initialSort={{ key: "updated", down: true }}
    />
  );
}

/** What is in the database, and below it what is in folders only. */
export function SweepsAndGrids() {
  const sweeps = useSweeps().data?.sweeps;
  const known = new Set(sweeps?.map(({ directory }) => directory));
  const grids = (useGrids().data ?? []).filter(({ directory }) => !known.has(directory));
  return (
    <div className="stack">
      <SweepList />
      {sweeps && grids.length > 0 && <Table grids={grids} />}
    </div>
  );
}

export function GridPage({ id }: { id: string }) {
  return (
    <Page title={id} tools={<Link href="/runs/sweeps">All sweeps</Link>}>
      <Loaded query={useGrid(id)} what="Reading the grid">
        {(grid) => <Shown grid={grid} />}
      </Loaded>
    </Page>
  );
}

interface Numbered {
  readonly point: GridPoint;
  readonly place: number;
}

function Shown({ grid }: { grid: GridDetail }) {
  const { id, directory, columns, points, trainings, cells, read, failures } = grid;
  const table = { name: "grid", title: "Results", columns, rows: points.map(({ values }) => values) };
  const shown = columns.map((column, i): Column<Numbered> => {
    const { key, title } = column;
    return {
      ...{ key, title, numeric: isNumeric(table, column), head: i === 0 },
      value: ({ point }) => point.values[key] ?? null,
      cell: ({ point }) => cellOf(point.values[key], column).text,
    };
  });
  const training: Column<Numbered> = {
    ...{ key: "training", title: "Training" },
    cell: ({ point: { run, trained, devPerplexity } }) => {
      if (trained === null) return "";
      const text = trained ? `dev perplexity ${number(devPerplexity, 4)}` : "not finished";
      return run === null ? text : <Link href={runLink(run)}>{text}</Link>;
    },
  };
  return (
    <div className="stack">
      <div className="spread">
        <div className="row">
          <GridBadge grid={grid} />
          <Share of={trainings} what="Trainings" />
          <Share of={cells} what="Measured cells" />
          <span className="value">{directory}</span>
        </div>
        <DownloadButton
          name={`${id.split("/").at(-1)}.csv`}
          type="text/csv"
          text={() => csvOf(table)}
          label="Results as CSV"
        />
      </div>
      {read < trainings.done + cells.done && (
        <p role="status">
          Reading: {read} of {trainings.done + cells.done} …
        </p>
      )}
      {!isWhole(grid) && (
        <Failures of={failures} text="These failed when it was last worked on; the same command tries them again:" />
      )}
      <DataTable
        caption="Results"
        columns={points.some(({ trained }) => trained !== null) ? [...shown, training] : shown}
        rows={points.map((point, place) => ({ point, place }))}
        keyOf={({ place }) => String(place)}
      />
      {!isWhole(grid) && <p className="muted">A dash is not measured yet, or failed.</p>}
    </div>
  );
}
