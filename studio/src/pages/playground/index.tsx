/** @file The page Playground: one question to several models at once, side by side. */
import { useEffect, useRef, useState, useSyncExternalStore } from "react";
import { Link } from "wouter";
import { useSession } from "../../api/session.tsx";
import { Button, Card, Empty, Loaded, Note, Page } from "../../ui/index.ts";
import { AnswerCard } from "./answer.tsx";
import { Composer, SettingsCard } from "./composer.tsx";
import { type Model, ModelChoice, useModels } from "./models.tsx";
import { firstState, isBusy, MOST_COLUMNS, type Mode, recall, type State, type Turn } from "./state.ts";
import { Playground, summaryOf } from "./store.ts";
import "./playground.css";

export default function PlaygroundPage() {
  const models = useModels();
  return (
    <Page title="Playground">
      <Loaded query={models}>{(known) => <Bench models={known} />}</Loaded>
    </Page>
  );
}

function Bench({ models }: { models: readonly Model[] }) {
  const { server, role, tenant } = useSession();
  const [playground] = useState(() => {
    const who = `${role}:${tenant}`;
    const kept = recall(sessionStorage, who, firstState(server?.chat ? "chat" : "completion"));
    const made = new Playground(kept, sessionStorage, who);
    // An adapter is what one has come for.
    if (kept.columns.length === 0) made.addColumn((models[1] ?? models[0]!).id);
    return made;
  });
  const state = useSyncExternalStore(playground.subscribe, playground.state);
  const busy = isBusy(state);

  useEffect(() => {
    const save = () => playground.save();
    window.addEventListener("pagehide", save);
    return () => {
      window.removeEventListener("pagehide", save);
      playground.stop();
      playground.save();
    };
  }, [playground]);

  useEffect(() => {
    if (!busy) return;
    const onKeyDown = ({ key }: KeyboardEvent) => {
      if (key === "Escape") playground.stop();
    };
    window.addEventListener("keydown", onKeyDown);
    return () => window.removeEventListener("keydown", onKeyDown);
  }, [busy, playground]);

  return (
    <div className="bench">
      <Models {...{ state, playground, models }} />
      <SettingsCard {...{ state, playground }} />
      <div className="talk stack">
        {state.turns.length === 0 && (
          <Empty title="One question, several models">
            <p>What you ask is put to every model above at once; their answers appear side by side.</p>
          </Empty>
        )}
        {state.turns.map((turn, i) => (
          <TurnRow key={turn.id} {...{ turn, state, playground }} last={i === state.turns.length - 1} />
        ))}
        <p className="unseen" role="status">
          {summaryOf(state)}
        </p>
        <Composer {...{ state, playground }} />
      </div>
    </div>
  );
}

function Models({ state, playground, models }: { state: State; playground: Playground; models: readonly Model[] }) {
  const { server } = useSession();
  const { columns, mode } = state;
  const next = models.find(({ id }) => !columns.some(({ model }) => model === id)) ?? models[0]!;
  const modes: readonly (readonly [Mode, string])[] = [
    ["chat", "Chat"],
    ["completion", "Completion"],
  ];
  return (
    <Card
      title="Models"
      tools={
        <fieldset className="modes">
          <legend className="unseen">What is asked for</legend>
          {modes.map(([value, text]) => (
            <label key={value}>
              <input
                type="radio"
                name="mode"
                checked={mode === value}
                disabled={value === "chat" && !server?.chat}
                onChange={() => playground.change({ mode: value })}
              />
              {text}
            </label>
          ))}
        </fieldset>
      }
    >
      {!server?.chat && (
        <p className="muted">
          This model has no chat template: it continues prompts. <code>milora serve --chat-template</code> gives it one.
        </p>
      )}
      <div className="columns">
        {columns.map(({ id, model }, i) => (
          <div key={id} className="row end nowrap column">
            <ModelChoice
              label={`Model ${i + 1}`}
              {...{ models, value: model }}
              onChange={(chosen) => playground.choose(id, chosen)}
            />
            {columns.length > 1 && (
              <Button aria-label={`Remove model ${i + 1}`} onClick={() => playground.removeColumn(id)}>
                ✕
              </Button>
            )}
          </div>
        ))}
        {columns.length < MOST_COLUMNS && (
          <div className="row end">
            <Button onClick={() => playground.addColumn(next.id)}>Add a model</Button>
          </div>
        )}
      </div>
      {models.length === 1 && (
        <Note>
          There is no adapter yet that you may use. <Link href="/operations">Upload one</Link>, or train one:{" "}
          <code>milora train --help</code>.
        </Note>
      )}
    </Card>
  );
}

function TurnRow({
  turn,
  state: { columns },
  playground,
  last,
}: {
  turn: Turn;
  state: State;
  playground: Playground;
  last: boolean;
}) {
  const place = useRef<HTMLElement>(null);
  const { mode, prompt, answers } = turn;
  const fresh = Object.values(answers).some(({ state }) => state === "waiting");
  useEffect(() => {
    if (fresh) place.current?.scrollIntoView({ block: "nearest" });
  }, [fresh]);
  const shown = columns.filter(({ id }) => answers[id]);
  return (
    <section ref={place} className="turn stack" aria-label="Question and answers">
      {mode === "chat" && (
        <p className="asked">
          <span className="unseen">You asked: </span>
          {prompt}
        </p>
      )}
      <div className="columns">
        {shown.map((column) => (
          <AnswerCard
            key={column.id}
            answer={answers[column.id]!}
            lead={mode === "completion" ? prompt : null}
            onStop={() => playground.stop(column.id)}
            onAgain={last ? () => playground.again(column) : null}
          />
        ))}
      </div>
    </section>
  );
}
