/** @file Learned activation functions of the best adapter, each beside GELU, where it began. */
import type { LearnedCurve, RunActivations, RunDetail } from "../../../../src/serving/studio/types.ts";
import { Card, type Column, DataTable, Empty, Loaded, number } from "../../ui/index.ts";
import { useActivations } from "./api.ts";

const [WIDTH, HEIGHT] = [180, 130];
/** Of y; learned functions stay near GELU. */
const [LOW, HIGH] = [-1, 3];

const placeOf = ({ layer, block }: LearnedCurve): string =>
  block === null ? `Layer ${layer}` : `Layer ${layer}, ${block.replace("self_attn", "attention")}`;

export function ActivationCurves({ run }: { run: RunDetail }) {
  const query = useActivations(run.id, run.evaluations.filter(({ best }) => best).length, run);
  return (
    <Loaded query={query} what="Reading the adapter">
      {(activations) => (activations.curves.length === 0 ? <None run={run} /> : <Curves {...activations} />)}
    </Loaded>
  );
}

function None({ run: { bestStep, state } }: { run: RunDetail }) {
  return (
    <Empty title="No learned activation functions">
      <p>
        {bestStep === null && state !== "finished"
          ? "There is no best adapter yet: the first evaluation saves one."
          : "The adapter of this run has none: its method does not learn them, or was told not to."}
      </p>
    </Empty>
  );
}

function Curves({ x, gelu, curves }: RunActivations) {
  const columns: readonly Column<LearnedCurve>[] = [
    { key: "place", title: "Where", head: true, value: placeOf, cell: placeOf },
    {
      ...{ key: "deviation", title: "Largest distance from GELU", numeric: true },
      ...{ value: ({ deviation }) => deviation, cell: ({ deviation }) => number(deviation) },
    },
  ];
  return (
    <>
      <Card title="Learned activation functions of the best adapter">
        <p className="legend-line">
          <span className="swatch learned" />
          learned <span className="swatch began" />
          GELU, where it began
        </p>
        <div className="multiples">
          {curves.map((curve) => (
            <Curve key={placeOf(curve)} {...{ x, gelu, curve }} />
          ))}
        </div>
      </Card>
      <Card title="How far from GELU">
        <DataTable caption="Largest distances from GELU" columns={columns} rows={curves} keyOf={placeOf} />
      </Card>
    </>
  );
}

function Curve({ x, gelu, curve }: { x: readonly number[]; gelu: readonly number[]; curve: LearnedCurve }) {
  const [from, to] = [x[0]!, x.at(-1)!];
  const placeX = (value: number) => ((value - from) / (to - from)) * WIDTH;
  const placeY = (value: number) => ((HIGH - value) / (HIGH - LOW)) * HEIGHT;
  const path = (ys: readonly number[]) =>
    ys.map((y, i) => `${i === 0 ? "M" : "L"}${placeX(x[i]!).toFixed(1)},${placeY(y).toFixed(1)}`).join("");
  const text = `${number(curve.deviation)} from GELU at most`;
  return (
    <figure className="curve">
      <figcaption>
        {placeOf(curve)} <span className="muted">{text}</span>
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`${placeOf(curve)}: ${text}`}>
        <path className="axis" d={`M0,${placeY(0)}H${WIDTH}M${placeX(0)},0V${HEIGHT}`} />
        <path className="began" d={path(gelu)} />
        <path className="learned" d={path(curve.y)} />
        <text x={2} y={placeY(0) - 3}>
          {from}
        </text>
        <text x={WIDTH - 2} y={placeY(0) + 10} textAnchor="end">
          {to}
        </text>
        <text x={placeX(0) + 3} y={9}>
          {HIGH}
        </text>
      </svg>
    </figure>
  );
}
