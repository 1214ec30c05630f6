/** @file A route as a small picture: layers down, experts across, filled where an expert was chosen. */
import { expertName } from "./format.ts";

export interface GridLayer {
  /** Indices into the experts. */
  readonly chosen: readonly number[];
  readonly probabilities?: readonly number[];
}

const CELL = 12;
const GAP = 2;

export function RouteGrid({ experts, layers }: { experts: readonly string[]; layers: readonly GridLayer[] }) {
  const step = CELL + GAP;
  const [width, height] = [experts.length * step, (layers.length + 1) * step];
  const counts = experts.map((_, expert) => layers.filter(({ chosen }) => chosen.includes(expert)).length);
  const words = experts.map((name, expert) => `${expertName(name)} in ${counts[expert]}`).join(", ");
  return (
    <svg
      className="route-grid"
      viewBox={`0 0 ${width} ${height}`}
      width={width}
      height={height}
      role="img"
      aria-label={`Chosen experts of ${layers.length} layers: ${words}`}
    >
      {experts.map((name, expert) => (
        <text key={name} x={expert * step + CELL / 2} y={CELL - 3} fontSize="9" textAnchor="middle" fill="var(--muted)">
          {expertName(name).slice(0, 1)}
        </text>
      ))}
      {layers.map(({ chosen, probabilities }, layer) =>
        experts.map((name, expert) => {
          const on = chosen.includes(expert);
          return (
            <rect
              // biome-ignore lint/suspicious/noArrayIndexKey: a layer is its number
              key={`${layer} ${name}`}
              x={expert * step + (on ? 0 : 3)}
              y={(layer + 1) * step + (on ? 0 : 3)}
              width={on ? CELL : CELL - 6}
              height={on ? CELL : CELL - 6}
              rx="2"
              fill={on ? "var(--series-6)" : "var(--line)"}
            >
              <title>{`layer ${layer}, ${name}${probabilities ? `: ${probabilities[expert]!.toFixed(3)}` : ""}${on ? ", chosen" : ""}`}</title>
            </rect>
          );
        }),
      )}
    </svg>
  );
}
