/** @file Names of installed adapters as they are typed and shown. */
import { InputError } from "../../base/index.ts";

/** A name as `list` prints it: `name` is shared, `tenant/name` a tenant's. */
export interface QualifiedName {
  readonly owner: string | null;
  readonly name: string;
}

export function parseQualified(text: string): QualifiedName {
  const [first, second, ...rest] = text.split("/");
  if (!first || second === "" || rest.length > 0) {
    throw new InputError("FLAG_INVALID", JSON.stringify(text), "is neither NAME nor TENANT/NAME");
  }
  return second === undefined ? { owner: null, name: first } : { owner: first, name: second };
}

export function shown({ owner, name }: QualifiedName): string {
  return owner === null ? name : `${owner}/${name}`;
}
