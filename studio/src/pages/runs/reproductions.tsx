/** @file What `milora reproduce` has written below the folders of runs. */
import { Link } from "wouter";
import type { ReproductionSummary } from "../../../../src/serving/studio/types.ts";
import { type Column, DataTable, Empty, Loaded, time } from "../../ui/index.ts";
import { link } from "./address.ts";
import { useReproductions } from "./api.ts";

const COLUMNS: readonly Column<ReproductionSummary>[] = [
  {
    ...{ key: "name", title: "Name", head: true, value: ({ id }) => id },
    cell: ({ id }) => <Link href={link("/runs/reproduction", { id })}>{id}</Link>,
  },
  { key: "preset", title: "Preset", value: ({ preset }) => preset, cell: ({ preset }) => preset },
  { key: "model", title: "Backbone", value: ({ model }) => model, cell: ({ model }) => model },
  {
    ...{ key: "studies", title: "Tables and figures" },
    cell: ({ studies }) => studies.map(({ name }) => name).join(", "),
  },
  {
    ...{ key: "done", title: "Measured", numeric: true },
    cell: ({ studies }) => {
      const [done, cells] = [sum(studies, "done"), sum(studies, "cells")];
      return <span className="nowrap">{`${done} of ${cells} cells`}</span>;
    },
  },
  {
    ...{ key: "made", title: "Made", value: ({ made }) => made },
    cell: ({ made }) => <span className="nowrap">{time(made)}</span>,
  },
];

const sum = (studies: ReproductionSummary["studies"], key: "done" | "cells"): number =>
  studies.reduce((total, study) => total + study[key], 0);

export function ReproductionList() {
  return (
    <Loaded query={useReproductions()} what="Looking for reproductions">
      {(found) =>
        found.length === 0 ? (
          <Empty title="Nothing has been reproduced yet">
            <p>The paper's tables and figures appear here once they have been measured:</p>
            <pre>milora reproduce table1 --preset smoke --output runs/reproduction</pre>
          </Empty>
        ) : (
          <DataTable
            caption="Reproductions"
            columns={COLUMNS}
            rows={found}
            keyOf={({ id }) => id}
            initialSort={{ key: "made", down: true }}
          />
        )
      }
    </Loaded>
  );
}
