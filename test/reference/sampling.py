"""What transformers keeps of a distribution after temperature, top-k and top-p, in the order in which it applies them.

Writes test/fixtures/sampling.json: {cases: [{logits [V], temperature, topK, topP, kept, probabilities}]}: `kept` are the
token ids that may still be drawn, most likely first, with their probabilities. topK and topP are null where not used.
"""

import random

import torch
from common import FIXTURES, write_json
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

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


def main():
    rng = random.Random(3)
    cases = []
    for index, (temperature, top_k, top_p) in enumerate(SETTINGS * 2):
        logits = [rng.gauss(0, 1 + index % 4) for _ in range(24 + 3 * index)]
        if index >= len(SETTINGS):
            logits[1] = float("-inf")  # a forbidden token
            logits[3] = logits[5] = max(logits)  # ties at the top
        scores = torch.tensor([logits], dtype=torch.float32)
        scores = TemperatureLogitsWarper(temperature)(None, scores) if temperature != 1.0 else scores
        scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        scores = TopPLogitsWarper(top_p)(None, scores) if top_p else scores
        probabilities = scores.softmax(-1)[0]
        kept = [i for i in probabilities.sort(descending=True, stable=True).indices.tolist() if probabilities[i] > 0]
        cases.append(
            {
                "logits": [None if value == float("-inf") else value for value in logits],
                "temperature": temperature,
                "topK": top_k,
                "topP": top_p,
                "kept": kept,
                "probabilities": probabilities[kept],
            }
        )
    write_json(FIXTURES / "sampling.json", {"cases": cases})


if __name__ == "__main__":
    main()
