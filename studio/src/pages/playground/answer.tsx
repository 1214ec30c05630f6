/** @file One answer: its text as it comes, how fast it came, the way it went, and how to ask for it elsewhere. */
import { memo } from "react";
import { ApiError } from "../../api/client.ts";
import { useSession } from "../../api/session.tsx";
import { Badge, Button, CopyButton, ErrorNote, milliseconds, number, RouteGrid } from "../../ui/index.ts";
import { asCurl, asTypeScript } from "./request.ts";
import { type Answer, isRunning, type Problem, type Route, speedOf } from "./state.ts";

/** @param lead a completion's prompt, which its text goes on from */
export const AnswerCard = memo(function AnswerCard({
  answer,
  lead,
  onStop,
  onAgain,
}: {
  answer: Answer;
  lead: string | null;
  onStop: () => void;
  /** Where it can be asked for once more. */
  onAgain: (() => void) | null;
}) {
  const { model, state, text, more, problem, route } = answer;
  const running = isRunning(answer);
  return (
    <article className="answer stack" aria-label={`Answer of ${model}`} aria-busy={running}>
      <div className="spread">
        <h3>{model}</h3>
        <State answer={answer} />
      </div>
      {(text !== "" || problem === null) && (
        <p className="said">
          {lead !== null && <span className="muted">{lead}</span>}
          {text}
          {state === "waiting" && <span className="muted">…</span>}
          {state === "done" && text === "" && <span className="muted">(an empty answer)</span>}
        </p>
      )}
      {more.length > 0 && (
        <ol className="more" start={2} aria-label={`Further answers of ${model}`}>
          {more.map((other, i) => (
            // biome-ignore lint/suspicious/noArrayIndexKey: an answer is known by its place
            <li key={i} className="said">
              {lead !== null && <span className="muted">{lead}</span>}
              {other}
              {!running && other === "" && <span className="muted">(an empty answer)</span>}
            </li>
          ))}
        </ol>
      )}
      {problem && <ErrorNote error={errorOf(problem)} />}
      <Numbers answer={answer} />
      {route && <RoutePicture route={route} />}
      <div className="row">
        {running && (
          <Button small onClick={onStop} aria-label={`Stop ${model}`}>
            Stop
          </Button>
        )}
        {!running && onAgain && (
          <Button small onClick={onAgain}>
            Ask again <span className="unseen">of {model}</span>
          </Button>
        )}
        <Copies answer={answer} />
      </div>
    </article>
  );
});

function State({ answer: { state, finish } }: { answer: Answer }) {
  if (state === "waiting") return <Badge>waiting</Badge>;
  if (state === "streaming") return <Badge kind="accent">answering</Badge>;
  if (state === "stopped") return <Badge kind="warn">stopped</Badge>;
  if (state === "failed") return <Badge kind="bad">failed</Badge>;
  return finish === "length" ? <Badge kind="warn">cut short</Badge> : <Badge kind="good">done</Badge>;
}

function Numbers({ answer }: { answer: Answer }) {
  const { firstTokenMs, tokens, promptTokens, cachedTokens } = answer;
  const speed = speedOf(answer);
  const shown: readonly (readonly [string, string])[] = [
    ["First token", milliseconds(firstTokenMs)],
    ["Speed", speed === null ? "–" : `${number(speed)} tokens/s`],
    ["Tokens", number(tokens)],
    ["Prompt", promptTokens === null ? "–" : `${number(promptTokens)} tokens`],
    ...(cachedTokens ? ([["Known before", `${number(cachedTokens)} tokens`]] as const) : []),
  ];
  return (
    <dl className="numbers">
      {shown.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function RoutePicture({ route: { experts, layers } }: { route: Route }) {
  return (
    <details open>
      <summary>Route of the prompt</summary>
      <RouteGrid
        experts={experts}
        layers={layers.map(({ chosen, probabilities }) => ({
          ...{ chosen: chosen.map((name) => experts.indexOf(name)), probabilities },
        }))}
      />
    </details>
  );
}

function Copies({ answer: { request } }: { answer: Answer }) {
  const { byKey } = useSession();
  const { origin } = window.location;
  return (
    <>
      <CopyButton label="Copy as curl" text={() => asCurl(request, origin, byKey)} />
      <CopyButton label="Copy as TypeScript" text={() => asTypeScript(request, origin, byKey)} />
    </>
  );
}

function errorOf({ status, code, message, param, problems }: Problem): ApiError {
  return new ApiError(status, { code, message, param, problems });
}
