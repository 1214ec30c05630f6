/** @file One adapter's routes of a prompt, beside those of the prompt that was kept. */
import type { AdapterRoute, ExploreToken } from "../../../../src/serving/studio/types.ts";
import { Badge, expertName } from "../../ui/index.ts";
import { type Difference, differenceOf, type Place } from "./compare.ts";
import { Grid } from "./grid.tsx";
import { Layer } from "./layer.tsx";

export function Column({
  route,
  before,
  tokens,
  layer,
  onLayer,
}: {
  route: AdapterRoute;
  before: AdapterRoute | undefined;
  tokens: readonly ExploreToken[];
  layer: number;
  onLayer: (layer: number) => void;
}) {
  const { adapter, method } = route;
  const difference = differenceOf(before, route);
  return (
    <article className="card stack column" aria-label={`Routes of ${adapter}`}>
      <div className="spread">
        <h2>{adapter}</h2>
        <Badge>{method}</Badge>
      </div>
      {difference && <Change {...{ difference, route }} />}
      <div className="sides">
        {before && difference && (
          <div>
            <h3>Kept</h3>
            <Grid
              {...{
                route: before,
                layer,
                onLayer,
                difference,
                side: "kept",
                label: `${adapter}: kept prompt, by layer`,
              }}
            />
          </div>
        )}
        <div>
          {before && difference && <h3>Now</h3>}
          <Grid {...{ route, layer, onLayer, difference, label: `${adapter}: experts by layer` }} />
        </div>
      </div>
      <Layer {...{ route, layer, tokens, before: difference && before }} />
    </article>
  );
}

/** Changed places that are named one by one. */
const NAMED = 6;

function Change({
  difference: { gained, lost, same, largest },
  route: { experts, layers },
}: {
  difference: Difference;
  route: AdapterRoute;
}) {
  const place = ({ layer, expert }: Place) => `${expertName(experts[expert]!)} in layer ${layer}`;
  const list = (places: readonly Place[]) => {
    const more = places.length - NAMED;
    return places.slice(0, NAMED).map(place).join(", ") + (more > 0 ? ` and ${more} more` : "");
  };
  const all = layers.reduce((sum, { chosen }) => sum + chosen.length, 0);
  return (
    <div className="note stack tight change">
      {gained.length === 0 ? (
        <p>The same experts as with the kept prompt, in all {layers.length} layers.</p>
      ) : (
        <>
          <p>
            <strong>
              {gained.length} of {all} experts changed
            </strong>
            , in {layers.length - same} of {layers.length} layers.
          </p>
          <p>+ gained: {list(gained)}</p>
          <p>− lost: {list(lost)}</p>
        </>
      )}
      {largest && (
        <p>
          Largest change of a probability: {largest.by < 0 ? "−" : "+"}
          {Math.abs(largest.by).toFixed(3)}, {place(largest)}
        </p>
      )}
    </div>
  );
}
