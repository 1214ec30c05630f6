/** @file Tables: sorted by their heads, a hundred rows at a time. */
import { type ReactNode, useEffect, useRef, useState } from "react";
import { Button } from "./controls.tsx";

export interface Column<Row> {
  readonly key: string;
  readonly title: string;
  readonly cell: (row: Row) => ReactNode;
  /** Makes the column sortable. Null comes last. */
  readonly value?: (row: Row) => string | number | null;
  readonly numeric?: boolean;
  /** The column that names the row for screen readers. */
  readonly head?: boolean;
}

export interface Sort {
  readonly key: string;
  readonly down: boolean;
}

const PAGE = 100;

export function DataTable<Row>({
  caption,
  columns,
  rows,
  keyOf,
  initialSort,
  sort: given,
  onSort,
}: {
  /** For screen readers. */
  caption: string;
  columns: readonly Column<Row>[];
  rows: readonly Row[];
  keyOf: (row: Row) => string;
  initialSort?: Sort;
  /** Where the page keeps it, e.g. in the address. */
  sort?: Sort | undefined;
  onSort?: (sort: Sort) => void;
}) {
  const [own, setOwn] = useState(initialSort);
  const [shown, setShown] = useState(PAGE);
  const sort = given ?? own;
  const sorted = sortRows(rows, columns, sort);
  const toggle = (key: string) => {
    const next = { key, down: sort?.key === key ? !sort.down : false };
    setOwn(next);
    onSort?.(next);
  };
  return (
    <div className="stack">
      <TableScroll label={caption}>
        <table>
          <caption className="unseen">{caption}</caption>
          <thead>
            <tr>
              {columns.map(({ key, title, value, numeric }) => (
                <th
                  key={key}
                  scope="col"
                  className={numeric ? "numeric" : undefined}
                  aria-sort={sort?.key === key ? (sort.down ? "descending" : "ascending") : undefined}
                >
                  {value ? (
                    <button type="button" className="sort" onClick={() => toggle(key)}>
                      {title}
                      <span aria-hidden="true">{sort?.key === key ? (sort.down ? " ↓" : " ↑") : ""}</span>
                    </button>
                  ) : (
                    title
                  )}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {sorted.slice(0, shown).map((row) => (
              <tr key={keyOf(row)}>
                {columns.map(({ key, cell, numeric, head }) =>
                  head ? (
                    <th key={key} scope="row">
                      {cell(row)}
                    </th>
                  ) : (
                    <td key={key} className={numeric ? "numeric" : undefined}>
                      {cell(row)}
                    </td>
                  ),
                )}
              </tr>
            ))}
          </tbody>
        </table>
      </TableScroll>
      {sorted.length > shown && (
        <div className="row">
          <Button small onClick={() => setShown(shown + PAGE)}>
            Show {Math.min(PAGE, sorted.length - shown)} more of {sorted.length}
          </Button>
        </div>
      )}
    </div>
  );
}

/** Holds a table that may be wider than its place; where it is, it can be scrolled with the keyboard, too. */
export function TableScroll({ label, children }: { label: string; children: ReactNode }) {
  const section = useRef<HTMLElement>(null);
  const [isWider, setIsWider] = useState(false);
  useEffect(() => {
    const { current } = section;
    if (!current) return;
    const observer = new ResizeObserver(() => setIsWider(current.scrollWidth > current.clientWidth));
    for (const element of [current, ...current.children]) observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return (
    <section ref={section} className="table-scroll" aria-label={label} {...(isWider && { tabIndex: 0 })}>
      {children}
    </section>
  );
}

function sortRows<Row>(rows: readonly Row[], columns: readonly Column<Row>[], sort: Sort | undefined): readonly Row[] {
  const value = columns.find(({ key }) => key === sort?.key)?.value;
  if (!value || !sort) return rows;
  const sign = sort.down ? -1 : 1;
  return [...rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    if (typeof a === "string" && typeof b === "string") return sign * a.localeCompare(b, "en", { numeric: true });
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  });
}
