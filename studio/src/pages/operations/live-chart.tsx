/** @file A chart of the last minutes. */
import type { PlotOptions } from "@observablehq/plot";
import { useCallback } from "react";
import { Chart, number, seriesColor } from "../../ui/index.ts";
import type { Point } from "./history.ts";

export interface Line {
  readonly label: string;
  readonly of: (point: Point) => number | null;
  readonly series: number;
}

const clock = (at: Date): string => at.toLocaleTimeString("en", { hour12: false });

/** @param lines the same object each time, else it is drawn anew with everything */
export function LiveChart({
  title,
  unit,
  points,
  lines,
}: {
  title: string;
  unit: string;
  points: readonly Point[];
  lines: readonly Line[];
}) {
  const options = useCallback(
    (plot: typeof import("@observablehq/plot"), _width: number): PlotOptions => {
      const most = Math.max(...lines.flatMap(({ of }) => points.map((point) => of(point) ?? 0)), 0);
      return {
        height: 180,
        marginLeft: 52,
        x: { type: "time", label: null, ...(points.length > 1 && { domain: [points[0]!.at, points.at(-1)!.at] }) },
        y: { label: unit, grid: true, nice: true, domain: [0, most === 0 ? 1 : most] },
        marks: [
          plot.ruleY([0]),
          ...lines.flatMap(({ of, series }) => [
            plot.lineY(points, { x: "at", y: (point: Point) => of(point), stroke: seriesColor(series) }),
            // A second between two without any time would not be seen in a line.
            plot.dot(
              points.filter((point, i) => of(point) !== null && isAlone(points, i, of)),
              { x: "at", y: (point: Point) => of(point), r: 1.5, fill: seriesColor(series) },
            ),
          ]),
        ],
      };
    },
    [points, lines, unit],
  );
  if (points.every((point) => lines.every(({ of }) => of(point) === null))) {
    return (
      <div className="card stack">
        <h3>{title}</h3>
        <p className="muted">Nothing was generated in this time.</p>
      </div>
    );
  }
  const last = points.at(-1);
  const now = lines.map(({ label, of }) => `${label} ${number(last ? of(last) : null)}`).join(", ");
  const table = () => ({
    columns: ["time", ...lines.map(({ label }) => `${label}, ${unit}`)],
    rows: points.toReversed().map((point) => [clock(point.at), ...lines.map(({ of }) => number(of(point)))]),
  });
  return (
    <div className="card">
      <Chart title={title} describe={`Last: ${now} ${unit}`} options={options} table={table} legend={lines} />
    </div>
  );
}

function isAlone(points: readonly Point[], i: number, of: Line["of"]): boolean {
  const missing = (point: Point | undefined): boolean => point === undefined || of(point) === null;
  return missing(points[i - 1]) && missing(points[i + 1]);
}
