/** @file The page Routing. */
import { Empty, Page } from "../../ui/index.ts";

export default function Routing() {
  return (
    <Page title="Routing">
      <Empty title="Nothing here yet" />
    </Page>
  );
}
