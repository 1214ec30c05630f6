/** @file The page Runs. */
import { Empty, Page } from "../../ui/index.ts";

export default function Runs() {
  return (
    <Page title="Runs">
      <Empty title="Nothing here yet" />
    </Page>
  );
}
