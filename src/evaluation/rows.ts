/** @file Rows with a known answer, as evaluation needs them. */
import { InputError } from "../base/index.ts";
import { loadRows, type Row, type RowOptions } from "../training/index.ts";

export type LabelledRow = Row & { readonly answer: string };

/** Problems named one by one; the rest is counted. */
const MOST_NAMED = 20;

/**
 * Reads rows in the form of LLM-Adapters: instruction, input, output and `answer`.
 * Throws `InputError` DATA_INVALID naming the rows without an answer.
 */
export async function loadLabelledRows(path: string, options: RowOptions = {}): Promise<LabelledRow[]> {
  const rows = await loadRows(path, options);
  const unlabelled = rows.filter((row) => !row.answer?.trim()).map((row) => `row ${row.number}: missing "answer"`);
  if (unlabelled.length) {
    const rest = unlabelled.length - MOST_NAMED;
    const named = unlabelled.slice(0, MOST_NAMED);
    throw new InputError("DATA_INVALID", path, rest > 0 ? [...named, `and ${rest} more`] : named);
  }
  return rows as LabelledRow[];
}

/** What the row asks, before any template: where a list of labels would stand. */
export function questionOf(row: Row): string {
  if (row.form === "instruction") return row.instruction;
  if (row.form === "completion") return row.prompt;
  if (row.form === "free") return "";
  return row.messages.findLast((message) => message.role === "user")?.content ?? "";
}
