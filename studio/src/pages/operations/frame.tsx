/** @file The head and the tabs that all pages of operations have. */
import type { ReactNode } from "react";
import { Page, PageTabs } from "../../ui/index.ts";
import "./operations.css";

const TABS = [
  ["/operations", "Overview"],
  ["/operations/adapters", "Adapters"],
  ["/operations/tenants", "Tenants"],
  ["/operations/keys", "Keys"],
  ["/operations/usage", "Usage"],
  ["/operations/errors", "Errors"],
] as const;

export function Operations({ title, tools, children }: { title: string; tools?: ReactNode; children: ReactNode }) {
  return (
    <Page title={title} tools={tools}>
      <PageTabs label="Operations" tabs={TABS} />
      {children}
    </Page>
  );
}

/** How full something is. @param most undefined where there is no limit */
export function Meter({
  label,
  value,
  most,
  show,
}: {
  label: string;
  value: number;
  most: number | undefined;
  show: (value: number) => string;
}) {
  const text = most === undefined ? `${show(value)}, no limit` : `${show(value)} of ${show(most)}`;
  return (
    <div className="filled">
      <div className="spread">
        <span>{label}</span>
        <span className="muted">{text}</span>
      </div>
      {most !== undefined && (
        <meter aria-label={label} aria-valuetext={text} value={value} max={most} high={0.9 * most} optimum={0} />
      )}
    </div>
  );
}
