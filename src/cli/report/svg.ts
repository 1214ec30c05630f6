/** @file Line charts and heat maps as SVG text. Colours are CSS variables of the page, so that light and dark both work. */
import { mean } from "../../base/index.ts";

/** Text for HTML and for attributes in double quotes; control characters other than newline and tab are dropped. */
export function escapeHtml(text: string): string {
  return text
    .replace(/[^\P{Cc}\n\t]/gu, "")
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;")
    .replaceAll("'", "&#39;");
}

export type Point = readonly [x: number, y: number];

export interface Series {
  readonly label: string;
  readonly points: readonly Point[];
  /** Number of a colour of the page, from 1. */
  readonly colour: number;
  readonly dashed?: boolean;
  /** A dot at each point, with its value as a tooltip. */
  readonly dots?: boolean;
  /** For each point, the ends of a vertical line through it. */
  readonly spread?: readonly (readonly [low: number, high: number])[];
}

export interface LineChart {
  readonly title: string;
  readonly series: readonly Series[];
  readonly x: string;
  readonly log?: boolean;
  readonly width?: number;
  readonly height?: number;
  /** Ends of the vertical axis, where they are not to follow from the points. */
  readonly domain?: readonly [number, number];
  /** What 0, 1, … of the horizontal axis are called. */
  readonly labels?: readonly string[];
}

/** More points than this are drawn as the means of as many bins, above the span of each. */
const MOST_POINTS = 240;

interface Bin {
  readonly x: number;
  readonly mean: number;
  readonly low: number;
  readonly high: number;
}

export function binned(points: readonly Point[], most = MOST_POINTS): Bin[] {
  const size = Math.max(1, Math.ceil(points.length / most));
  return Array.from({ length: Math.ceil(points.length / size) }, (_, i) => {
    const part = points.slice(i * size, (i + 1) * size);
    const ys = part.map(([, y]) => y);
    return { x: mean(part.map(([x]) => x)), mean: mean(ys), low: Math.min(...ys), high: Math.max(...ys) };
  });
}

/** Round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten, about `count` of them. */
export function ticks(low: number, high: number, count: number): number[] {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  const length = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Powers of ten in [low, high], or round numbers where there are fewer than two. */
function logTicks(low: number, high: number): number[] {
  const [from, to] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.max(1, Math.ceil((to - from + 1) / 6));
  const powers = Array.from({ length: Math.max(0, to - from + 1) }, (_, i) => 10 ** (from + i));
  return powers.length < 2 ? ticks(low, high, 4) : powers.filter((_, i) => i % every === 0);
}

export function numberText(value: number): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6)
    return value
      .toExponential(2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(4)));
}

const fixed = (value: number): string => String(Number(value.toFixed(1)));

/** An SVG element; points that are not finite, outside the domain or, on a log axis, not positive are left out. */
export function lineChart(chart: LineChart): string {
  const { title, log = false, width = 420, height = 210 } = chart;
  const [least, most] = chart.domain ?? [Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY];
  const drawable = ([x, y]: Point) =>
    Number.isFinite(x) && Number.isFinite(y) && (!log || y > 0) && y >= least && y <= most;
  const series = chart.series.map((one) => ({ ...one, points: one.points.filter(drawable) }));
  const all = series.flatMap(({ points }) => points);
  const head = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(title)}">`;
  const heading = `<text x="8" y="16" class="title">${escapeHtml(title)}</text>`;
  if (all.length === 0) {
    return `${head}${heading}<text x="${width / 2}" y="${height / 2}" class="none">nothing measured yet</text></svg>`;
  }
  const frame = { left: 52, right: width - 10, top: 38, bottom: height - 26 };
  const [xLow, xHigh] = span(all.map(([x]) => x));
  const ends = series.flatMap(({ spread }) => spread?.flat() ?? []);
  const [yLow, yHigh] = chart.domain ?? padded(span([...all.map(([, y]) => y), ...ends]), log);
  const scale = log ? Math.log10 : (y: number) => y;
  const px = (x: number) => fixed(frame.left + ((x - xLow) / (xHigh - xLow || 1)) * (frame.right - frame.left));
  const py = (y: number) => {
    const share = (scale(y) - scale(yLow)) / (scale(yHigh) - scale(yLow) || 1);
    return fixed(frame.bottom - share * (frame.bottom - frame.top));
  };
  const parts = [head, heading];
  for (const y of log ? logTicks(yLow, yHigh) : ticks(yLow, yHigh, 4)) {
    parts.push(`<line x1="${frame.left}" x2="${frame.right}" y1="${py(y)}" y2="${py(y)}" class="grid"/>`);
    parts.push(`<text x="${frame.left - 6}" y="${py(y)}" dy="3.5" class="tick end">${numberText(y)}</text>`);
  }
  for (const x of chart.labels ? chart.labels.keys() : ticks(xLow, xHigh, 5)) {
    if (x < xLow || x > xHigh) continue;
    const name = escapeHtml(chart.labels?.[x] ?? numberText(x));
    const anchor = chart.labels && x === xHigh ? "end" : "middle"; // a name may be wide
    parts.push(`<text x="${px(x)}" y="${frame.bottom + 14}" class="tick ${anchor}">${name}</text>`);
  }
  parts.push(`<text x="${frame.right}" y="${height - 2}" class="tick end">${escapeHtml(chart.x)}</text>`);
  for (const { points, colour, dashed, dots, spread } of series) {
    for (const [i, [low, high]] of spread?.entries() ?? []) {
      const x = px(points[i]![0]);
      parts.push(`<line x1="${x}" x2="${x}" y1="${py(low)}" y2="${py(high)}" class="line c${colour}"/>`);
    }
    const bins = binned(points);
    if (bins.length < points.length) {
      const upper = bins.map(({ x, high }) => `${px(x)},${py(high)}`);
      const lower = bins.map(({ x, low }) => `${px(x)},${py(low)}`).reverse();
      parts.push(`<polygon points="${[...upper, ...lower].join(" ")}" class="band c${colour}"/>`);
    }
    const line = bins.map(({ x, mean }) => `${px(x)},${py(mean)}`).join(" ");
    parts.push(`<polyline points="${line}" class="line c${colour}${dashed ? " dashed" : ""}"/>`);
    if (!dots && points.length > 1) continue;
    for (const [x, y] of points) {
      const value = `${numberText(x)}: ${numberText(y)}`;
      parts.push(`<circle cx="${px(x)}" cy="${py(y)}" r="2.6" class="dot c${colour}"><title>${value}</title></circle>`);
    }
  }
  return `${parts.join("")}${legend(series, frame.left)}</svg>`;
}

