"""A few rows of every public task, in the formats of the Hugging Face hub, from copies of the data sets.

    python test/reference/task_samples.py DATA

DATA holds the data sets as docs/evaluation.md lists the files. Writes assets/data/samples/.
"""

import csv
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "assets/data/samples"
SUBJECTS = ["anatomy", "global_facts", "high_school_geography", "philosophy"]


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8") if line.strip()]


def save(task, split, rows):
    path = OUT / task / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def labelled(row, stem):
    question, choices = row["question"]["stem"], row["question"]["choices"]
    return {
        stem: question,
        "choices": {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]},
        "answerKey": row["answerKey"],
    }


def adapters_choices(row):
    """A prompt of LLM-Adapters, taken apart again."""
    question, rest = re.match(
        r"Please choose the correct answer to the question: (.*)\n\nAnswer1: (.*)\n\nAnswer format:", row["instruction"], re.S
    ).groups()
    texts = re.split(r" Answer\d: ", rest)
    labels = ["A", "B", "C", "D", "E"][: len(texts)]
    key = labels[int(row["answer"].removeprefix("answer")) - 1]
    return {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": key}


def main(data):
    for name, folder in (("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")):
        test = json.load(open(data / "llm-adapters" / folder / "test.json", encoding="utf-8"))
        save(name, "test", [adapters_choices(row) for row in test[:8]])
        save(name, "train", [labelled(row, "question") for row in lines(data / f"arc/{folder}-Train.jsonl")[:6]])
    save("openbookqa", "test", [labelled(row, "question_stem") for row in lines(data / "openbookqa/test.jsonl")[:8]])
    save("openbookqa", "train", [labelled(row, "question_stem") for row in lines(data / "openbookqa/train.jsonl")[:6]])
    boolq = json.load(open(data / "llm-adapters/boolq/test.json", encoding="utf-8"))
    save("boolq", "validation", boolq[:8])
    labels = (data / "piqa/valid-labels.lst").read_text().split()
    valid = [{**row, "label": int(label)} for row, label in zip(lines(data / "piqa/valid.jsonl"), labels)]
    save("piqa", "validation", valid[:8])
    save("piqa", "train", lines(data / "piqa/train-reconstructed-1.jsonl")[:6])
    save("aqua", "test", lines(data / "aqua/test.json")[:8])
    save("aqua", "validation", lines(data / "aqua/dev.json")[:6])
    save("gsm8k", "test", lines(data / "gsm8k/test.jsonl")[:8])
    save("gsm8k", "train", lines(data / "gsm8k/train.jsonl")[:24])
    for subject in SUBJECTS:
        for split, most in (("dev", 5), ("test", 6)):
            table = list(csv.reader(open(data / f"mmlu/{split}/{subject}_{split}.csv", encoding="utf-8", newline="")))
            rows = [
                {"question": q, "subject": subject, "choices": choices, "answer": "ABCD".index(answer)}
                for q, *choices, answer in table[:most]
            ]
            save(f"mmlu_{subject}", split, rows)
    for path in sorted((data / "bbh").glob("*.json")):
        save(f"bbh_{path.stem}", "test", json.load(open(path, encoding="utf-8"))["examples"][:2])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
