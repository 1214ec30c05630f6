/** @file Requests to OpenAI's API: as they are sent, as a command, and as a program. */
import { fieldsOf } from "./settings.ts";
import type { SentRequest, State, Turn } from "./state.ts";

type Message = { readonly role: "system" | "user" | "assistant"; readonly content: string };

/** The request of a column for a turn, with what was said to it before. */
export function requestOf(state: State, column: string, model: string, turn: Turn): SentRequest {
  const fields = fieldsOf(state.settings, state.goOn, turn.mode);
  const extra = { x_milora: { routes: true } };
  if (turn.mode === "completion") {
    return { path: "/v1/completions", body: { model, prompt: turn.prompt, ...fields, ...extra } };
  }
  const before = state.turns.slice(
    0,
    state.turns.findIndex(({ id }) => id === turn.id),
  );
  const messages: Message[] = [
    ...(state.system.trim() === "" ? [] : [{ role: "system" as const, content: state.system }]),
    ...before.flatMap(({ mode, prompt, answers }) => {
      const answer = answers[column];
      // A question without an answer would be two of the user's messages in a row.
      if (mode !== "chat" || !answer || answer.text === "") return [];
      return [
        { role: "user" as const, content: prompt },
        { role: "assistant" as const, content: answer.text },
      ];
    }),
    { role: "user", content: turn.prompt },
  ];
  return { path: "/v1/chat/completions", body: { model, messages, ...fields, ...extra } };
}

/** What is best is known at the end only: such a request is no stream. */
export function isWhole({ body: { n = 1, best_of: candidates, beam_width: beams } }: SentRequest): boolean {
  const searching = typeof beams === "number" && beams > 1;
  return !searching && typeof candidates === "number" && candidates > Number(n);
}

/** What a request needs to be answered as a stream, with the usage at its end. */
export function streamed({ path, body }: SentRequest): SentRequest {
  return { path, body: { ...body, stream: true, stream_options: { include_usage: true } } };
}

/** @param keyed whether the server asks for a key, which the page does not know */
export function asCurl({ path, body }: SentRequest, origin: string, keyed: boolean): string {
  const quoted = `'${JSON.stringify(body, null, 2).replaceAll("'", `'\\''`)}'`;
  const key = keyed ? ` \\\n  -H "authorization: Bearer $MILORA_KEY"` : "";
  return `curl ${origin}${path}${key} \\\n  -H 'content-type: application/json' \\\n  -d ${quoted}\n`;
}

/** Fields that OpenAI's client knows; others travel in an object of their own, which its types let through. */
const OPENAI = new Set(
  "model prompt messages max_tokens max_completion_tokens temperature top_p seed stop presence_penalty frequency_penalty n logit_bias".split(
    " ",
  ),
);

/** JSON as one would write it in a program: names without quotes. What is within texts stays, their quotes are escaped. */
function literal(value: unknown): string {
  return JSON.stringify(value, null, 2).replace(/^(\s*)"([a-z_]+|\d+)":/gm, "$1$2:");
}

export function asTypeScript({ path, body }: SentRequest, origin: string, keyed: boolean): string {
  const known = Object.fromEntries(Object.entries(body).filter(([name]) => OPENAI.has(name)));
  const more = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.has(name)));
  const chat = path.endsWith("/chat/completions");
  const key = keyed ? "process.env.MILORA_KEY" : '"none"';
  const several = isWhole({ path, body }) || Number(body.n ?? 1) > 1;
  const text = chat ? (several ? "message.content" : "delta.content") : "text";
  const call = `await client.${chat ? "chat.completions" : "completions"}.create({
${literal(known).slice(2, -2)},${several ? "" : "\n  stream: true,"}
  ...more,
})`;
  const shown = several
    ? `const { choices } = ${call};\nfor (const choice of choices) console.log(choice.${text});`
    : `const stream = ${call};\nfor await (const { choices } of stream) process.stdout.write(choices[0]?.${text} ?? "");`;
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: ${JSON.stringify(`${origin}/v1`)}, apiKey: ${key} });

/** What milora understands beyond OpenAI's API. */
const more = ${literal(more)};

${shown}
`;
}
