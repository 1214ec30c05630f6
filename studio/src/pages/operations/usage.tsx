/** @file What was used: over time, by tenant or adapter, as a chart, a table and a file. */
import type { PlotOptions } from "@observablehq/plot";
import { useCallback, useMemo } from "react";
import type { UsageRow } from "../../../../src/serving/store/types.ts";
import { useSession } from "../../api/session.tsx";
import {
  Chart,
  type Column,
  DataTable,
  DownloadButton,
  Empty,
  Loaded,
  number,
  percent,
  SelectField,
  Stats,
  seriesColor,
} from "../../ui/index.ts";
import { hoursAgo, useTenants, useUsage } from "./api.ts";
import { useFilters } from "./filters.ts";
import { Operations } from "./frame.tsx";
import {
  type Bar,
  barsOf,
  csvOf,
  type Group,
  groupsOf,
  type Measure,
  OTHERS,
  type Step,
  timesOf,
} from "./usage-sums.ts";

const SPANS = [
  ["24", "24 hours"],
  ["168", "7 days"],
  ["720", "30 days"],
  ["2160", "90 days"],
] as const;
const GROUPS = [
  ["tenant", "tenant"],
  ["adapter", "adapter"],
] as const;
const MEASURES = [
  ["tokens", "tokens"],
  ["requests", "requests"],
] as const;

const oneOf = <T extends string>(options: readonly (readonly [T, string])[], text: string, usual: T): T =>
  options.find(([value]) => value === text)?.[0] ?? usual;

export function Usage() {
  const { get, set } = useFilters();
  const tenants = useTenants();
  const span = oneOf(SPANS, get("span"), "24");
  const by = oneOf(GROUPS, get("by"), "tenant");
  const measure = oneOf(MEASURES, get("of"), "tokens");
  const tenant = get("tenant");
  // By the hour for a day, else by the day.
  const step: Step = span === "24" ? "hour" : "day";
  const from = useMemo(() => startOf(Number(span), step), [span, step]);
  const usage = useUsage([step, by], from, tenant === "" ? undefined : tenant, step === "hour");
  const select = (label: string, name: string, value: string, options: readonly (readonly [string, string])[]) => (
    <SelectField {...{ label, value, options }} onChange={(event) => set(name, event.target.value)} />
  );
  return (
    <Operations title="Usage">
      <div className="filters">
        {select("Of the last", "span", span, SPANS)}
        {select("By", "by", by, GROUPS)}
        {select("Chart of", "of", measure, MEASURES)}
        {select("Tenant", "tenant", tenant, [["", "all"], ...(tenants.data ?? []).map(({ id }) => [id, id] as const)])}
      </div>
      <Loaded query={usage} what="Adding up">
        {(rows) =>
          rows.length === 0 ? (
            <Empty title="Nothing was used in this time">
              <p>Each answer is counted with its tenant, key and adapter, within a second.</p>
            </Empty>
          ) : (
            <Report {...{ rows, by, step, measure, from }} />
          )
        }
      </Loaded>
    </Operations>
  );
}

function startOf(hours: number, step: Step): string {
  const start = new Date(hoursAgo(hours - 1));
  if (step === "day") start.setUTCHours(24, 0, 0, 0); // as many whole days, this one with them
  return start.toISOString();
}

function Report({
  rows,
  by,
  step,
  measure,
  from,
}: {
  rows: readonly UsageRow[];
  by: "tenant" | "adapter";
  step: Step;
  measure: Measure;
  from: string;
}) {
  const { server } = useSession();
  const backbone = server?.base ?? "the backbone";
  const groups = useMemo(() => groupsOf(rows, by, measure, backbone), [rows, by, measure, backbone]);
  const bars = useMemo(() => barsOf(rows, groups, by, step, measure, backbone), [rows, groups, by, step, measure, backbone]); // biome-ignore format: one line
  const options = useCallback((plot: typeof import("@observablehq/plot")) => chartOf(plot, bars, from, step, measure), [bars, from, step, measure]); // biome-ignore format: one line
  const total = (pick: (group: Group) => number): number => groups.reduce((sum, group) => sum + pick(group), 0);
  const [requests, tokens] = [total((group) => group.requests), total((group) => group.tokens)];
  const table = () => ({
    columns: [step, by, measure],
    rows: bars.map(({ start, name, value }) => [`${start.toISOString().slice(0, 16)}Z ${name}`, name, value]),
  });
  return (
    <>
      <Stats
        of={[
          ["Requests", number(requests)],
          ["Tokens of prompts", number(total((group) => group.promptTokens))],
          ["Tokens of answers", number(total((group) => group.completionTokens))],
        ]}
      />
      <div className="card">
        <Chart
          title={`${measure === "tokens" ? "Tokens" : "Requests"} by ${by}, each ${step} (UTC)`}
          describe={`${number(measure === "tokens" ? tokens : requests)} ${measure} in all`}
          options={options}
          table={table}
          legend={legendOf(groups)}
          tools={
            <DownloadButton
              name={`usage-${by}-${from.slice(0, 10)}.csv`}
              type="text/csv"
              label="CSV"
              text={() => csvOf(rows, by, step)}
            />
          }
        />
      </div>
      <DataTable
        caption={`Usage by ${by}`}
        rows={groups}
        keyOf={({ name }) => name}
        initialSort={{ key: measure, down: true }}
        columns={columnsOf(by, measure === "tokens" ? tokens : requests, measure)}
      />
    </>
  );
}

const legendOf = (groups: readonly Group[]) => {
  const named = new Map(groups.map(({ name, series, other }) => [other ? OTHERS : name, series]));
  return [...named].map(([label, series]) => ({ label, series }));
};

function chartOf(
  plot: typeof import("@observablehq/plot"),
  bars: readonly Bar[],
  from: string,
  step: Step,
  measure: Measure,
): PlotOptions {
  const times = timesOf(new Date(from), step);
  return {
    height: 260,
    marginLeft: 60,
    x: { type: "utc", label: null, domain: [times[0]!, times.at(-1)!] },
    y: { label: measure, grid: true, nice: true, tickFormat: "~s" },
    color: { type: "identity" },
    marks: [
      plot.ruleY([0]),
      plot.rect(bars, {
        x1: "start",
        x2: "end",
        y1: "below",
        y2: "above",
        insetLeft: 0.5,
        insetRight: 0.5,
        fill: (bar: Bar) => seriesColor(bar.series),
      }),
    ],
  };
}

function columnsOf(by: string, all: number, measure: Measure): readonly Column<Group>[] {
  const count = (key: "requests" | "promptTokens" | "completionTokens" | "tokens", title: string): Column<Group> => ({
    ...{ key, title, numeric: true },
    cell: (group) => number(group[key]),
    value: (group) => group[key],
  });
  return [
    {
      ...{ key: "name", title: by === "tenant" ? "Tenant" : "Adapter", head: true },
      cell: ({ name }) => name,
      value: ({ name }) => name,
    },
    count("requests", "Requests"),
    count("promptTokens", "Tokens of prompts"),
    count("completionTokens", "Tokens of answers"),
    count("tokens", "Tokens"),
    {
      ...{ key: "share", title: `Share of ${measure}`, numeric: true },
      cell: (group) => percent(all > 0 ? group[measure] / all : 0, 1),
    },
  ];
}
