/** @file Which experts the layers chose, drawn for a terminal: layers down, experts across. */
import { hasColours, paint, type Style } from "./terminal.ts";

/** Chosen experts per layer, by name. */
export type ChosenExperts = readonly (readonly string[])[];

const COLOURS: readonly Style[] = ["cyan", "blue", "magenta", "red", "yellow", "green", "white"];

/** Column heads of at most five letters: `q_proj` → `q`, `gate_proj` → `gate`. */
function shortNames(experts: readonly string[]): string[] {
  return experts.map((name) => name.replace(/_proj$/, "").slice(0, 5));
}

/** Cells are blocks where colours show and `#` / `.` where they do not, so that no meaning is lost without them. */
function cell(chosen: boolean, column: number, width: number, stream: NodeJS.WriteStream): string {
  if (!hasColours(stream)) return (chosen ? "#" : ".").padEnd(width);
  return chosen
    ? paint(COLOURS[column % COLOURS.length]!, "██".padEnd(width), stream)
    : paint("dim", "··".padEnd(width), stream);
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
  const gap = "   ";
  const label = `layer ${" ".repeat(String(routes[0]?.length ?? 0).length - 1)}`;
  const block = width * experts.length;
  const head = titles.map((title) => title.slice(0, block).padEnd(block)).join(gap);
  const columns = routes.map(() => names.map((name) => name.padEnd(width)).join("")).join(gap);
  const lines = [
    `${" ".repeat(label.length + 1)}${paint("bold", head, stream)}`.trimEnd(),
    `${label} ${columns}`.trimEnd(),
  ];
  for (let layer = 0; layer < (routes[0]?.length ?? 0); layer++) {
    const rows = routes.map((route) => {
      const chosen = new Set(route[layer]);
      return experts.map((name, column) => cell(chosen.has(name), column, width, stream)).join("");
    });
    lines.push(`${String(layer).padStart(label.length)} ${rows.join(gap)}`.trimEnd());
  }
  return lines.join("\n");
}
