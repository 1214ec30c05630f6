/** @file What the address keeps of a tab, so that a link shows the same: names and numbers always, texts where they are short. */
import { useEffect, useState } from "react";
import { useSearchParams } from "wouter";

/** Longer texts than this are left out of the address. */
export const SHORT = 600;

type Kept = Readonly<Record<string, string | readonly string[] | null>>;

/** What the address said when the tab was opened. */
export function useFirstAddress(): URLSearchParams {
  const [parameters] = useSearchParams();
  const [first] = useState(parameters);
  return first;
}

/** Has the address say this as long as the tab is the one that is looked at; `null` and empty texts are left out. */
export function useAddress(active: boolean, kept: Kept): void {
  const [, setParameters] = useSearchParams();
  const given = Object.entries(kept).flatMap(([name, value]) =>
    [value ?? []].flat().flatMap((one) => (one === "" ? [] : [[name, one]])),
  );
  const wanted = new URLSearchParams(given).toString();
  useEffect(() => {
    if (active) setParameters(new URLSearchParams(wanted), { replace: true });
  }, [active, wanted, setParameters]);
}
