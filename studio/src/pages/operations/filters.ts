/** @file What a page is filtered by: in its address, so that a link shows the same. */
import { useSearchParams } from "wouter";

export function useFilters(): { get: (name: string) => string; set: (name: string, value: string) => void } {
  const [search, setSearch] = useSearchParams();
  return {
    get: (name) => search.get(name) ?? "",
    set: (name, value) =>
      setSearch(
        (before) => {
          const next = new URLSearchParams(before);
          if (value === "") next.delete(name);
          else next.set(name, value);
          return next;
        },
        { replace: true },
      ),
  };
}
