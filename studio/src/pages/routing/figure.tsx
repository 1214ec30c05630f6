/** @file Figure 2 of a data set: shares by layer and expert, how decided the routers are, and what they tell of the answers. */
import type { PlotOptions } from "@observablehq/plot";
import { useMemo } from "react";
import type { ExploreDataResult } from "../../../../src/serving/studio/types.ts";
import {
  Card,
  Chart,
  type ChartTable,
  DownloadButton,
  expertName,
  heatColor,
  number,
  percent,
  Stats,
  seriesColor,
} from "../../ui/index.ts";
import { csvOf, svgOf } from "./files.ts";

type Plot = typeof import("@observablehq/plot");

const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / Math.max(1, values.length);

export function Figure({ result, title }: { result: ExploreDataResult; title: string }) {
  const { rows, routes, entropy, experts, active, information, informationByChance, labelEntropy } = result;
  const shares = experts.map((_, expert) => mean(active.map((layer) => layer[expert]!)));
  const most = shares.indexOf(Math.max(...shares));
  const told = information.length > 0;
  return (
    <Card title={title}>
      <Stats
        of={[
          ["prompts", number(rows)],
          ["distinct routes", number(routes)],
          ["most active expert", `${expertName(experts[most]!)}, ${percent(shares[most])}`],
          ["mean entropy", `${number(mean(entropy))} of ${number(Math.log2(experts.length))} bits`],
        ]}
      />
      <Shares {...{ result, title }} />
      <p className="muted measure">
        Full colour: this expert is on for every prompt of the data; none: for no prompt. In between, it depends on the
        prompt.
      </p>
      <div className="grid">
        <Lines
          title="How undecided the routers are"
          about="Entropy of the router's probabilities, mean over the prompts. At the dashed line all experts are equally likely."
          limit={Math.log2(experts.length)}
          lines={[["entropy", entropy]]}
        />
        {told ? (
          <Lines
            title="What the chosen experts tell of the answer"
            about={`Mutual information of a layer's experts and the rows' answers, of ${number(labelEntropy)} bits that there are; and what as few rows show by chance.`}
            lines={[
              ["information", information],
              ["by chance", informationByChance],
            ]}
          />
        ) : (
          <p className="muted">The rows have no answers, so nothing is known of what the experts tell of them.</p>
        )}
      </div>
    </Card>
  );
}

function Shares({ result, title }: { result: ExploreDataResult; title: string }) {
  const options = useMemo(() => sharesPlot(result), [result]);
  const { experts, active, rows } = result;
  const name = `figure2-${title.replaceAll(/[^A-Za-z0-9._-]+/g, "-")}`;
  return (
    <Chart
      title="Share of the prompts for which each expert is active"
      describe={`Layers across, experts down, ${rows} prompts; the table has the numbers.`}
      options={options}
      table={(): ChartTable => ({
        columns: ["layer", ...experts.map(expertName)],
        rows: active.map((shares, layer) => [layer, ...shares.map((share) => percent(share))]),
      })}
      tools={
        <>
          <DownloadButton label="CSV" name={`${name}.csv`} type="text/csv" text={() => csvOf(result)} />
          <DownloadButton label="SVG" name={`${name}.svg`} type="image/svg+xml" text={() => svgOf(result, title)} />
        </>
      }
    />
  );
}

function sharesPlot({ experts, active }: ExploreDataResult) {
  const cells = active.flatMap((shares, layer) =>
    shares.map((share, expert) => ({ layer, expert: expertName(experts[expert]!), share })),
  );
  return (plot: Plot, width: number): PlotOptions => ({
    height: experts.length * 26 + 50,
    marginLeft: 48,
    x: { type: "band", label: "layer", domain: active.map((_, layer) => layer), ...(width < 600 && { ticks: [] }) },
    y: { type: "band", label: null, domain: experts.map(expertName) },
    color: { type: "identity" },
    marks: [
      plot.cell(cells, {
        x: "layer",
        y: "expert",
        fill: ({ share }: { share: number }) => heatColor(share),
        inset: 0.5,
        title: ({ layer, expert, share }: (typeof cells)[number]) => `layer ${layer}, ${expert}: ${percent(share, 1)}`,
      }),
    ],
  });
}

function Lines({
  title,
  about,
  lines,
  limit,
}: {
  title: string;
  about: string;
  lines: readonly (readonly [name: string, values: readonly number[]])[];
  /** A value that is not passed. */
  limit?: number;
}) {
  const options = useMemo(() => linesPlot(lines, limit), [lines, limit]);
  return (
    <div className="stack tight">
      <Chart
        title={title}
        describe={about}
        options={options}
        legend={lines.map(([label], i) => ({ label, series: i + 1 }))}
        table={(): ChartTable => ({
          columns: ["layer", ...lines.map(([name]) => `${name}, bits`)],
          rows: lines[0]![1].map((_, layer) => [layer, ...lines.map(([, values]) => values[layer]!)]),
        })}
      />
      <p className="muted">{about}</p>
    </div>
  );
}

function linesPlot(lines: readonly (readonly [string, readonly number[]])[], limit: number | undefined) {
  return (plot: Plot): PlotOptions => ({
    height: 200,
    x: { label: "layer", tickFormat: (layer: number) => (Number.isInteger(layer) ? String(layer) : "") },
    y: { label: "bits", zero: true, grid: true, nice: true },
    marks: [
      ...(limit === undefined ? [] : [plot.ruleY([limit], { stroke: "var(--muted)", strokeDasharray: "4 3" })]),
      ...lines.flatMap(([, values], i) => {
        const points = values.map((bits, layer) => ({ layer, bits }));
        const stroke = seriesColor(i + 1);
        return [
          plot.lineY(points, { x: "layer", y: "bits", stroke, ...(i > 0 && { strokeDasharray: "2 3" }) }),
          plot.dot(points, { x: "layer", y: "bits", fill: stroke, r: 2.5 }),
        ];
      }),
    ],
  });
}
