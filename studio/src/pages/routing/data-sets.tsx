/** @file Figure 2 of any data set: how often each expert is active, by layer, for rows that are named or dropped here. */
import { useQuery } from "@tanstack/react-query";
import { type DragEvent, type FormEvent, useEffect, useRef, useState } from "react";
import type {
  ExploreDataRequest,
  ExploreDataResult,
  NamedData,
  RoutedAdapter,
} from "../../../../src/serving/studio/types.ts";
import { ask } from "../../api/client.ts";
import { useSession } from "../../api/session.tsx";
import { Button, Card, Empty, ErrorNote, Field, Loaded, Note, SelectField, TextField } from "../../ui/index.ts";
import { useAddress, useFirstAddress } from "./address.ts";
import { Figure } from "./figure.tsx";
import { figureOf, type Progress } from "./lines.ts";

/** The server takes no more rows, and no larger files. */
const MOST_ROWS = 2000;
const MOST_BYTES = 7 * 1024 * 1024;

/** Choice of the data that is a file of the reader's own. */
const OWN = "";

type Template = NonNullable<ExploreDataRequest["template"]>;
const TEMPLATES: readonly (readonly [Template, string])[] = [
  ["alpaca", "as instructions (Alpaca), as in training"],
  ["none", "as they are"],
  ["chat", "in the model's own chat template"],
];

type State =
  | { readonly kind: "idle" }
  | { readonly kind: "running"; readonly progress: Progress | undefined }
  | { readonly kind: "done"; readonly result: ExploreDataResult; readonly title: string }
  | { readonly kind: "failed"; readonly error: unknown };

export function DataSets({ all, active }: { all: readonly RoutedAdapter[]; active: boolean }) {
  const named = useQuery({
    queryKey: ["routing", "data"],
    queryFn: async ({ signal }) => (await ask<{ data: readonly NamedData[] }>("/studio/v1/data", { signal })).data,
    staleTime: Number.POSITIVE_INFINITY,
  });
  return <Loaded query={named}>{(data) => <Form {...{ all, active, data }} />}</Loaded>;
}

