"""Beam search by transformers on the tiny backbones: token ids and scores, with answers that end early and late.

Writes test/fixtures/beam.json: {cases: [{backbone, prompt, beams, lengthPenalty, maxNewTokens, eosTokenIds, tokens,
score}]}. `tokens` are the new ones, the eos token included; `score` is sum log p / length ** lengthPenalty.
The backbones have random weights and hardly ever say <eos>, so each case declares other tokens to be the end.
"""

import random

import torch
from common import FIXTURES, VOCAB, load_backbone, random_tokens, write_json


@torch.no_grad()
def search(model, prompt, beams, length_penalty, max_new_tokens, eos):
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=beams,
        do_sample=False,
        early_stopping=False,
        length_penalty=length_penalty,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = out.sequences[0, len(prompt) :].tolist()
    ends = [i for i, token in enumerate(tokens) if token in eos]
    return tokens[: ends[0] + 1] if ends else tokens, out.sequences_scores[0].item()


def main():
    rng = random.Random(7)
    cases = []
    for name in ["llama-gqa", "llama-headdim"]:
        model = load_backbone(name)
        for number in range(8):
            prompt = random_tokens(rng, rng.randrange(1, 14))
            beams = [3, 3, 3, 2, 4, 5, 3, 3][number]
            length_penalty = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 0.5][number]
            eos = [2] if number == 0 else sorted(rng.sample(range(3, VOCAB), [1, 1, 4, 1, 9, 3, 6, 2][number]))
            limit = rng.randrange(9, 24)
            tokens, score = search(model, prompt, beams, length_penalty, limit, eos)
            cases.append(
                {
                    "backbone": name,
                    "prompt": prompt,
                    "beams": beams,
                    "lengthPenalty": length_penalty,
                    "maxNewTokens": limit,
                    "eosTokenIds": eos,
                    "tokens": tokens,
                    "score": score,
                }
            )
    write_json(FIXTURES / "beam.json", {"cases": cases})


if __name__ == "__main__":
    main()
