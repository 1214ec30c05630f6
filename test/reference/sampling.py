"""What transformers keeps of a distribution after temperature, top-k and top-p, in the order in which it applies them.

Writes test/fixtures/sampling.json: {cases: [{logits [V], temperature, topK, topP, minP, kept, probabilities}], repetition:
[{logits, seen, penalty, changed}]}: `kept` are the token ids that may still be drawn, most likely first, with their
probabilities. topK, topP and minP are null where not used. `changed` are the logits after a repetition penalty for `seen`.
"""

import random

import torch
from common import FIXTURES, write_json
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# temperature, top-k, top-p
SETTINGS = [
    (1.0, None, None),
    (0.5, 5, None),
    (1.3, None, 0.9),
    (0.7, 8, 0.8),
    (1.0, 40, 0.95),
    (2.0, 3, 0.5),
    (1.0, None, 0.01),
    (1.0, 1, None),
    (0.25, None, 0.999),
    (1.7, 1000, 0.6),
]
# with min-p
MIN_P = [(1.0, None, None, 0.1), (0.5, None, None, 0.02), (1.5, 9, 0.95, 0.3), (1.0, None, 0.5, 0.001), (0.8, 4, None, 1.0)]


def main():
    rng = random.Random(3)
    cases = []
    settings = [(*setting, None) for setting in SETTINGS * 2] + MIN_P
    for index, (temperature, top_k, top_p, min_p) in enumerate(settings):
        logits = [rng.gauss(0, 1 + index % 4) for _ in range(24 + 3 * index)]
        if len(SETTINGS) <= index < 2 * len(SETTINGS):
            logits[1] = float("-inf")  # a forbidden token
            logits[3] = logits[5] = max(logits)  # ties at the top
        scores = torch.tensor([logits], dtype=torch.float32)
        scores = TemperatureLogitsWarper(temperature)(None, scores) if temperature != 1.0 else scores
        scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        scores = TopPLogitsWarper(top_p)(None, scores) if top_p else scores
        scores = MinPLogitsWarper(min_p)(None, scores) if min_p else scores
        probabilities = scores.softmax(-1)[0]
        kept = [i for i in probabilities.sort(descending=True, stable=True).indices.tolist() if probabilities[i] > 0]
        cases.append(
            {
                "logits": [None if value == float("-inf") else value for value in logits],
                "temperature": temperature,
                "topK": top_k,
                "topP": top_p,
                "minP": min_p,
                "kept": kept,
                "probabilities": probabilities[kept],
            }
        )
    repetition = []
    for penalty in (1.3, 0.8):
        logits = [rng.gauss(0, 2) for _ in range(12)]
        seen = [3, 7, 7, 0, 11]
        scores = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), torch.tensor([logits]))
        repetition.append({"logits": logits, "seen": seen, "penalty": penalty, "changed": scores[0]})
    write_json(FIXTURES / "sampling.json", {"cases": cases, "repetition": repetition})


if __name__ == "__main__":
    main()
