/** @file What is asked, with which settings, and the buttons that send and stop. */
import { type KeyboardEvent, useState } from "react";
import { Button, Checkbox, TextArea, TextField } from "../../ui/index.ts";
import { problemsOf, SETTINGS } from "./settings.ts";
import { isBusy, type State } from "./state.ts";
import type { Playground } from "./store.ts";

export function Composer({ state, playground }: { state: State; playground: Playground }) {
  const { mode, prompt, columns } = state;
  const busy = isBusy(state);
  const wrong = Object.keys(problemsOf(state.settings)).length > 0;
  const ready = !busy && !wrong && prompt.trim() !== "" && columns.length > 0;
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.nativeEvent.isComposing) return;
    event.preventDefault();
    if (ready) playground.send();
  };
  return (
    <form
      className="composer card stack"
      aria-label="Ask"
      onSubmit={(event) => {
        event.preventDefault();
        if (ready) playground.send();
      }}
    >
      <TextArea
        label={mode === "chat" ? "Message" : "Prompt"}
        hint={wrong ? "A setting has to be put right first." : "Ctrl or ⌘ with Enter sends to all models, Esc stops."}
        rows={2}
        value={prompt}
        onKeyDown={onKeyDown}
        onChange={({ target }) => playground.change({ prompt: target.value })}
      />
      <div className="row">
        <Button type="submit" kind="primary" disabled={!ready}>
          Send
        </Button>
        <Button disabled={!busy} onClick={() => playground.stop()}>
          Stop all
        </Button>
        <Button disabled={state.turns.length === 0} onClick={() => playground.clear()}>
          {mode === "chat" ? "New conversation" : "Clear"}
        </Button>
      </div>
    </form>
  );
}

/** Where there is room for them beside the answers. */
const WIDE = window.matchMedia("(min-width: 68rem)");

/** Says so where a model refused one of them. */
export function SettingsCard({ state, playground }: { state: State; playground: Playground }) {
  const { mode, settings, goOn, system } = state;
  const own = problemsOf(settings);
  const last = Object.values(state.turns.at(-1)?.answers ?? {});
  const refused = (name: string): string | undefined =>
    last.find(({ problem }) => problem?.param === name)?.problem?.message;
  const [open, setOpen] = useState(() => WIDE.matches || Object.keys(own).length > 0);
  return (
    <details className="card settings" open={open} onToggle={({ currentTarget }) => setOpen(currentTarget.open)}>
      <summary>
        <h2>Settings</h2>
      </summary>
      <div className="stack">
        {mode === "chat" && (
          <TextArea
            label="System message"
            rows={2}
            value={system}
            onChange={({ target }) => playground.change({ system: target.value })}
          />
        )}
        <div className="grid small">
          {SETTINGS.map(({ name, label, hint }) => (
            <TextField
              key={name}
              {...{ label, hint }}
              inputMode="decimal"
              autoComplete="off"
              problem={own[name] ?? refused(name)}
              value={settings[name] ?? ""}
              onChange={({ target }) => playground.set(name, target.value)}
            />
          ))}
        </div>
        <TextArea
          label="Stop texts"
          hint="One a line, before which an answer ends; \n is a new line."
          rows={2}
          problem={refused("stop")}
          value={settings.stop ?? ""}
          onChange={({ target }) => playground.set("stop", target.value)}
        />
        <TextArea
          label="Logit bias"
          hint="A token a line: its id, and −100 (never) to 100 that is added to its logit; 42: -5."
          rows={2}
          problem={own.logit_bias ?? refused("logit_bias")}
          value={settings.logit_bias ?? ""}
          onChange={({ target }) => playground.set("logit_bias", target.value)}
        />
        <Checkbox
          label="Ignore the end token"
          checked={goOn}
          onChange={({ target }) => playground.change({ goOn: target.checked })}
        />
      </div>
    </details>
  );
}
