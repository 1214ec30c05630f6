"""What lm-evaluation-harness 0.4.13 gives for the bundled model on the sample rows: test/fixtures/lm-eval/.

    python test/reference/lm_eval.py

Runs the harness's own task files (templates, filters, metrics), with only the data set replaced by local rows and
generation shortened. Needs lm_eval 0.4.13, datasets, torch, transformers.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from random import Random

sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]  # this file's own name

import datasets  # noqa: E402
import lm_eval  # noqa: E402
import yaml  # noqa: E402
from lm_eval.api.metrics import exact_match_hf_evaluate  # noqa: E402
from lm_eval.filters.extraction import RegexFilter  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "test/fixtures/lm-eval"
SAMPLES = ROOT / "assets/data/samples"
TASKS = Path(lm_eval.__file__).parent / "tasks"

SUBJECTS = ["anatomy", "global_facts", "high_school_geography", "philosophy"]
BBH = ["date_understanding", "snarks", "word_sorting"]

# Task: the harness's file, splits here → splits there, shots, most tokens of an answer, name of the run.
LABELLED = {"test": "test", "train": "train"}
RUNS = [
    ("arc_easy", "arc/arc_easy.yaml", LABELLED, 0, None),
    ("arc_easy", "arc/arc_easy.yaml", LABELLED, 3, None),
    ("arc_challenge", "arc/arc_challenge.yaml", LABELLED, 0, None),
    ("openbookqa", "openbookqa/openbookqa.yaml", LABELLED, 2, None),
    ("boolq", "super_glue/boolq/default.yaml", {"validation": "validation"}, 0, None),
    ("piqa", "piqa/piqa.yaml", {"validation": "validation", "train": "train"}, 1, None),
    ("aqua", "agieval/aqua-rat.yaml", {"test": "test"}, 0, None),
    ("gsm8k", "gsm8k/gsm8k.yaml", LABELLED, 5, 32),
    *[(f"mmlu_{s}", f"mmlu/default/mmlu_{s}.yaml", {"test": "test", "dev": "dev"}, 5, None) for s in SUBJECTS],
    *[(f"bbh_{t}", f"bbh/cot_fewshot/{t}.yaml", {"test": "test"}, 3, 32) for t in BBH],
]


def aqua_rows(path, directory):
    """Rows of AQuA in the form of AGIEval's data set."""
    rows = []
    for line in open(path, encoding="utf-8"):
        row = json.loads(line)
        choices = [f"({option[0]}){option[2:]}" for option in row["options"]]
        query = f"Q: {row['question']} Answer Choices: {' '.join(choices)}\nA: Among A through E, the answer is"
        rows.append({"query": query, "choices": choices, "gold": ["ABCDE".index(row["correct"])]})
    target = Path(directory) / "aqua.jsonl"
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(target)


def rows_file(task, split, directory):
    if task == "boolq":
        return str(OUT / "boolq.jsonl")
    path = SAMPLES / task / f"{split}.jsonl"
    return aqua_rows(path, directory) if task == "aqua" else str(path)


