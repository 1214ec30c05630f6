/** @file A prompt, explored as one types it, through up to four adapters side by side, and beside a prompt that was kept. */
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import type { ExploreRequest, ExploreResult, RoutedAdapter } from "../../../../src/serving/studio/types.ts";
import { ask } from "../../api/client.ts";
import { useSession } from "../../api/session.tsx";
import { Button, Card, ErrorNote, Loading, Note, SelectField, TextArea } from "../../ui/index.ts";
import { AdapterPicker, MOST_ADAPTERS } from "./adapters.tsx";
import { SHORT, useAddress, useFirstAddress } from "./address.ts";
import { Column } from "./column.tsx";

type Format = ExploreRequest["format"];
/** What is put to the routers. */
type Asked = Pick<ExploreRequest, "prompt" | "format">;

const FORMATS: readonly (readonly [Format, string])[] = [
  ["raw", "as it is"],
  ["alpaca", "as an instruction, as in training"],
  ["chat", "as a chat message"],
];

const EXAMPLE = "What does the mitochondrion of a cell do?";
/** So long nothing may be typed before the prompt is explored. */
const PAUSE_MS = 250;

function useSettled<T>(value: T, ms: number): T {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), ms);
    return () => clearTimeout(timer);
  }, [value, ms]);
  return settled;
}

function useExplored(adapters: readonly string[], asked: Asked | undefined) {
  return useQuery({
    queryKey: ["routing", "explore", adapters, asked],
    queryFn: ({ signal }) =>
      ask<ExploreResult>("/studio/v1/explore", { method: "POST", json: { adapters, ...asked }, signal }),
    enabled: adapters.length > 0 && asked !== undefined && asked.prompt !== "",
    placeholderData: keepPreviousData,
    staleTime: 60_000,
    gcTime: 60_000,
  });
}

function formatOf(text: string | null): Format {
  return FORMATS.find(([format]) => format === text)?.[0] ?? "raw";
}

/** What the page shows; begins with what the address says, and tells it what changes. */
function useChoices(all: readonly RoutedAdapter[], active: boolean) {
  const address = useFirstAddress();
  const [adapters, setAdapters] = useState<readonly string[]>(() => {
    const named = [...new Set(address.getAll("adapter"))].slice(0, MOST_ADAPTERS);
    return named.length > 0 ? named : [all[0]!.name];
  });
  const [prompt, setPrompt] = useState(() => address.get("prompt") ?? EXAMPLE);
  const [format, setFormat] = useState(() => formatOf(address.get("format")));
  const [kept, setKept] = useState<Asked | undefined>(() => {
    const text = address.get("kept");
    return text === null ? undefined : { prompt: text, format: formatOf(address.get("kept-format")) };
  });
  const [layer, setLayer] = useState(() => Math.max(0, Number.parseInt(address.get("layer") ?? "0", 10) || 0));
  const settled = useSettled(prompt, PAUSE_MS);
  const short = (text: string | undefined) => (text !== undefined && text.length <= SHORT ? text : null);
  useAddress(active, {
    adapter: adapters,
    prompt: short(settled),
    format: format === "raw" ? null : format,
    layer: layer === 0 ? null : String(layer),
    kept: short(kept?.prompt),
    "kept-format": kept && kept.format !== "raw" ? kept.format : null,
  });
  return { adapters, setAdapters, prompt, setPrompt, settled, format, setFormat, kept, setKept, layer, setLayer };
}

export function Prompt({ all, active }: { all: readonly RoutedAdapter[]; active: boolean }) {
  const { server } = useSession();
  const choices = useChoices(all, active);
  const { adapters, setAdapters, prompt, setPrompt, settled, format, setFormat, kept, setKept } = choices;
  const now = useExplored(adapters, { prompt: settled, format });
  const before = useExplored(adapters, kept);
  const formats = FORMATS.filter(([name]) => name !== "chat" || server?.chat);
  const waiting = prompt !== settled || now.isFetching;
  return (
    <>
      <Card>
        <div className="prompt-form">
          <TextArea label="Prompt" value={prompt} rows={4} onChange={({ target }) => setPrompt(target.value)} />
          <div className="stack tight">
            <AdapterPicker all={all} picked={adapters} onPick={setAdapters} />
            <SelectField
              label="How it is put to the model"
              value={format}
              options={formats}
              onChange={({ target }) => setFormat(formatOf(target.value))}
            />
          </div>
        </div>
        <div className="row">
          <Button disabled={prompt === ""} onClick={() => setKept({ prompt, format })}>
            Keep this prompt to compare
          </Button>
          {kept && <Button onClick={() => setKept(undefined)}>Stop comparing</Button>}
          <span role="status" className="muted">
            {statusOf(waiting, now.data, adapters.length)}
          </span>
        </div>
        {kept && (
          <Note>
            Compared with <q>{kept.prompt.length > 200 ? `${kept.prompt.slice(0, 200)} …` : kept.prompt}</q>
          </Note>
        )}
      </Card>
      {now.error && <ErrorNote error={now.error} retry={() => void now.refetch()} />}
      {kept && before.error && <ErrorNote error={before.error} retry={() => void before.refetch()} />}
      <Columns {...{ choices, result: now.data, busy: waiting, before: kept && before.data }} />
    </>
  );
}

function statusOf(waiting: boolean, result: ExploreResult | undefined, adapters: number): string {
  if (waiting) return "Exploring …";
  if (!result || adapters === 0) return "";
  const count = (n: number, what: string) => `${n} ${what}${n === 1 ? "" : "s"}`;
  return `${count(result.tokens.length, "token")} through ${count(adapters, "adapter")}`;
}

function Columns({
  choices: { adapters, settled, layer, setLayer },
  result,
  busy,
  before,
}: {
  choices: ReturnType<typeof useChoices>;
  result: ExploreResult | undefined;
  busy: boolean;
  before: ExploreResult | undefined;
}) {
  if (adapters.length === 0) return <Note>Add an adapter to see its routes.</Note>;
  if (settled === "") return <Note>Type a prompt to see which experts it switches on.</Note>;
  if (!result) return busy ? <Loading what="Exploring" /> : null;
  const of = (some: ExploreResult | undefined, name: string) => some?.routes.find(({ adapter }) => adapter === name);
  return (
    <>
      <p className="muted measure">
        Each row is a layer, each column an expert; the fuller its colour, the likelier the router finds it. ● chosen. A
        click or the arrow keys pick a layer, which is shown below its picture.
      </p>
      <div className="columns" aria-busy={busy}>
        {adapters.map((name) => {
          const route = of(result, name);
          if (!route) return busy && <Loading key={name} what={name} />;
          const shown = Math.min(layer, route.layers.length - 1);
          return (
            <Column
              key={name}
              {...{ route, before: of(before, name), tokens: result.tokens, layer: shown, onLayer: setLayer }}
            />
          );
        })}
      </div>
    </>
  );
}
