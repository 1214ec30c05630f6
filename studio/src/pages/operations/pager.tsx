/** @file Lists that the server gives a page at a time: where one is, and the way on and back. */
import { useState } from "react";
import { Button } from "../../ui/index.ts";

export interface Pages {
  /** Where this page begins; undefined: at the beginning. */
  readonly cursor: string | undefined;
  /** Pages before this one. */
  readonly before: number;
  readonly on: (next: string) => void;
  readonly back: () => void;
}

/** @param key of the list: another one begins at its beginning */
export function usePages(key: string): Pages {
  const [{ of, cursors }, set] = useState<{ of: string; cursors: readonly string[] }>({ of: key, cursors: [] });
  const known = of === key ? cursors : [];
  return {
    cursor: known.at(-1),
    before: known.length,
    on: (next) => set({ of: key, cursors: [...known, next] }),
    back: () => set({ of: key, cursors: known.slice(0, -1) }),
  };
}

export function Pager({
  pages,
  size,
  shown,
  total,
  next,
  what,
}: {
  pages: Pages;
  /** Of a full page. */
  size: number;
  shown: number;
  total: number;
  next: string | null;
  what: string;
}) {
  if (pages.before === 0 && next === null) return null;
  const from = pages.before * size;
  return (
    <nav className="row" aria-label={`Pages of ${what}`}>
      <Button small disabled={pages.before === 0} onClick={pages.back}>
        Before
      </Button>
      <span className="muted" role="status">
        {from + 1} to {from + shown} of {total.toLocaleString("en")}
      </span>
      <Button small disabled={next === null} onClick={() => next !== null && pages.on(next)}>
        After
      </Button>
    </nav>
  );
}
