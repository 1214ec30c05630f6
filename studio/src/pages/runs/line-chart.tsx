/** @file Lines over steps with the band of what they stand for; a part of them is chosen by drawing over it. */
import type { PlotOptions } from "@observablehq/plot";
import { type PointerEvent, type ReactNode, useCallback, useMemo, useRef, useState } from "react";
import { Chart, number, seriesColor } from "../../ui/index.ts";
import type { View } from "./address.ts";
import { inWords, type Line, type Point, smoothed } from "./lines.ts";

const [LEFT, RIGHT] = [56, 12];
/** Narrower than that is a click. */
const LEAST_PIXELS = 6;

export interface LineChartProps {
  readonly title: string;
  readonly lines: readonly Line[];
  /** First and last step. */
  readonly domain: readonly [from: number, to: number];
  readonly view: View;
  readonly onZoom?: ((from: number, to: number) => void) | undefined;
  /** A quantity of which logarithms mean nothing. */
  readonly linear?: boolean;
}

export function LineChart({ title, lines, domain: [from, to], view, onZoom, linear = false }: LineChartProps) {
  const log = view.log && !linear;
  const drawn = useMemo(
    () => lines.map((line) => (line.dots ? line : { ...line, points: smoothed(line.points, view.smooth) })),
    [lines, view.smooth],
  );
  const options = useCallback(
    (plot: typeof import("@observablehq/plot"), _width: number): PlotOptions => ({
      height: 220,
      marginLeft: LEFT,
      marginRight: RIGHT,
      x: { label: "step", domain: from < to ? [from, to] : [from - 0.5, from + 0.5], ticks: 5 },
      y: { label: null, grid: true, type: log ? "log" : "linear" },
      marks: drawn.flatMap((line) => marks(plot, line, log, drawn.length > 1)),
    }),
    [drawn, from, to, log],
  );
  const table = () => tableOf(drawn);
  const describe = lines.map(inWords).join(". ");
  const chart = <Chart {...{ title, describe, options, table, legend: lines }} />;
  return (
    <div className="card">
      {onZoom ? (
        <Brush domain={[from, to]} onZoom={onZoom}>
          {chart}
        </Brush>
      ) : (
        chart
      )}
    </div>
  );
}

function marks(plot: typeof import("@observablehq/plot"), line: Line, log: boolean, named: boolean) {
  const { series, dots, dashed, label } = line;
  const fits = (value: number | null | undefined): value is number => typeof value === "number" && (!log || value > 0);
  const points = line.points.map((point) => (fits(point.y) ? point : { ...point, y: null }));
  const band = points.filter(({ low, high }) => fits(low) && fits(high));
  const color = seriesColor(series);
  const title = ({ x, y, low, high }: Point) =>
    `${named ? `${label}\n` : ""}step ${number(x)}: ${number(y, 4)}` +
    (low !== high && fits(low) && fits(high) ? `\n${number(low)} to ${number(high)}` : "");
  const shown = points.filter(({ y }) => y !== null);
  return [
    ...(band.some(({ low, high }) => low !== high)
      ? [plot.areaY(band, { x: "x", y1: "low", y2: "high", fill: color, fillOpacity: 0.18 })]
      : []),
    plot.lineY(points, {
      ...{ x: "x", y: "y", stroke: color, strokeWidth: 1.5 },
      ...(dashed && { strokeDasharray: "4 3" }),
    }),
    ...(dots || (!dashed && shown.length < 40) ? [plot.dot(shown, { x: "x", y: "y", fill: color, r: 2.5 })] : []),
    plot.tip(shown, plot.pointerX({ x: "x", y: "y", title, fill: "var(--surface)", stroke: "var(--line)" })),
  ];
}

function tableOf(lines: readonly Line[]) {
  const steps = [...new Set(lines.flatMap(({ points }) => points.map(({ x }) => x)))].sort((a, b) => a - b);
  const columns = lines.map(({ points }) => new Map(points.map(({ x, y }) => [x, y])));
  return {
    columns: ["step", ...lines.map(({ label }) => label)],
    rows: steps.map((step) => [step, ...columns.map((column) => number(column.get(step), 4))]),
  };
}

interface Drag {
  readonly start: number;
  readonly end: number;
}

/** A part of the picture is drawn over; the keyboard has the fields for the range. */
function Brush({
  domain: [from, to],
  onZoom,
  children,
}: {
  domain: readonly [number, number];
  onZoom: (from: number, to: number) => void;
  children: ReactNode;
}) {
  const box = useRef<HTMLDivElement>(null);
  const [drag, setDrag] = useState<Drag>();
  const frame = () => {
    const [outer, picture] = [box.current, box.current?.querySelector(".canvas > svg, .canvas > figure svg")];
    if (!outer || !picture) return undefined;
    const [a, b] = [outer.getBoundingClientRect(), picture.getBoundingClientRect()];
    return { left: b.left - a.left + LEFT, right: b.right - a.left - RIGHT, top: b.top - a.top, height: b.height };
  };
  const placeOf = (event: PointerEvent): number => {
    const { left = 0, right = 0 } = frame() ?? {};
    const x = event.clientX - (box.current?.getBoundingClientRect().left ?? 0);
    return Math.min(right, Math.max(left, x));
  };
  const begin = (event: PointerEvent) => {
    if (event.button !== 0 || !(event.target as Element).closest(".canvas svg")) return;
    box.current?.setPointerCapture(event.pointerId);
    setDrag({ start: placeOf(event), end: placeOf(event) });
  };
  const finish = (event: PointerEvent) => {
    const around = frame();
    setDrag(undefined);
    if (!drag || !around) return;
    const [a, b] = [drag.start, placeOf(event)].sort((one, other) => one - other) as [number, number];
    if (b - a < LEAST_PIXELS) return;
    const stepAt = (x: number) => from + ((x - around.left) / (around.right - around.left)) * (to - from);
    onZoom(Math.max(from, Math.floor(stepAt(a))), Math.min(to, Math.ceil(stepAt(b))));
  };
  const around = drag && frame();
  return (
    <div
      ref={box}
      className="brush"
      // Captured: the tip of a chart keeps clicks for itself.
      onPointerDownCapture={begin}
      onPointerMove={(event) => drag && setDrag({ ...drag, end: placeOf(event) })}
      onPointerUp={finish}
      onPointerCancel={() => setDrag(undefined)}
    >
      {children}
      {drag && around && (
        <div
          className="brushed"
          style={{
            left: Math.min(drag.start, drag.end),
            width: Math.abs(drag.end - drag.start),
            top: around.top,
            height: around.height,
          }}
        />
      )}
    </div>
  );
}
