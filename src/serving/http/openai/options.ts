/** @file From the fields of a body to what the scheduler is asked for. */
import type { SamplingOptions } from "../../../generation/index.ts";
import { RequestError } from "../errors.ts";
import type { SharedBody } from "./schemas.ts";

export interface Choices {
  /** Answers that are returned. */
  readonly n: number;
  /** Answers that are made, of which the likeliest are returned. */
  readonly candidates: number;
  readonly options: Omit<SamplingOptions, "maxNewTokens">;
}

/** @param eosTokenIds the backbone's own @throws RequestError fields that are at odds */
export function choicesOf(body: SharedBody, eosTokenIds: readonly number[]): Choices {
  const { n, best_of: bestOf } = body;
  const searching = body.use_beam_search === true || (body.beam_width ?? 1) > 1;
  const beams = searching ? (body.beam_width ?? bestOf ?? Math.max(n, 2)) : 1;
  const candidates = searching ? n : (bestOf ?? n);
  if (candidates < n) throw new RequestError(`best_of: is ${candidates}, must be at least n, which is ${n}`, "best_of");
  if (searching && n > beams) throw new RequestError(`n: is ${n}, a search with ${beams} beams has no more`, "n");
  if (candidates > n && body.stream) {
    throw new RequestError("best_of: what is best is known at the end only; leave stream or best_of out", "best_of");
  }
  const stop = typeof body.stop === "string" ? [body.stop] : body.stop;
  const topK = body.top_k === undefined || body.top_k < 1 ? undefined : body.top_k;
  const ends = body.ignore_eos ? (body.stop_token_ids ?? []) : [...eosTokenIds, ...(body.stop_token_ids ?? [])];
  const ownEnds = body.ignore_eos === true || body.stop_token_ids !== undefined;
  return {
    n,
    candidates,
    options: {
      temperature: body.temperature ?? (searching ? 0 : 1),
      ...(topK !== undefined && { topK }),
      ...(body.top_p !== undefined && { topP: body.top_p }),
      ...(body.min_p && { minP: body.min_p }),
      ...(body.seed !== undefined && { seed: body.seed }),
      ...(stop?.length && { stop }),
      ...(searching && { beams }),
      ...(body.length_penalty !== undefined && { lengthPenalty: body.length_penalty }),
      ...(body.presence_penalty && { presencePenalty: body.presence_penalty }),
      ...(body.frequency_penalty && { frequencyPenalty: body.frequency_penalty }),
      ...(body.repetition_penalty !== undefined &&
        body.repetition_penalty !== 1 && { repetitionPenalty: body.repetition_penalty }),
      ...(body.logit_bias && Object.keys(body.logit_bias).length > 0 && { logitBias: body.logit_bias }),
      ...(ownEnds && { eosTokenIds: ends }),
    },
  };
}
