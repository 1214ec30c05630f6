/** @file Charts of reports as SVG: within a page, and as files that need none. */
import type { Chart } from "../../evaluation/index.ts";
import { style } from "../report/style.ts";
import { heatMap, lineChart } from "../report/svg.ts";

/** An SVG element; its colours are the page's. */
export function chartSvg(chart: Chart): string {
  if (chart.kind === "shares") return heatMap({ ...chart, width: 420 });
  const { title, x, labels, lines } = chart;
  const series = lines.map((line) => ({ ...line, dots: true }));
  return lineChart({ title, x, series, ...(labels && { labels }) });
}

/** A file of its own, light and dark. */
export function chartFile(chart: Chart): string {
  const svg = chartSvg(chart).replace(/^<svg ([^>]*)>/, (_, attributes: string) => {
    const paper = `svg { background: var(--back); }`;
    return `<svg xmlns="http://www.w3.org/2000/svg" ${attributes}><style>${style}${paper}</style>`;
  });
  return `${svg}\n`;
}