def run(lm, task, source, splits, shots, tokens, directory):
    config = {
        "include": str(TASKS / source),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {there: rows_file(task, here, directory) for here, there in splits.items()}},
        "training_split": "train" if "train" in splits else None,
        "validation_split": "validation" if "validation" in splits else None,
        "test_split": "test" if "test" in splits else None,
    }
    if tokens is not None:
        own = yaml.load(open(TASKS / source), Loader=Loose)
        base = own.get("include")
        if base:
            own = {**yaml.load(open((TASKS / source).parent / base), Loader=Loose), **own}
        config["generation_kwargs"] = {**own["generation_kwargs"], "max_gen_toks": tokens}
    name = f"{task}-{shots}"
    folder = Path(directory) / name
    folder.mkdir()
    # The name stays the harness's own, so that results are called as they are there.
    (folder / "task.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    [harness_name] = manager.all_subtasks
    results = lm_eval.simple_evaluate(
        lm, tasks=[harness_name], num_fewshot=shots, task_manager=manager, log_samples=True, bootstrap_iters=0x1000
    )
    return harness_name, results


class Loose(yaml.SafeLoader):
    """The harness's files name functions, which do not matter here."""


Loose.add_multi_constructor("!", lambda loader, suffix, node: str(node.value))


def sha(text):
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def rows_of(samples):
    """By row: what was asked, what came out, how it was marked under each filter."""
    rows = {}
    for sample in samples:
        row = rows.setdefault(sample["doc_id"], {"context": sha(sample["arguments"][0][0]), "target": str(sample["target"])})
        scores = {metric: float(sample[metric]) for metric in sample["metrics"]}
        row.setdefault("scores", {})[sample["filter"]] = scores
        if isinstance(sample["resps"][0][0], str):
            row["text"] = sample["resps"][0][0]
            row.setdefault("answers", {})[sample["filter"]] = sample["filtered_resps"][0]
        else:
            row["logLikelihoods"] = [round(float(r[0][0]), 5) for r in sample["resps"]]
            row["greedy"] = [bool(r[0][1]) for r in sample["resps"]]
    return [rows[key] for key in sorted(rows)]


TEXTS = [
    "Janet sells 16 - 3 - 4 = 9 eggs.\n#### 18",
    "She makes $1,234.50 a day. #### 1,234.50",
    "The answer is 12. So 3 and -7.",
    "It costs $ 5, that is 5$.",
    "#### -3\n#### 4",
    "no number at all",
    "9",
    "A: $10.",
    "x1.y2,3",
    "#### $5",
    "It is 1.000,50 or 2 .",
    "So the answer is (A).",
    "So the answer is (B). But the answer is (C).",
    "the answer is valid",
    "the answer is  syndrome therefrom.\nQ",
    "the answer is .",
    "The answer is (A).",
    "the answer is\n(A).",
    "so the answer is ] ] }.",
]
TARGETS = ["18", "#### 1,234.50", "x\n#### -7", "5.", "#### -3", "(A)", "(B)", "vali", "syndrome therefrom", "$10"]


def extraction():
    gsm8k = yaml.load(open(TASKS / "gsm8k/gsm8k.yaml"), Loader=Loose)
    bbh = yaml.load(open(TASKS / "bbh/cot_fewshot/_cot_fewshot_template_yaml"), Loader=Loose)
    found = {}
    for task, config in (("gsm8k", gsm8k), ("bbh_snarks", bbh)):
        kwargs = {k: v for k, v in config["metric_list"][0].items() if k not in ("metric", "aggregation", "higher_is_better")}
        found[task] = {}
        for entry in config["filter_list"]:
            options = {k: v for k, v in entry["filter"][0].items() if k != "function"}
            answers = [a[0] for a in RegexFilter(**options).apply([[text] for text in TEXTS], [{}] * len(TEXTS))]
            right = [
                [i for i, t in enumerate(TARGETS) if exact_match_hf_evaluate([a], [t], **kwargs)["exact_match"] == 1.0]
                for a in answers
            ]
            found[task][entry["name"]] = {"answers": answers, "right": right}
    return {"texts": TEXTS, "targets": TARGETS, "found": found}


def samples_of_python():
    """Draws of Python's generator, of small and of large lists."""
    cases = []
    for seed, n, k in ((1234, 8, 5), (1234, 21, 3), (1234, 22, 5), (1234, 7473, 5), (1234, 100, 25), (0, 30, 8), (4294967295, 60, 6)):
        random = Random(seed)
        cases.append({"seed": seed, "n": n, "k": k, "draws": [random.sample(range(n), k) for _ in range(3)]})
    return cases


def parquet():
    """Sample rows as the hub keeps them: nested columns, 64-bit integers."""
    for task, split in (("arc_easy", "test"), ("mmlu_anatomy", "test")):
        rows = datasets.Dataset.from_list([json.loads(line) for line in open(SAMPLES / task / f"{split}.jsonl", encoding="utf-8")])
        rows.to_parquet(OUT / f"{task}.parquet")


def main():
    parquet()
    lm = HFLM(pretrained=str(ROOT / "assets/tiny-llama"), dtype="float32", device="cpu", batch_size=1)
    measured = []
    whole = {}
    with tempfile.TemporaryDirectory() as directory:
        for task, source, splits, shots, tokens in RUNS:
            name, results = run(lm, task, source, splits, shots, tokens, directory)
            measured.append(
                {
                    "task": task,
                    "harnessName": name,
                    "version": results["versions"][name],
                    "shots": results["n-shot"][name],
                    "maxNewTokens": tokens,
                    "results": results["results"][name],
                    "rows": rows_of(results["samples"][name]),
                }
            )
            if (task, shots) in (("arc_easy", 0), ("gsm8k", 5)):
                sample = dict(results["samples"][name][0])
                parts = {k: results[k] for k in ("results", "versions", "n-shot", "higher_is_better", "n-samples", "group_subtasks")}
                whole[task] = {"keys": sorted(results), **parts, "sample": {**sample, "arguments": [list(a) for a in sample["arguments"]]}}
    values = [m for m in measured if m["task"].startswith("mmlu_")]
    sizes = [len(m["rows"]) for m in values]
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

    group = {
        "acc": aggregate_subtask_metrics([m["results"]["acc,none"] for m in values], sizes),
        "stderr": float(pooled_sample_stderr([m["results"]["acc_stderr,none"] for m in values], sizes)),
    }
    fixture = {
        "measured": measured,
        "mmlu": group,
        "extraction": extraction(),
        "samples": samples_of_python(),
        "files": whole,
    }
    text = json.dumps(fixture, ensure_ascii=False, indent=1, default=float)
    (OUT / "expected.json").write_text(text + "\n", encoding="utf-8")
    print(len(text), "characters")


if __name__ == "__main__":
    main()
