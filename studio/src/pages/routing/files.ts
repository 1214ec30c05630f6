/** @file Figure 2 to take along: as CSV, and as a picture that needs nothing else. */
import type { ExploreDataResult } from "../../../../src/serving/studio/types.ts";
import { expertName } from "../../ui/index.ts";

/** A row for each layer. */
export function csvOf({ experts, active, entropy, information, informationByChance }: ExploreDataResult): string {
  const told = information.length > 0;
  const head = ["layer", ...experts, "entropy", ...(told ? ["information", "information_by_chance"] : [])];
  const rows = active.map((shares, layer) => [
    ...[layer, ...shares.map((share) => Number(share.toFixed(6))), entropy[layer]!],
    ...(told ? [information[layer]!, informationByChance[layer]!] : []),
  ]);
  return [head, ...rows].map((row) => `${row.join(",")}\n`).join("");
}

const CELL = { width: 22, height: 18 };
const LEFT = 48;
const TOP = 34;
const [LOW, HIGH] = [
  [244, 245, 251],
  [55, 48, 163],
] as const;

const colorOf = (share: number): string =>
  `rgb(${LOW.map((low, i) => Math.round(low + share * (HIGH[i]! - low))).join(" ")})`;

const escaped = (text: string): string => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);

/** Layers across, experts down; white to blue from no prompt to every prompt. */
export function svgOf({ experts, active, rows }: ExploreDataResult, title: string): string {
  const width = LEFT + active.length * CELL.width + 8;
  const height = TOP + experts.length * CELL.height + 34;
  const cells = active.flatMap((shares, layer) =>
    shares.map((share, expert) => {
      const [x, y] = [LEFT + layer * CELL.width, TOP + expert * CELL.height];
      const words = `layer ${layer}, ${expertName(experts[expert]!)}: ${(100 * share).toFixed(1)} %`;
      return `<rect x="${x}" y="${y}" width="${CELL.width - 1}" height="${CELL.height - 1}" fill="${colorOf(share)}"><title>${escaped(words)}</title></rect>`;
    }),
  );
  const names = experts.map(
    (name, i) =>
      `<text x="${LEFT - 6}" y="${TOP + i * CELL.height + 13}" text-anchor="end">${escaped(expertName(name))}</text>`,
  );
  const every = Math.ceil(active.length / 16);
  const numbers = active.flatMap((_, layer) =>
    layer % every === 0
      ? [
          `<text x="${LEFT + (layer + 0.5) * CELL.width}" y="${TOP + experts.length * CELL.height + 14}" text-anchor="middle">${layer}</text>`,
        ]
      : [],
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="sans-serif" font-size="11" role="img">`,
    `<title>${escaped(title)}</title><rect width="100%" height="100%" fill="#fff"/>`,
    `<text x="8" y="18" font-size="13">${escaped(title)} (${rows} prompts)</text>`,
    ...names,
    ...cells,
    ...numbers,
    `<text x="${LEFT}" y="${height - 6}" fill="#555">layer; full colour: active for every prompt</text></svg>\n`,
  ].join("\n");
}
