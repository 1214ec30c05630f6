/** @file Models that one may ask, and the control that chooses one. */
import { useQuery } from "@tanstack/react-query";
import { useId } from "react";
import type { StudioSession } from "../../../../src/serving/studio/types.ts";
import { ask } from "../../api/client.ts";
import { useSession } from "../../api/session.tsx";
import { Field, SelectField } from "../../ui/index.ts";

export interface Model {
  /** What requests call it. */
  readonly id: string;
  readonly owner: string;
  /** Of an adapter. */
  readonly method: string | null;
}

interface ModelList {
  readonly data: readonly {
    readonly id: string;
    readonly owned_by: string;
    readonly parent: string | null;
    readonly x_milora?: { readonly method: string };
  }[];
}

interface AllAdapters {
  readonly adapters: readonly { readonly owner: string | null; readonly name: string; readonly method: string }[];
}

const BACKBONE = "backbone";
const SHARED = "for everybody";

/** The backbone first; administrators see adapters of all tenants. */
export function useModels() {
  const session = useSession();
  return useQuery({
    queryKey: ["playground", "models", session.role],
    queryFn: ({ signal }) => modelsOf(session, signal),
    staleTime: 10_000,
  });
}

async function modelsOf({ role, server }: StudioSession, signal: AbortSignal): Promise<readonly Model[]> {
  const base: Model = { id: server!.base, owner: BACKBONE, method: null };
  if (role === "admin") {
    const { adapters } = await ask<AllAdapters>("/admin/v1/adapters", { signal });
    return [
      base,
      ...adapters.map(({ owner, name, method }) => ({
        ...{ id: owner === null ? name : `${owner}/${name}`, owner: owner ?? SHARED, method },
      })),
    ];
  }
  const { data } = await ask<ModelList>("/v1/models", { signal });
  return data.map(({ id, owned_by: owner, parent, x_milora: about }) => ({
    id,
    owner: parent === null ? BACKBONE : owner === "shared" ? SHARED : owner,
    method: about?.method ?? null,
  }));
}

/** Longer lists than this are searched by typing. */
const MOST_OPTIONS = 200;

export function ModelChoice({
  label,
  models,
  value,
  onChange,
}: {
  label: string;
  models: readonly Model[];
  value: string;
  onChange: (model: string) => void;
}) {
  const list = useId();
  const textOf = ({ id, method }: Model): string => (method === null ? id : `${id} (${method})`);
  if (models.length > MOST_OPTIONS) {
    return (
      <Field
        label={label}
        control={(tied) => (
          <>
            <input type="text" list={list} value={value} onChange={({ target }) => onChange(target.value)} {...tied} />
            <datalist id={list}>
              {models.map((model) => (
                <option key={model.id} value={model.id}>
                  {textOf(model)}
                </option>
              ))}
            </datalist>
          </>
        )}
      />
    );
  }
  // One that is gone stays named; the server says that it is gone.
  const gone = models.some(({ id }) => id === value) ? [] : [[value, `${value} (not there)`] as const];
  const owners = [...new Set(models.map(({ owner }) => owner))];
  if (owners.length < 3) {
    return (
      <SelectField
        {...{ label, value }}
        options={[...models.map((model) => [model.id, textOf(model)] as const), ...gone]}
        onChange={({ target }) => onChange(target.value)}
      />
    );
  }
  return (
    <Field
      label={label}
      control={(tied) => (
        <select value={value} onChange={({ target }) => onChange(target.value)} {...tied}>
          {gone.map(([id, text]) => (
            <option key={id} value={id}>
              {text}
            </option>
          ))}
          {owners.map((owner) => (
            <optgroup key={owner} label={owner}>
              {models
                .filter((model) => model.owner === owner)
                .map((model) => (
                  <option key={model.id} value={model.id}>
                    {textOf(model)}
                  </option>
                ))}
            </optgroup>
          ))}
        </select>
      )}
    />
  );
}
