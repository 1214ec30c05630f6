/** @file The page Operations. */
import { Empty, Page } from "../../ui/index.ts";

export default function Operations() {
  return (
    <Page title="Operations">
      <Empty title="Nothing here yet" />
    </Page>
  );
}