function Form({ all, active, data }: { all: readonly RoutedAdapter[]; active: boolean; data: readonly NamedData[] }) {
  const { server } = useSession();
  const first = useFirstAddress();
  const [adapter, setAdapter] = useState(() => first.get("adapter") ?? all[0]!.name);
  const [name, setName] = useState(() => {
    const asked = first.get("data");
    if (asked === "own" || data.length === 0) return OWN;
    return data.find((one) => one.name === asked)?.name ?? data[0]!.name;
  });
  const [file, setFile] = useState<File>();
  const [limit, setLimit] = useState(() => first.get("rows") ?? "200");
  useAddress(active, { adapter, data: name === OWN ? "own" : name, rows: limit });
  const [template, setTemplate] = useState<Template>("alpaca");
  const [state, setState] = useState<State>({ kind: "idle" });
  const stop = useRef<AbortController>(undefined);
  useEffect(() => () => stop.current?.abort(), []);
  const rows = Number(limit);
  const wrongRows = Number.isInteger(rows) && rows >= 1 && rows <= MOST_ROWS ? undefined : `From 1 to ${MOST_ROWS}.`;
  const tooLarge = file && file.size > MOST_BYTES ? `${file.name} is larger than 7 MiB.` : undefined;
  const missing = name === OWN && file === undefined;
  const running = state.kind === "running";

  const run = async (event: FormEvent) => {
    event.preventDefault();
    if (wrongRows || tooLarge || missing || running) return;
    const own = new AbortController();
    stop.current = own;
    setState({ kind: "running", progress: undefined });
    const told = (next: State) => own === stop.current && setState(next);
    try {
      const source = name === OWN ? { text: await file!.text(), format: formatOf(file!) } : { name };
      const request: ExploreDataRequest = { adapter, ...source, limit: rows, template };
      const result = await figureOf(request, (progress) => told({ kind: "running", progress }), own.signal);
      told({ kind: "done", result, title: `${adapter}, ${name === OWN ? file!.name : name}` });
    } catch (error) {
      told(own.signal.aborted ? { kind: "idle" } : { kind: "failed", error });
    }
  };

  return (
    <>
      <Card>
        <p className="muted measure">
          The paper's Figure 2 asks whether different tasks use different experts. Here every row of a data set is put
          to the routers as a prompt, and what they chose is counted.
        </p>
        <form className="stack" onSubmit={(event) => void run(event)}>
          <div className="grid small">
            <SelectField
              label="Adapter"
              value={adapter}
              options={[
                ...(all.some((one) => one.name === adapter) ? [] : [adapter]),
                ...all.map((one) => [one.name, `${one.name} (${one.method})`] as const),
              ]}
              onChange={({ target }) => setAdapter(target.value)}
            />
            <SelectField
              label="Data set"
              value={name}
              options={[
                ...data.map((one) => [one.name, `${one.name} (${one.rows} rows)`] as const),
                [OWN, "a file of mine"],
              ]}
              onChange={({ target }) => setName(target.value)}
            />
            <TextField
              label="First rows"
              inputMode="numeric"
              value={limit}
              problem={wrongRows}
              onChange={({ target }) => setLimit(target.value)}
            />
            <SelectField
              label="How rows become prompts"
              value={template}
              options={TEMPLATES.filter(([one]) => one !== "chat" || server?.chat)}
              onChange={({ target }) => setTemplate(target.value as Template)}
            />
          </div>
          {name === OWN && <FileDrop {...{ file, problem: tooLarge, onFile: setFile }} />}
          <div className="row">
            <Button type="submit" kind="primary" disabled={running || missing || !!tooLarge || !!wrongRows}>
              Route the rows
            </Button>
            {running && <Button onClick={() => stop.current?.abort()}>Stop</Button>}
          </div>
        </form>
        {running && <Running progress={state.progress} />}
      </Card>
      {state.kind === "failed" && <ErrorNote error={state.error} />}
      {state.kind === "idle" && <Empty title="No rows routed yet">Choose an adapter and a data set above.</Empty>}
      {state.kind === "done" && <Figure {...state} />}
    </>
  );
}

function formatOf({ name }: File): "jsonl" | "json" | "csv" {
  if (/\.csv$/i.test(name)) return "csv";
  return /\.json$/i.test(name) ? "json" : "jsonl";
}

function Running({ progress }: { progress: Progress | undefined }) {
  const text = progress ? `${progress.done} of ${progress.total} prompts routed` : "Reading the rows …";
  return (
    <div className="stack tight" role="status">
      <span>{text}</span>
      <progress aria-label="Prompts routed" max={progress?.total ?? 1} value={progress?.done ?? 0} />
    </div>
  );
}

function FileDrop({
  file,
  problem,
  onFile,
}: {
  file: File | undefined;
  problem: string | undefined;
  onFile: (file: File) => void;
}) {
  const [over, setOver] = useState(false);
  const drag = (inside: boolean) => (event: DragEvent) => {
    event.preventDefault();
    setOver(inside);
  };
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: the field inside does the same with the keyboard
    <div
      className={over ? "drop over" : "drop"}
      onDragOver={drag(true)}
      onDragLeave={drag(false)}
      onDrop={(event) => {
        drag(false)(event);
        const [first] = event.dataTransfer.files;
        if (first) onFile(first);
      }}
    >
      <Field
        label="File of rows, chosen or dropped here"
        hint='JSON lines, a JSON list or CSV; rows have "instruction" (and "input"), "prompt" or "messages", and perhaps "answer".'
        problem={problem}
        control={(tied) => (
          <input
            {...tied}
            type="file"
            accept=".jsonl,.ndjson,.json,.csv,.txt"
            onChange={({ target }) => target.files?.[0] && onFile(target.files[0])}
          />
        )}
      />
      {file && !problem && <Note kind="good">{file.name} is ready.</Note>}
    </div>
  );
}
