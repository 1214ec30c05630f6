/** @file The head of a page, its tabs, and small parts of text. */
import { type ReactNode, useEffect, useRef } from "react";
import { Link, useRoute } from "wouter";

/** Says the page's name to the browser and, after a change of page, to screen readers. */
export function Page({ title, tools, children }: { title: string; tools?: ReactNode; children: ReactNode }) {
  const head = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${title} – milora studio`;
    // The first page of a visit is read from its start anyway.
    if (visited) head.current?.focus({ preventScroll: true });
    visited = true;
  }, [title]);
  return (
    <div className="stack">
      <div className="spread">
        <h1 ref={head} tabIndex={-1}>
          {title}
        </h1>
        {tools && <div className="row">{tools}</div>}
      </div>
      {children}
    </div>
  );
}

let visited = false;

/** Tabs that are pages of their own. */
export function PageTabs({ label, tabs }: { label: string; tabs: readonly (readonly [path: string, text: string])[] }) {
  return (
    <nav className="tabs" aria-label={label}>
      {tabs.map(([path, text]) => (
        <TabLink key={path} path={path} text={text} />
      ))}
    </nav>
  );
}

function TabLink({ path, text }: { path: string; text: string }) {
  const [here] = useRoute(path);
  return (
    <Link href={path} aria-current={here ? "page" : undefined}>
      {text}
    </Link>
  );
}

export function Card({ title, tools, children }: { title?: string; tools?: ReactNode; children: ReactNode }) {
  return (
    <section className="card stack" aria-label={title}>
      {title !== undefined && (
        <div className="spread">
          <h2>{title}</h2>
          {tools && <div className="row">{tools}</div>}
        </div>
      )}
      {children}
    </section>
  );
}

export function Stats({ of }: { of: readonly (readonly [name: string, value: ReactNode])[] }) {
  return (
    <dl className="stats">
      {of.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

export function Badge({
  kind = "plain",
  children,
}: {
  kind?: "plain" | "good" | "warn" | "bad" | "accent";
  children: ReactNode;
}) {
  return <span className={`badge ${kind}`}>{children}</span>;
}
