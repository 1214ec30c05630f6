/** @file One run: how it stands, its curves while they grow, its routing, its activations, and what it was told. */
import { useMemo } from "react";
import { Link } from "wouter";
import type { RunDetail, RunSeries } from "../../../../src/serving/studio/types.ts";
import { ago, duration, Loaded, Note, number, Page, Stats, time } from "../../ui/index.ts";
import { ActivationCurves } from "./activations.tsx";
import { type Address, rangeOf, useAddress, viewOf } from "./address.ts";
import { useRun, useSeries } from "./api.ts";
import { Settings } from "./config.tsx";
import { Experts } from "./experts.tsx";
import { LineChart, type LineChartProps } from "./line-chart.tsx";
import { chartedNames, evaluationPoints, type Line, seriesPoints, titleOf } from "./lines.ts";
import { RangeControls } from "./range.tsx";
import { Reading, StateBadge, Steps } from "./state.tsx";

export function RunPage({ id }: { id: string }) {
  const address = useAddress();
  return (
    <Page title={id} tools={<Link href="/runs">All runs</Link>}>
      <Loaded query={useRun(id)} what="Reading the run">
        {(run) => (run.problem === null ? <Shown run={run} address={address} /> : <Broken run={run} />)}
      </Loaded>
    </Page>
  );
}

function Broken({ run: { problem } }: { run: RunDetail }) {
  return (
    <Note kind="bad">
      <p>This run cannot be shown:</p>
      <p>{problem}</p>
    </Note>
  );
}

function Shown({ run, address }: { run: RunDetail; address: Address }) {
  const views = [
    ["", "Training"],
    ...(run.routed ? [["routing", "Routing"]] : []),
    ["activations", "Activations"],
    ["config", "Config"],
  ] as const;
  const view = views.find(([name]) => name === (address.get("view") ?? ""))?.[0] ?? "";
  return (
    <div className="stack">
      <Facts run={run} />
      <Reading indexed={run.indexed} />
      {run.damagedLines > 0 && (
        <Note kind="warn">{number(run.damagedLines)} lines of metrics.jsonl are damaged and were left out.</Note>
      )}
      <nav className="tabs" aria-label="Parts of the run">
        {views.map(([name, text]) => (
          <Link
            key={name}
            href={address.link("/runs/run", { view: name })}
            aria-current={name === view ? "page" : undefined}
          >
            {text}
          </Link>
        ))}
      </nav>
      {view === "" && <Curves run={run} address={address} />}
      {view === "routing" && <Experts run={run} />}
      {view === "activations" && <ActivationCurves run={run} />}
      {view === "config" && <Settings run={run} />}
    </div>
  );
}

function Facts({ run }: { run: RunDetail }) {
  const { method, model, rank, epoch, loss, bestPerplexity, bestStep, tokensPerSecond, tokens, seconds } = run;
  const left =
    run.state === "running" && run.plannedSteps !== null && run.step > 0
      ? (seconds / run.step) * (run.plannedSteps - run.step)
      : undefined;
  return (
    <div className="card stack">
      <div className="row">
        <StateBadge run={run} />
        <span>
          {method}
          {rank !== null && `, rank ${rank}`} on {model}
        </span>
        <Steps run={run} />
        <span className="muted" title={time(run.updatedAt)}>
          {run.state === "running" ? "live, " : ""}updated {ago(run.updatedAt)}
        </span>
      </div>
      <Stats
        of={[
          ["Loss", number(loss, 4)],
          ["Best perplexity", bestStep === null ? "–" : `${number(bestPerplexity, 4)} at step ${number(bestStep)}`],
          ["Epochs", number(epoch)],
          ["Tokens", number(tokens)],
          ["Tokens/s", number(tokensPerSecond && Math.round(tokensPerSecond))],
          ["Time of the steps", duration(seconds)],
          ...(left === undefined ? [] : [["Left", `about ${duration(left)}`] as const]),
        ]}
      />
    </div>
  );
}

function Curves({ run, address }: { run: RunDetail; address: Address }) {
  const range = rangeOf(address);
  const query = useSeries(run.id, range, run);
  if (run.step === 0) return <Note>There are no steps yet.</Note>;
  return (
    <div className="stack">
      <RangeControls address={address} last={run.step} />
      <p className="muted">
        Draw over a chart to see a part of the steps. Bands: least and largest of the steps in a point.
      </p>
      <Loaded query={query} what="Reading its steps">
        {(series) => <Charts {...{ run, series, address }} />}
      </Loaded>
    </div>
  );
}

function Charts({ run, series, address }: { run: RunDetail; series: RunSeries; address: Address }) {
  const { evaluations, config } = run;
  const { from, to } = series;
  const view = viewOf(address);
  const domain = useMemo(() => [from, to] as const, [from, to]);
  const zoom = (first: number, last: number) => address.set({ from: first, to: last });
  const charts = useMemo(() => chartsOf(series, evaluations, config), [series, evaluations, config]);
  return (
    <div className="grid wide">
      {charts.map((chart) => (
        <LineChart key={chart.title} {...chart} domain={domain} view={view} onZoom={zoom} />
      ))}
    </div>
  );
}

type ChartOf = Pick<LineChartProps, "title" | "lines" | "linear">;

function chartsOf(series: RunSeries, evaluations: RunDetail["evaluations"], config: RunDetail["config"]): ChartOf[] {
  const within = evaluations.filter(({ step }) => step >= series.from && step <= series.to);
  const dev: Line = { label: "dev rows", series: 2, dots: true, points: evaluationPoints(within, ({ loss }) => loss) };
  const charts = chartedNames([series]).map((name): ChartOf => {
    const line: Line = {
      label: name === "lm_loss" ? "training rows" : "mean",
      series: 1,
      points: seriesPoints(series, name),
    };
    const others =
      name === "lm_loss" && within.length > 0 ? [dev] : name === "grad_norm" ? clipping(series, config) : [];
    return { title: titleOf(name), lines: [line, ...others] };
  });
  if (within.length > 0) {
    const points = evaluationPoints(within, ({ perplexity }) => perplexity);
    charts.splice(1, 0, { title: "Dev perplexity", lines: [{ label: "dev rows", series: 2, dots: true, points }] });
  }
  return charts;
}

/** Where gradients are scaled down. */
function clipping({ from, to }: RunSeries, { max_grad_norm }: RunDetail["config"]): Line[] {
  if (typeof max_grad_norm !== "number" || max_grad_norm <= 0) return [];
  const points = [from, to].map((x) => ({ x, y: max_grad_norm }));
  return [{ label: "clipped to", series: 7, dashed: true, points }];
}
