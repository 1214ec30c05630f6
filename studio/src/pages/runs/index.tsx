/** @file The pages of runs: all of them, one, several beside each other, and the paper's tables as measured. */
import { Route, Switch } from "wouter";
import { Empty, Page, PageTabs } from "../../ui/index.ts";
import { useAddress } from "./address.ts";
import { ComparePage } from "./compare.tsx";
import { RunPage } from "./detail.tsx";
import { RunList } from "./list.tsx";
import { ReproductionPage } from "./reproduction.tsx";
import { ReproductionList } from "./reproductions.tsx";
import "./runs.css";

const TABS = [
  ["/runs", "Runs"],
  ["/runs/reproductions", "Reproductions"],
] as const;

export default function Runs() {
  return (
    <Switch>
      <Route path="/runs">
        <Page title="Runs">
          <PageTabs label="Runs" tabs={TABS} />
          <RunList />
        </Page>
      </Route>
      <Route path="/runs/run">
        <Named what="run">{(id) => <RunPage key={id} id={id} />}</Named>
      </Route>
      <Route path="/runs/compare">
        <ComparePage />
      </Route>
      <Route path="/runs/reproductions">
        <Page title="Reproductions">
          <PageTabs label="Runs" tabs={TABS} />
          <ReproductionList />
        </Page>
      </Route>
      <Route path="/runs/reproduction">
        <Named what="reproduction">{(id) => <ReproductionPage key={id} id={id} />}</Named>
      </Route>
      <Route>
        <Page title="There is no such page">
          <Empty title="Nothing here" />
        </Page>
      </Route>
    </Switch>
  );
}

function Named({ what, children }: { what: string; children: (id: string) => React.ReactNode }) {
  const id = useAddress().get("id");
  if (id !== undefined) return children(id);
  return (
    <Page title="Nothing is named">
      <Empty title={`The address names no ${what}`} />
    </Page>
  );
}
