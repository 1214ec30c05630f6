/** @file Which experts the layers chose, drawn for a terminal: layers down, experts across. */
import { hasColours, paint, type Style } from "./terminal.ts";

/** Chosen experts per layer, by name. */
export type ChosenExperts = readonly (readonly string[])[];

const COLOURS: readonly Style[] = ["cyan", "blue", "magenta", "red", "yellow", "green", "white"];

/** Column heads: initials where they tell the experts apart (q, k, v, o, g, u, d), else names without `_proj`. */
function shortNames(experts: readonly string[]): string[] {
  const initials = experts.map((name) => name.slice(0, 1));
  return new Set(initials).size === experts.length ? initials : experts.map((name) => name.replace(/_proj$/, ""));
}

/** Blocks where colours show, `#` and `.` where they do not, so that no meaning is lost without them. */
function cell(chosen: boolean, column: number, width: number, stream: NodeJS.WriteStream): string {
  if (!hasColours(stream)) return (chosen ? "#" : ".").padEnd(width);
  return chosen
    ? paint(COLOURS[column % COLOURS.length]!, "█".repeat(width - 1).padEnd(width), stream)
    : paint("dim", "·".padEnd(width), stream);
}

/** The routes of several prompts side by side. All must have the same experts and number of layers. */
export function drawRoutes(
  titles: readonly string[],
  routes: readonly ChosenExperts[],
  experts: readonly string[],
  stream: NodeJS.WriteStream = process.stdout,
): string {
  const names = shortNames(experts);
  const width = Math.max(...names.map((name) => name.length)) + 1;
  const layers = routes[0]?.length ?? 0;
  const label = Math.max("layer".length, String(layers).length);
  const block = Math.max(width * experts.length, ...titles.map((title) => title.length));
  const rest = " ".repeat(block - width * experts.length);
  const line = (head: string, parts: readonly string[]) => `${head.padStart(label)}  ${parts.join("  ")}`.trimEnd();
  const lines = [
    line(
      "",
      titles.map((title) => paint("bold", title.padEnd(block), stream)),
    ),
    line(
      "layer",
      routes.map(() => names.map((name) => name.padEnd(width)).join("") + rest),
    ),
  ];
  for (let layer = 0; layer < layers; layer++) {
    const drawn = routes.map((route) => {
      const chosen = new Set(route[layer]);
      return experts.map((name, column) => cell(chosen.has(name), column, width, stream)).join("") + rest;
    });
    lines.push(line(String(layer), drawn));
  }
  return lines.join("\n");
}
