/** @file A small heat map: rows by columns, from nothing to full. */
import { heatColor, percent } from "../../ui/index.ts";

const [CELL_HEIGHT, LABELS, BELOW] = [12, 34, 16];
const WIDTH = 260;

export function HeatMap({
  title,
  describe,
  rows,
  columns,
  most,
  from,
  to,
  nameOf,
}: {
  title: string;
  describe: string;
  rows: readonly string[];
  /** [columns][rows] */
  readonly columns: readonly (readonly (number | null)[])[];
  /** Share of the full colour. */
  most: number;
  /** What stands below the first and the last column. */
  from: string;
  to: string;
  /** What a column is called. */
  nameOf: (column: number) => string;
}) {
  const width = (WIDTH - LABELS) / Math.max(1, columns.length);
  const height = rows.length * CELL_HEIGHT;
  return (
    <figure className="heat-map">
      <figcaption>{title}</figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${height + BELOW}`} role="img" aria-label={`${title}: ${describe}`}>
        {rows.map((row, r) => (
          <text key={row} x={LABELS - 4} y={(r + 0.5) * CELL_HEIGHT} textAnchor="end" dominantBaseline="central">
            {row}
          </text>
        ))}
        {columns.map((column, c) =>
          rows.map((row, r) => (
            <rect
              // biome-ignore lint/suspicious/noArrayIndexKey: a column is its number
              key={`${c} ${row}`}
              x={LABELS + c * width}
              y={r * CELL_HEIGHT}
              width={width + 0.3}
              height={CELL_HEIGHT - 1}
              fill={heatColor((column[r] ?? 0) / most)}
            >
              <title>{`${nameOf(c)}, ${row}: ${percent(column[r], 1)}`}</title>
            </rect>
          )),
        )}
        <text x={LABELS} y={height + BELOW - 4}>
          {from}
        </text>
        <text x={WIDTH} y={height + BELOW - 4} textAnchor="end">
          {to}
        </text>
      </svg>
    </figure>
  );
}
