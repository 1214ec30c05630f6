/** @file What the routers of a run do: shares of the experts in each layer over training, entropy, distinct routes. */
import { useMemo } from "react";
import type { RunDetail, RunExperts } from "../../../../src/serving/studio/types.ts";
import { ApiError } from "../../api/client.ts";
import { Card, type Column, DataTable, Empty, expertName, Loaded, number, percent } from "../../ui/index.ts";
import { useExperts } from "./api.ts";
import { HeatMap } from "./heat-map.tsx";
import { LineChart } from "./line-chart.tsx";
import type { Line } from "./lines.ts";

export function Experts({ run }: { run: RunDetail }) {
  const query = useExperts(run.id, run);
  if (query.error instanceof ApiError && query.error.code === "RUN_NOT_ROUTED") {
    return (
      <Empty title="Nothing was routed yet">
        <p>Shares of the experts are shown after the first step.</p>
      </Empty>
    );
  }
  return (
    <div className="stack">
      <Diagnosis run={run} />
      <Loaded query={query} what="Reading shares of the experts">
        {(experts) => <Shares run={run} experts={experts} />}
      </Loaded>
    </div>
  );
}

/** What the routers did on the dev rows. */
function Diagnosis({ run: { evaluations } }: { run: RunDetail }) {
  const known = useMemo(() => evaluations.filter(({ entropy }) => entropy !== null), [evaluations]);
  const charts = useMemo(() => {
    const line = (label: string, series: number, value: (entropy: number[]) => number, dashed = false): Line => ({
      ...{ label, series, dots: true, dashed },
      points: known.map(({ step, entropy }) => {
        const layers = entropy!.filter((layer) => layer !== null);
        return { x: step, y: layers.length ? value(layers) : null };
      }),
    });
    const mean = (layers: number[]) => layers.reduce((a, b) => a + b, 0) / layers.length;
    const routes: Line = {
      label: "routes",
      series: 3,
      dots: true,
      points: known.map(({ step, routes }) => ({ x: step, y: routes })),
    };
    return [
      {
        title: "Entropy of the routers, bits",
        lines: [
          line("mean of layers", 1, mean),
          line("highest", 2, (layers) => Math.max(...layers), true),
          line("lowest", 3, (layers) => Math.min(...layers), true),
        ],
      },
      { title: "Distinct routes of the dev rows", lines: [routes] },
    ];
  }, [known]);
  if (known.length === 0) return null;
  const domain = [known[0]!.step, known.at(-1)!.step] as const;
  return (
    <div className="grid wide">
      {charts.map((chart) => (
        <LineChart key={chart.title} {...chart} domain={domain} view={{ log: false, smooth: 0 }} linear />
      ))}
    </div>
  );
}

function Shares({ run, experts: { experts, layers, step, shares } }: { run: RunDetail; experts: RunExperts }) {
  const names = experts.map(expertName);
  const topK = (run.config.adapter as { top_k?: unknown } | undefined)?.top_k;
  const most = typeof topK === "number" && topK > 0 ? 1 / topK : 1;
  const last = shares.at(-1) ?? [];
  const lastSteps = `from step ${number(step.at(-1))} on`;
  const describe = (layer: number) =>
    `${lastSteps} ${names.map((name, e) => `${name} ${percent(last[layer]?.[e])}`).join(", ")}`;
  return (
    <>
      <Card title="Shares of the experts over training">
        <p className="muted">
          Of all experts that were active in a layer; the full colour, {percent(most)}, is an expert that is active for
          every prompt.
        </p>
        <div className="multiples">
          {Array.from({ length: layers }, (_, layer) => (
            <HeatMap
              // biome-ignore lint/suspicious/noArrayIndexKey: a layer is its number
              key={layer}
              title={`Layer ${layer}`}
              describe={describe(layer)}
              rows={names}
              columns={shares.map((point) => point[layer]!)}
              most={most}
              from={`step ${number(step[0])}`}
              to={number(run.step)}
              nameOf={(column) => `step ${number(step[column])}`}
            />
          ))}
        </div>
      </Card>
      <Card title={`In numbers, ${lastSteps}`}>
        <ShareTable names={names} shares={last} />
      </Card>
    </>
  );
}

interface LayerShares {
  readonly layer: number;
  readonly shares: readonly number[];
}

function ShareTable({ names, shares }: { names: readonly string[]; shares: readonly (readonly number[])[] }) {
  const columns: readonly Column<LayerShares>[] = [
    { key: "layer", title: "Layer", head: true, value: ({ layer }) => layer, cell: ({ layer }) => layer },
    ...names.map(
      (name, e): Column<LayerShares> => ({
        ...{ key: name, title: name, numeric: true, value: ({ shares }) => shares[e]! },
        cell: ({ shares }) => percent(shares[e], 1),
      }),
    ),
  ];
  return (
    <DataTable
      caption="Shares of the experts by layer"
      columns={columns}
      rows={shares.map((layer, i) => ({ layer: i, shares: layer }))}
      keyOf={({ layer }) => String(layer)}
    />
  );
}
