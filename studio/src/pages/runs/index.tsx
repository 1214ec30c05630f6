/** @file The pages of runs: all of them, one, several beside each other, the paper's tables as measured, and grids. */
import { Redirect, Route, Switch } from "wouter";
import { useSession } from "../../api/session.tsx";
import { Empty, Page, PageTabs } from "../../ui/index.ts";
import { useAddress } from "./address.ts";
import { ComparePage } from "./compare.tsx";
import { RunPage } from "./detail.tsx";
import { GridList, GridPage, SweepsAndGrids } from "./grids.tsx";
import { RunList } from "./list.tsx";
import { ReproductionPage } from "./reproduction.tsx";
import { ReproductionList } from "./reproductions.tsx";
import { SweepPage } from "./sweep.tsx";
import { SweepList } from "./sweeps.tsx";
import "./runs.css";

/** Of a server without folders of runs there are only sweeps. */
function useTabs(): readonly (readonly [path: string, text: string])[] {
  const { runs } = useSession();
  return [
    ...(runs
      ? ([
          ["/runs", "Runs"],
          ["/runs/reproductions", "Reproductions"],
        ] as const)
      : []),
    ["/runs/sweeps", "Sweeps"],
  ];
}

export default function Runs() {
  const { runs, sweeps } = useSession();
  const tabs = useTabs();
  return (
    <Switch>
      <Route path="/runs">
        {runs ? (
          <Page title="Runs">
            <PageTabs label="Runs" tabs={tabs} />
            <RunList />
          </Page>
        ) : (
          <Redirect to="/runs/sweeps" replace />
        )}
      </Route>
      <Route path="/runs/run">
        <Named what="run">{(id) => <RunPage key={id} id={id} />}</Named>
      </Route>
      <Route path="/runs/compare">
        <ComparePage />
      </Route>
      <Route path="/runs/reproductions">
        <Page title="Reproductions">
          <PageTabs label="Runs" tabs={tabs} />
          <ReproductionList />
        </Page>
      </Route>
      <Route path="/runs/reproduction">
        <Named what="reproduction">{(id) => <ReproductionPage key={id} id={id} />}</Named>
      </Route>
      <Route path="/runs/sweeps">
        <Page title="Sweeps">
          <PageTabs label="Runs" tabs={tabs} />
          {!sweeps ? <GridList /> : runs ? <SweepsAndGrids /> : <SweepList />}
        </Page>
      </Route>
      <Route path="/runs/grid">
        <Named what="grid">{(id) => <GridPage key={id} id={id} />}</Named>
      </Route>
      {sweeps && (
        <Route path="/runs/sweep">
          <Named what="sweep">{(id) => <SweepPage key={id} id={id} />}</Named>
        </Route>
      )}
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
