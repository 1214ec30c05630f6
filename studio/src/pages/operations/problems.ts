/** @file Which problems of a refused form belong to which of its fields. */
import { ApiError } from "../../api/client.ts";

export interface FormProblems {
  /** By field, `limits.tokensPerDay` for one inside another. */
  readonly at: Readonly<Record<string, string>>;
  /** What belongs to no field; undefined where all does. */
  readonly rest: unknown;
}

/** @param ofCodes fields that are meant by errors that name none */
export function formProblems(
  error: unknown,
  fields: readonly string[],
  ofCodes: Readonly<Record<string, string>> = {},
): FormProblems {
  if (!(error instanceof ApiError)) return { at: {}, rest: error ?? undefined };
  const meant = ofCodes[error.code];
  if (meant !== undefined) return { at: { [meant]: error.message }, rest: undefined };
  const all = error.problems.length > 0 ? error.problems : [error.message.replace(/^the request: /, "")];
  const at: Record<string, string> = {};
  let others = 0;
  for (const problem of all) {
    const field = fields.find((name) => problem.startsWith(`${name}: `));
    if (field === undefined) others++;
    else at[field] = problem.slice(field.length + 2);
  }
  return { at, rest: others > 0 ? error : undefined };
}
