/** @file The routes of one adapter: layers down, experts across, likelier ones with more colour, chosen ones marked. */
import { type KeyboardEvent, useRef, useState } from "react";
import type { AdapterRoute } from "../../../../src/serving/studio/types.ts";
import { expertName } from "../../ui/index.ts";
import type { Difference, Place } from "./compare.ts";
import { heatOfProbability } from "./heat.ts";

const MOVES: Readonly<Record<string, readonly [layers: number, experts: number]>> = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  Home: [Number.NEGATIVE_INFINITY, 0],
  End: [Number.POSITIVE_INFINITY, 0],
};

const within = (value: number, count: number): number => Math.min(count - 1, Math.max(0, value));

export function Grid({
  route: { experts, layers },
  label,
  layer: selected,
  onLayer,
  difference,
  side = "now",
}: {
  route: AdapterRoute;
  label: string;
  /** The layer that is looked at. */
  layer: number;
  onLayer: (layer: number) => void;
  /** To the other prompt, where there is one; `side` says which of the two this is. */
  difference?: Difference | undefined;
  side?: "now" | "kept";
}) {
  const table = useRef<HTMLTableElement>(null);
  const [column, setColumn] = useState(0);
  const changed = marks(side === "now" ? difference?.gained : difference?.lost);
  const onKeyDown = (event: KeyboardEvent) => {
    const move = MOVES[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const layer = within(selected + move[0], layers.length);
    const expert = within(column + move[1], experts.length);
    setColumn(expert);
    onLayer(layer);
    table.current?.querySelector<HTMLElement>(`[data-cell="${layer} ${expert}"]`)?.focus();
  };
  return (
    // biome-ignore lint/a11y/noNoninteractiveElementToInteractiveRole: a table that is walked with the arrow keys is a grid
    <table ref={table} className="routes" role="grid" aria-label={label} onKeyDown={onKeyDown}>
      <thead>
        <tr>
          <th scope="col">
            <span className="unseen">Layer</span>
          </th>
          {experts.map((name) => (
            <th key={name} scope="col" title={name}>
              {expertName(name)}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {layers.map(({ chosen, probabilities }, layer) => (
          // biome-ignore lint/suspicious/noArrayIndexKey: a layer is its number
          <tr key={layer} className={layer === selected ? "selected" : undefined} aria-selected={layer === selected}>
            <th scope="row">{layer}</th>
            {experts.map((name, expert) => {
              const on = chosen.includes(expert);
              const change = changed.has(`${layer} ${expert}`) ? (side === "now" ? "gained" : "lost") : undefined;
              const { style, tone } = heatOfProbability(probabilities[expert]!);
              const words = [
                `layer ${layer}, ${expertName(name)}: ${probabilities[expert]!.toFixed(3)}`,
                on && "chosen",
                change && `${change} by the ${side === "now" ? "new" : "other"} prompt`,
              ].filter(Boolean);
              return (
                <td
                  key={name}
                  data-cell={`${layer} ${expert}`}
                  className={`${tone}${on ? " chosen" : ""}${change ? ` ${change}` : ""}`}
                  style={style}
                  tabIndex={layer === selected && expert === column ? 0 : -1}
                  onFocus={() => {
                    setColumn(expert);
                    onLayer(layer);
                  }}
                >
                  <span className="unseen">{words.join(", ")}</span>
                  <span className="mark" aria-hidden="true">
                    {change === "gained" ? "+" : change === "lost" ? "−" : on ? "●" : ""}
                  </span>
                  <span className="number" aria-hidden="true">
                    {Math.round(100 * probabilities[expert]!)}
                  </span>
                </td>
              );
            })}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function marks(places: readonly Place[] = []): ReadonlySet<string> {
  return new Set(places.map(({ layer, expert }) => `${layer} ${expert}`));
}
