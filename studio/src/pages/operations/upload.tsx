/** @file Uploads an adapter: an archive, a folder or the two files of one, by drag and drop or by choice. */
import { useQueryClient } from "@tanstack/react-query";
import { type DragEvent, type FormEvent, useEffect, useRef, useState } from "react";
import { Badge, Button, bytes, Card, ErrorNote, Field, Note, number, SelectField, TextField } from "../../ui/index.ts";
import type { InstalledRow } from "./api.ts";
import { dropped, type FileAt, filesOf, type Picked, pick } from "./picked.ts";
import { sendArchive } from "./send-archive.ts";

/** The name that stands for everybody; no tenant can have it. */
const SHARED = "shared";

export interface UploadProps {
  /** Tenants that it can be for; undefined: it is the caller's own. */
  readonly owners: readonly string[] | undefined;
  /** Whether there is one of this name. */
  readonly useExists: (owner: string | null, name: string) => boolean;
  /** Where it is sent. */
  readonly pathOf: (owner: string | null, name: string) => string;
}

type State =
  | { readonly at: "choosing" }
  | { readonly at: "sending"; readonly sent: number; readonly abort: AbortController }
  | { readonly at: "refused"; readonly error: unknown }
  | { readonly at: "installed"; readonly name: string; readonly installed: InstalledRow };

export function Upload({ owners, useExists, pathOf }: UploadProps) {
  const queries = useQueryClient();
  const [picked, setPicked] = useState<Picked>();
  const [name, setName] = useState("");
  const [owner, setOwner] = useState(SHARED);
  const [over, setOver] = useState(false);
  const [state, setState] = useState<State>({ at: "choosing" });
  const tenant = owners && owner !== SHARED ? owner : null;
  const exists = useExists(tenant, name);

  const take = async (reading: Promise<readonly FileAt[]>) => {
    try {
      const found = pick(await reading);
      setPicked(found);
      setName(found.name);
      setState({ at: "choosing" });
    } catch (error) {
      setPicked(undefined);
      setState({ at: "refused", error });
    }
  };
  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    void take(dropped(event.dataTransfer.items));
  };
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    if (!picked) return;
    const abort = new AbortController();
    setState({ at: "sending", sent: 0, abort });
    try {
      const installed = await sendArchive<InstalledRow>(pathOf(tenant, name), picked.archive, {
        signal: abort.signal,
        progress: (sent) => setState({ at: "sending", sent, abort }),
      });
      setState({ at: "installed", name: tenant === null ? name : `${tenant}/${name}`, installed });
      setPicked(undefined);
    } catch (error) {
      setState(abort.signal.aborted ? { at: "choosing" } : { at: "refused", error });
    }
    await queries.invalidateQueries();
  };

  return (
    <Card title="Upload an adapter">
      {/* biome-ignore lint/a11y/noStaticElementInteractions: dropping is one way more; the buttons inside do the same */}
      <div
        className={over ? "drop over" : "drop"}
        onDragOver={(event) => {
          event.preventDefault();
          setOver(true);
        }}
        onDragLeave={() => setOver(false)}
        onDrop={drop}
      >
        <p>
          Drop an adapter here: a <code>.tar</code> or <code>.tar.gz</code>, its folder, or{" "}
          <code>adapter_config.json</code> with <code>adapter_model.safetensors</code>.
        </p>
        <div className="row">
          <FileButton label="Choose files" onFiles={(files) => void take(Promise.resolve(files))} />
          <FileButton label="Choose a folder" folder onFiles={(files) => void take(Promise.resolve(files))} />
        </div>
      </div>
      {picked && (
        <form className="stack" onSubmit={(event) => void submit(event)}>
          <p>
            <Badge>{bytes(picked.archive.size)}</Badge> {picked.what}
          </p>
          <div className="grid">
            <TextField
              label="Name"
              hint={
                exists
                  ? "There is one of this name: it is replaced. Requests under way end with the old one."
                  : "What requests call it: letters, digits, '.', '_' and '-'."
              }
              required
              value={name}
              autoComplete="off"
              onChange={(event) => setName(event.target.value)}
            />
            {owners && (
              <SelectField
                label="Owner"
                hint="Only a tenant and whom it is granted to may use its adapters."
                options={[[SHARED, "everybody"], ...owners.map((id) => [id, id] as const)]}
                value={owner}
                onChange={(event) => setOwner(event.target.value)}
              />
            )}
          </div>
          <div className="row">
            <Button type="submit" kind="primary" disabled={state.at === "sending" || name === ""}>
              Upload
            </Button>
            {state.at === "sending" ? (
              <Button onClick={() => state.abort.abort()}>Cancel</Button>
            ) : (
              <Button onClick={() => setPicked(undefined)}>Choose something else</Button>
            )}
          </div>
          {state.at === "sending" && <Progress sent={state.sent} size={picked.archive.size} />}
        </form>
      )}
      {state.at === "refused" && <Refused error={state.error} />}
      {state.at === "installed" && <Installed {...state} />}
    </Card>
  );
}

function FileButton({
  label,
  folder = false,
  onFiles,
}: {
  label: string;
  folder?: boolean;
  onFiles: (files: readonly FileAt[]) => void;
}) {
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (input.current) input.current.webkitdirectory = folder;
  }, [folder]);
  return (
    <label className="button choose">
      {label}
      <input
        ref={input}
        type="file"
        className="unseen"
        multiple
        {...(!folder && { accept: ".tar,.gz,.tgz,.json,.safetensors" })}
        onChange={({ target }) => {
          if (target.files?.length) onFiles(filesOf(target.files));
          target.value = ""; // the same may be chosen again
        }}
      />
    </label>
  );
}

function Progress({ sent, size }: { sent: number; size: number }) {
  const whole = sent >= size;
  return (
    <Field
      label={whole ? "Checking …" : `Sending, ${bytes(Math.min(sent, size))} of ${bytes(size)}`}
      control={(tied) => <progress {...tied} {...(whole ? {} : { value: sent, max: size })} />}
    />
  );
}

/** What is wrong with it, each problem by itself. */
function Refused({ error }: { error: unknown }) {
  return (
    <div className="stack">
      <ErrorNote error={error} />
      <p className="muted">Nothing was installed.</p>
    </div>
  );
}

function Installed({ name, installed }: { name: string; installed: InstalledRow }) {
  const { method, rank, parameters, tensors, replaced, skipped } = installed;
  return (
    <Note kind="good">
      <p role="status">
        Installed <strong>{name}</strong>: {method}
        {rank !== null && ` of rank ${rank}`}, {number(parameters)} parameters in {number(tensors)} tensors.
        {replaced && " It has replaced the one of this name."}
      </p>
      {skipped.length > 0 && <p className="muted">Not taken: {skipped.join(", ")}</p>}
    </Note>
  );
}
