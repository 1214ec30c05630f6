/** @file Adapters that route: which there are, and the control that picks some of them. */
import { useQuery } from "@tanstack/react-query";
import { useId, useState } from "react";
import type { RoutedAdapter } from "../../../../src/serving/studio/types.ts";
import { ask } from "../../api/client.ts";
import { Button, Field } from "../../ui/index.ts";

/** Adapters side by side, at most. */
export const MOST_ADAPTERS = 4;

export function useRouted() {
  return useQuery({
    queryKey: ["routing", "adapters"],
    queryFn: async ({ signal }) => {
      const { adapters } = await ask<{ adapters: readonly RoutedAdapter[] }>("/studio/v1/explore", { signal });
      return adapters;
    },
    staleTime: 10_000,
  });
}

/** Lists that are longer are searched by typing. */
const MOST_OPTIONS = 100;

/** Adds adapters one by one; each that was picked has a button that takes it away. */
export function AdapterPicker({
  all,
  picked,
  onPick,
}: {
  all: readonly RoutedAdapter[];
  picked: readonly string[];
  onPick: (names: readonly string[]) => void;
}) {
  const others = all.filter(({ name }) => !picked.includes(name));
  const full = picked.length >= MOST_ADAPTERS;
  const [typed, setTyped] = useState("");
  const list = useId();
  const add = (name: string): boolean => {
    const known = others.some((one) => one.name === name);
    if (known) onPick([...picked, name]);
    return known;
  };
  const hint = full ? "Four at most: remove one first." : "Up to four, side by side.";
  return (
    <div className="stack tight">
      <ul className="picked" aria-label="Adapters that are shown">
        {picked.map((name) => (
          <li key={name}>
            <Button small aria-label={`Remove ${name}`} onClick={() => onPick(picked.filter((one) => one !== name))}>
              {name} <span aria-hidden="true">✕</span>
            </Button>
          </li>
        ))}
      </ul>
      {others.length > 0 && others.length <= MOST_OPTIONS && (
        <Field
          label="Add an adapter"
          hint={hint}
          control={(tied) => (
            <select {...tied} value="" disabled={full} onChange={({ target }) => add(target.value)}>
              <option value="">Choose …</option>
              {others.map(({ name, method }) => (
                <option key={name} value={name}>
                  {name} ({method})
                </option>
              ))}
            </select>
          )}
        />
      )}
      {others.length > MOST_OPTIONS && (
        <Field
          label="Add an adapter"
          hint={hint}
          control={(tied) => (
            <>
              <input
                {...tied}
                type="text"
                list={list}
                value={typed}
                disabled={full}
                onChange={({ target }) => setTyped(add(target.value) ? "" : target.value)}
              />
              <datalist id={list}>
                {others.map(({ name }) => (
                  <option key={name} value={name} />
                ))}
              </datalist>
            </>
          )}
        />
      )}
    </div>
  );
}
