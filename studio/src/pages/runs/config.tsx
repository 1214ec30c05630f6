/** @file What a run was told and where it was computed, as tables to read and as JSON to copy. */
import { useState } from "react";
import type { RunDetail } from "../../../../src/serving/studio/types.ts";
import { Card, type Column, CopyButton, DataTable, Empty, TextField } from "../../ui/index.ts";

export interface Setting {
  readonly name: string;
  readonly value: string;
}

/** Leaves of a config by their dotted path; lists as they are written. */
export function settingsOf(config: Readonly<Record<string, unknown>>, path = ""): Setting[] {
  return Object.entries(config).flatMap(([key, value]): Setting[] => {
    const name = path === "" ? key : `${path}.${key}`;
    const inner = value !== null && typeof value === "object" && !Array.isArray(value);
    if (inner) return settingsOf(value as Record<string, unknown>, name);
    return [{ name, value: typeof value === "string" ? value : JSON.stringify(value) }];
  });
}

export function Settings({ run: { config, environment } }: { run: RunDetail }) {
  return (
    <div className="stack">
      <Table title="Config" of={config} />
      {environment && <Table title="Machine and versions" of={environment} />}
    </div>
  );
}

const COLUMNS: readonly Column<Setting>[] = [
  { key: "name", title: "Setting", head: true, value: ({ name }) => name, cell: ({ name }) => <code>{name}</code> },
  { key: "value", title: "Value", cell: ({ value }) => <span className="value">{value}</span> },
];

function Table({ title, of }: { title: string; of: Readonly<Record<string, unknown>> }) {
  const [text, setText] = useState("");
  const settings = settingsOf(of);
  const found = settings.filter(({ name }) => name.toLowerCase().includes(text.toLowerCase()));
  return (
    <Card title={title} tools={<CopyButton label="Copy as JSON" text={() => JSON.stringify(of, null, 2)} />}>
      {settings.length > 12 && (
        <div className="row">
          <TextField
            label="Settings named"
            type="search"
            value={text}
            onChange={({ target }) => setText(target.value)}
          />
        </div>
      )}
      {found.length === 0 ? (
        <Empty title="No setting is called that" />
      ) : (
        <DataTable caption={`${title}, setting by setting`} columns={COLUMNS} rows={found} keyOf={({ name }) => name} />
      )}
    </Card>
  );
}
