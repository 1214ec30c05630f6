"""How LLM-Adapters (Hu et al. 2023) reads answers, written from its description: test/fixtures/lm-eval/hu2023.json.

    python test/reference/hu2023.py

The first match of the answer pattern for tasks with named answers, the last number once commas are gone for arithmetic.
AQuA is read otherwise than there (its first capital A to E anywhere takes letters out of words): the letter after the
last "answer is", else the last that stands alone.
"""

import json
import re
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "test/fixtures/lm-eval/hu2023.json"

PATTERNS = {
    "boolq": r"true|false",
    "piqa": r"solution1|solution2",
    "arc_easy": r"answer1|answer2|answer3|answer4|answer5",
    "arc_challenge": r"answer1|answer2|answer3|answer4|answer5",
    "openbookqa": r"answer1|answer2|answer3|answer4|answer5",
}
ANSWERS = {"boolq": "true", "piqa": "solution2", "arc_easy": "answer3", "arc_challenge": "answer1", "openbookqa": "answer4"}

TEXTS = [
    "the correct answer is true",
    "the correct answer is false, not true",
    "untrue",
    "True",
    "the correct answer is solution2",
    "solution12 or solution1",
    "Solution1",
    "the correct answer is answer3",
    "answer5answer1",
    "answer 4",
    "answer6 answer4",
    "",
    "the correct answer is\nanswer1",
]

NUMBERS = [
    "She has 3 apples and 1,007 pears.",
    "The answer is 18.",
    "= 5.50 dollars",
    "-4 then +12",
    "2*3=6, so the result is -6.",
    "no number",
    "It takes 1.5.2 hours",
    "12,345,678",
    "The answer is 72.0001",
]
NUMBER_ANSWERS = ["1007.0", "18", "5.5", "12", "-6", "2", "12345678", "72"]

LETTERS = [
    "The answer is (B).",
    "A car goes. The answer is: D",
    "Because Every option fails but C",
    "Because Every Dog",
    "answer is a",
    "The answer is B. Wait, the answer is E",
    "A) or C)",
    "(A)",
    "A's is B's",
]


def number(text):
    found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return float(found[-1]) if found else float("inf")


def letter(text):
    after = re.findall(r"answer is:?\s*\(?([A-E])\b", text, re.I)
    if after:
        return after[-1].upper()
    alone = re.findall(r"(?<![A-Za-z])([A-E])(?![A-Za-z'’])", text)
    return alone[-1] if alone else None


def main():
    cases = {}
    for task, pattern in PATTERNS.items():
        found = [re.findall(pattern, text.strip()) for text in TEXTS]
        answers = [matches[0] if matches else None for matches in found]
        cases[task] = {
            "texts": TEXTS,
            "answer": ANSWERS[task],
            "read": answers,
            "right": [answer == ANSWERS[task] for answer in answers],
        }
    cases["gsm8k"] = [
        {"answer": answer, "texts": NUMBERS, "right": [abs(number(text) - float(answer)) <= 0.001 for text in NUMBERS]}
        for answer in NUMBER_ANSWERS
    ]
    cases["aqua"] = {"texts": LETTERS, "read": [letter(text) for text in LETTERS]}
    OUT.write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
