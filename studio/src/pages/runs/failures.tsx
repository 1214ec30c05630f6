/** @file What could not be done of a grid or of a reproduction, and why. */
import { Note } from "../../ui/index.ts";

export interface Failed {
  readonly label: string;
  readonly code: string;
  readonly reason: string;
}

/** @param text what is said before them; without any there is nothing */
export function Failures({ of, text }: { of: readonly Failed[]; text: string }) {
  if (of.length === 0) return null;
  return (
    <Note kind="bad">
      <p>{text}</p>
      <ul>
        {of.map(({ label, code, reason }) => (
          <li key={`${label} ${reason}`}>
            {label}: {reason} ({code})
          </li>
        ))}
      </ul>
    </Note>
  );
}
