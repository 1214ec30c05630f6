/** @file Routing: what the routers of adapters do with a prompt as one types it, and with whole data sets. */
import { useState } from "react";
import { Link, useRoute } from "wouter";
import type { RoutedAdapter } from "../../../../src/serving/studio/types.ts";
import { useSession } from "../../api/session.tsx";
import { Empty, Loaded, Page, PageTabs } from "../../ui/index.ts";
import { useRouted } from "./adapters.tsx";
import { DataSets } from "./data-sets.tsx";
import { Prompt } from "./prompt.tsx";
import "./routing.css";

export default function Routing() {
  const adapters = useRouted();
  return (
    <Page title="Routing">
      <p className="muted measure">
        A MiLoRA adapter has a small expert for each weight matrix of a layer. In every layer a router reads the prompt
        once and switches on the few experts that suit it; they stay on for the whole answer.
      </p>
      <Loaded query={adapters} what="Looking for adapters that route">
        {(all) => (all.length === 0 ? <NoAdapters /> : <Tabs all={all} />)}
      </Loaded>
    </Page>
  );
}

/** A tab that was opened stays as it was left. */
function Tabs({ all }: { all: readonly RoutedAdapter[] }) {
  const [data] = useRoute("/routing/data");
  const [opened, setOpened] = useState({ prompt: !data, data });
  if (!(data ? opened.data : opened.prompt)) setOpened({ prompt: true, data: true });
  return (
    <>
      <PageTabs
        label="Kinds of routing"
        tabs={[
          ["/routing", "A prompt"],
          ["/routing/data", "A data set"],
        ]}
      />
      {opened.prompt && (
        <div className="stack" hidden={data}>
          <Prompt all={all} active={!data} />
        </div>
      )}
      {opened.data && (
        <div className="stack" hidden={!data}>
          <DataSets all={all} active={data} />
        </div>
      )}
    </>
  );
}

function NoAdapters() {
  const { role } = useSession();
  const place = role === "admin" ? "/operations/adapters" : "/operations";
  return (
    <Empty title="No adapter here routes prompts yet">
      <p className="measure">
        Train one on this backbone, which takes minutes on a small data set, then <Link href={place}>upload</Link> the
        folder <code>best</code> of its run:
      </p>
      <pre>milora train --model MODEL --train data.jsonl --method milora --output runs/mine</pre>
    </Empty>
  );
}