function legend(series: readonly Series[], left: number): string {
  if (series.length < 2) return "";
  let x = left;
  return series
    .map(({ label, colour, dashed }) => {
      const mark = `<line x1="${x}" x2="${x + 16}" y1="27" y2="27" class="line c${colour}${dashed ? " dashed" : ""}"/>`;
      const text = `<text x="${x + 20}" y="30.5" class="tick">${escapeHtml(label)}</text>`;
      x += 34 + label.length * 6;
      return mark + text;
    })
    .join("");
}

function span(values: readonly number[]): [number, number] {
  return values.reduce<[number, number]>(
    ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
    [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY],
  );
}

/** Some air above and below; also where all values are the same. */
function padded([low, high]: readonly [number, number], log: boolean): [number, number] {
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
  const air = high === low ? Math.abs(high) * 0.1 || 1 : (high - low) * 0.05;
  return [low >= 0 && low - air < 0 ? 0 : low - air, high + air];
}

export interface HeatMap {
  readonly title: string;
  /** Names of the rows, first on top. */
  readonly rows: readonly string[];
  /** Values of each column, in the order of the rows; evenly spread from left to right. */
  readonly columns: readonly (readonly number[])[];
  /** Value of the full colour. */
  readonly most: number;
  readonly from: string;
  readonly to: string;
  readonly width?: number;
}

const ROW_HEIGHT = 13;

export function heatMap({ title, rows, columns, most, from, to, width = 280 }: HeatMap): string {
  const [left, top] = [40, 22];
  const height = top + rows.length * ROW_HEIGHT + 16;
  const cell = (width - left - 4) / Math.max(1, columns.length);
  const parts = [`<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(title)}">`];
  parts.push(`<text x="8" y="14" class="title">${escapeHtml(title)}</text>`);
  for (const [r, name] of rows.entries()) {
    const y = top + r * ROW_HEIGHT;
    parts.push(`<text x="${left - 4}" y="${y + ROW_HEIGHT / 2}" dy="3.5" class="tick end">${escapeHtml(name)}</text>`);
    for (const [c, values] of columns.entries()) {
      const share = Math.min(1, Math.max(0, (values[r] ?? 0) / most));
      if (share < 0.005) continue;
      const x = Number((left + c * cell).toFixed(2));
      const box = `x="${x}" y="${y}" width="${Number((cell + 0.2).toFixed(2))}" height="${ROW_HEIGHT - 1}"`;
      parts.push(`<rect ${box} class="heat" fill-opacity="${Number(share.toFixed(2))}"/>`);
    }
  }
  const bottom = height - 4;
  parts.push(`<text x="${left}" y="${bottom}" class="tick">${escapeHtml(from)}</text>`);
  parts.push(`<text x="${width - 4}" y="${bottom}" class="tick end">${escapeHtml(to)}</text></svg>`);
  return parts.join("");
}
