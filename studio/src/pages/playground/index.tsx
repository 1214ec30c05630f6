/** @file The page Playground. */
import { Empty, Page } from "../../ui/index.ts";

export default function Playground() {
  return (
    <Page title="Playground">
      <Empty title="Nothing here yet" />
    </Page>
  );
}
