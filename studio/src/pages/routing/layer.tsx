/** @file One layer of an adapter: its router's probabilities, and the tokens that its pooler attends to. */
import { useState } from "react";
import type { AdapterRoute, ExploreToken } from "../../../../src/serving/studio/types.ts";
import { Badge, Button, expertName, percent } from "../../ui/index.ts";
import { heat } from "./heat.ts";

export function Layer({
  route: { experts, layers, pooler, adapter },
  layer,
  tokens,
  before,
}: {
  route: AdapterRoute;
  layer: number;
  tokens: readonly ExploreToken[];
  /** The same router with the prompt that was kept. */
  before?: AdapterRoute | undefined;
}) {
  const { chosen, probabilities, attention } = layers[layer]!;
  const old = before?.layers[layer];
  return (
    <section className="stack tight" aria-label={`Layer ${layer} of ${adapter}`}>
      <h3>Layer {layer}</h3>
      <ul className="bars">
        {experts.map((name, expert) => {
          const p = probabilities[expert]!;
          const change = old && p - old.probabilities[expert]!;
          return (
            <li key={name}>
              <span className="name">{expertName(name)}</span>
              <span className="track" aria-hidden="true">
                <span className={chosen.includes(expert) ? "bar on" : "bar"} style={{ width: `${100 * p}%` }} />
                {old && <span className="kept" style={{ left: `${100 * old.probabilities[expert]!}%` }} />}
              </span>
              <span className="numeric">
                {percent(p, 1)}
                {change !== undefined && <span className="muted"> {signed(change)}</span>}
              </span>
              <span>{chosen.includes(expert) && <Badge kind="accent">chosen</Badge>}</span>
            </li>
          );
        })}
      </ul>
      <h4>What the router attends to</h4>
      {attention ? (
        <Attention {...{ tokens, attention, pooler, adapter }} />
      ) : (
        <p className="muted">
          This pooler takes the largest value over the prompt in every dimension: no token has a weight.
        </p>
      )}
    </section>
  );
}

const signed = (change: number): string => `(${change < 0 ? "−" : "+"}${Math.abs(100 * change).toFixed(1)})`;

const POOLERS: Readonly<Record<string, string>> = {
  self_attention:
    "Before the router decides, it makes one vector of the prompt: a mean of its tokens, weighted by attention.",
  mean: "This pooler takes the plain mean: every token counts alike.",
  last: "This pooler takes the last token alone.",
};

/** Tokens that are named as those with most weight. */
const TOP = 5;
const LEAST = 0.005;

function Attention({
  tokens,
  attention,
  pooler,
  adapter,
}: {
  tokens: readonly ExploreToken[];
  attention: readonly number[];
  pooler: string;
  adapter: string;
}) {
  const [asTable, setAsTable] = useState(false);
  const most = Math.max(...attention);
  const order = [...attention.keys()].sort((a, b) => attention[b]! - attention[a]!);
  const top = order.slice(0, TOP).filter((at, i) => i === 0 || attention[at]! >= LEAST);
  return (
    <>
      <p className="muted">{POOLERS[pooler]}</p>
      {asTable ? (
        <TokenTable {...{ tokens, attention, adapter }} />
      ) : (
        // biome-ignore lint/a11y/noNoninteractiveTabindex: a long prompt is scrolled with the keys
        <section className="tokens" aria-label={`Tokens as ${adapter} sees them`} tabIndex={0}>
          {tokens.map((token, at) => {
            const { style, tone } = heat(attention[at]! / most);
            return (
              // biome-ignore lint/suspicious/noArrayIndexKey: a token is its place
              <span key={at} className={tone} style={style} title={percent(attention[at], 1)}>
                {shownToken(token)}
              </span>
            );
          })}
        </section>
      )}
      <div className="spread">
        <p>
          Most weight:{" "}
          {top.map((at, i) => (
            <span key={at}>
              {i > 0 && ", "}
              <q>{shownToken(tokens[at]!).trim()}</q> {percent(attention[at], 1)}
            </span>
          ))}
        </p>
        <Button small aria-pressed={asTable} onClick={() => setAsTable(!asTable)}>
          Table<span className="unseen"> of the tokens</span>
        </Button>
      </div>
    </>
  );
}

/** A part of a character is shown by its bytes, the end of a line by a sign before it. */
function shownToken({ text, bytes }: ExploreToken): string {
  return bytes === undefined ? text.replaceAll("\n", "↵\n") : `⟨${bytes}⟩`;
}

const MOST_ROWS = 1000;

function TokenTable({
  tokens,
  attention,
  adapter,
}: {
  tokens: readonly ExploreToken[];
  attention: readonly number[];
  adapter: string;
}) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: a long table is scrolled with the keys
    <section className="table-scroll tokens-table" aria-label={`Weights of the tokens for ${adapter}`} tabIndex={0}>
      <table>
        <thead>
          <tr>
            <th scope="col" className="numeric">
              Place
            </th>
            <th scope="col">Token</th>
            <th scope="col" className="numeric">
              Weight
            </th>
          </tr>
        </thead>
        <tbody>
          {tokens.slice(0, MOST_ROWS).map((token, at) => (
            // biome-ignore lint/suspicious/noArrayIndexKey: a token is its place
            <tr key={at}>
              <td className="numeric">{at + 1}</td>
              <th scope="row">
                <code>{JSON.stringify(shownToken(token))}</code>
              </th>
              <td className="numeric">{percent(attention[at], 2)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
