/** @file Charts: Observable Plot, loaded when the first is drawn, with the same numbers as a table for whoever wants to read. */
import type { PlotOptions } from "@observablehq/plot";
import { type ReactNode, useEffect, useRef, useState } from "react";
import { Button } from "./controls.tsx";
import { TableScroll } from "./table.tsx";

type Plot = typeof import("@observablehq/plot");

export interface ChartTable {
  readonly columns: readonly string[];
  readonly rows: readonly (readonly (string | number)[])[];
}

export interface Legend {
  readonly label: string;
  /** 1 to 8: a colour of the theme. */
  readonly series: number;
}

/** A colour of the theme for the nth thing of a chart, from 1 on. */
export const seriesColor = (n: number): string => `var(--series-${((n - 1) % 8) + 1})`;

/** From nothing (0) to full (1), for heat maps in both themes. */
export const heatColor = (share: number): string =>
  `color-mix(in oklab, var(--heat-high) ${Math.round(100 * Math.min(1, Math.max(0, share)))}%, var(--heat-low))`;

/**
 * @param options the plot for a width in pixels; made anew when it changes
 * @param describe what a screen reader says of it
 * @param table the same numbers, shown on demand
 */
export function Chart({
  title,
  describe,
  options,
  table,
  legend,
  tools,
}: {
  title: string;
  describe: string;
  options: (plot: Plot, width: number) => PlotOptions;
  table?: () => ChartTable;
  legend?: readonly Legend[];
  tools?: ReactNode;
}) {
  const canvas = useRef<HTMLDivElement>(null);
  const [plot, setPlot] = useState<Plot>();
  const [width, setWidth] = useState(0);
  const [asTable, setAsTable] = useState(false);
  const [lost, setLost] = useState(false);

  useEffect(() => {
    let here = true;
    import("@observablehq/plot").then(
      (loaded) => here && setPlot(loaded),
      () => here && setLost(true),
    );
    return () => {
      here = false;
    };
  }, []);

  useEffect(() => {
    const element = canvas.current;
    if (!element || asTable) return;
    const observer = new ResizeObserver(([entry]) => setWidth(Math.round(entry!.contentRect.width)));
    observer.observe(element);
    return () => observer.disconnect();
  }, [asTable]);

  useEffect(() => {
    const element = canvas.current;
    if (!element || !plot || width === 0 || asTable) return;
    const drawn = plot.plot({ width, ariaLabel: title, ariaDescription: describe, ...options(plot, width) });
    // Its style sheet is in ui.css: the pages' policy allows none inside.
    for (const style of drawn.querySelectorAll("style")) style.remove();
    drawn.setAttribute("role", "img");
    // Of an image nothing inside has a name.
    for (const part of drawn.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label");
    element.replaceChildren(drawn);
  }, [plot, width, asTable, options, title, describe]);

  return (
    <figure className="chart stack">
      <figcaption>
        <span>{title}</span>
        <span className="row">
          {tools}
          {table && (
            <Button small aria-pressed={asTable} onClick={() => setAsTable(!asTable)}>
              Table<span className="unseen"> of {title}</span>
            </Button>
          )}
        </span>
      </figcaption>
      {legend && legend.length > 1 && (
        <ul className="legend">
          {legend.map(({ label, series }) => (
            <li key={label}>
              <span className="swatch" style={{ background: seriesColor(series) }} />
              {label}
            </li>
          ))}
        </ul>
      )}
      {lost && (
        <p role="status">
          The part that draws could not be loaded: load this page again{table && ", or read the numbers as a table"}.
        </p>
      )}
      {asTable && table ? <NumbersTable title={title} {...table()} /> : <div className="canvas" ref={canvas} />}
    </figure>
  );
}

const MOST_ROWS = 500;

function NumbersTable({ title, columns, rows }: ChartTable & { title: string }) {
  return (
    <TableScroll label={title}>
      <table>
        <caption className="unseen">{title}</caption>
        <thead>
          <tr>
            {columns.map((column) => (
              <th key={column} scope="col">
                {column}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.slice(0, MOST_ROWS).map((row) => (
            <tr key={String(row[0])}>
              {row.map((cell, i) => (
                <td key={columns[i]} className={typeof cell === "number" ? "numeric" : undefined}>
                  {cell}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </TableScroll>
  );
}
