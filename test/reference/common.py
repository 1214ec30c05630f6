"""Shared by the generating scripts: paths, JSON with exact float32 numbers, prompts, greedy decoding, losses."""

import json
import os
import random
import shutil
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is local; must be set before the libraries are imported
warnings.filterwarnings("ignore", message="(Unable to fetch|Could not find a config file)")

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import LlamaForCausalLM, logging  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)  # one thread: sums are taken in the same order in every run

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
VOCAB, PAD, BOS, EOS = 96, 0, 1, 2
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def fresh_directory(*parts: str) -> Path:
    path = FIXTURES.joinpath(*parts)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def numbers(x):
    """Tensors and nested lists to plain JSON numbers; 9 significant digits give every float32 back exactly."""
    if isinstance(x, torch.Tensor):
        return numbers(x.tolist())
    if isinstance(x, float):
        return float(f"{x:.9g}")
    if isinstance(x, (list, tuple)):
        return [numbers(v) for v in x]
    if isinstance(x, dict):
        return {k: numbers(v) for k, v in x.items()}
    return x


def write_json(path: Path, value: dict) -> None:
    """One line for each top-level key, and for each element of a top-level list of objects."""
    lines = []
    for key, item in numbers(value).items():
        if isinstance(item, list) and item and isinstance(item[0], dict):
            body = "[\n" + ",\n".join("    " + json.dumps(v) for v in item) + "\n  ]"
        else:
            body = json.dumps(item)
        lines.append(f"  {json.dumps(key)}: {body}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2) + "\n")


def load_backbone(name: str) -> LlamaForCausalLM:
    """Always computes in float32, whatever the dtype on disk."""
    return LlamaForCausalLM.from_pretrained(
        FIXTURES / "backbones" / name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def random_tokens(rng: random.Random, length: int) -> list[int]:
    return [BOS] + [rng.randrange(3, VOCAB) for _ in range(length - 1)]


def next_token_log_probs(logits, tokens: list[int]):
    """[T, V], T tokens -> [T - 1]: log p(tokens[t] | tokens[< t]) for t >= 1."""
    log_probs = torch.log_softmax(logits[:-1], dim=-1)
    return log_probs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:], dtype=torch.long)]


@torch.no_grad()
def greedy(next_logits, tokens: list[int], steps: int = 12, variety: int = 4):
    """Continues by arg-max without any cache. next_logits(tokens) -> [V].
    None where a tie is near (two best logits within 1e-3), EOS comes up, or the text has less than `variety` tokens."""
    out = list(tokens)
    for _ in range(steps):
        best = torch.topk(next_logits(out), 2)
        if best.values[0] - best.values[1] <= 1e-3 or best.indices[0] == EOS:
            return None
        out.append(int(best.indices[0]))
    new = out[len(tokens) :]
    return new if len(set(new)) >= variety else None


def pad_right(rows: list[list[int]]):
    """-> tokens [B, T] int64 filled up with PAD, mask [B, T] int64."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return tokens, mask


def labels_of(tokens, mask, prompt_lengths: list[int]):
    """Labels [B, T], already shifted: labels[b, t] is the token after position t where that token belongs to the
    response, else -100. Prompt tokens and padding are never supervised."""
    labels = torch.full_like(tokens, -100)
    position = torch.arange(tokens.shape[1])
    for b, prompt in enumerate(prompt_lengths):
        supervised = (position >= prompt) & (mask[b] == 1)
        labels[b, :-1] = torch.where(supervised, tokens[b], -100)[1:]
    return labels


def cross_entropy(logits, labels, reduction: str = "mean"):
    """Mean over all supervised tokens of the batch (not a mean of means)."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction=reduction)


def clean_peft_directory(path: Path, backbone: str) -> None:
    """Removes what PEFT writes but no loader reads, and what depends on this machine or on hash order."""
    (path / "README.md").unlink(missing_ok=True)

    def change(config):
        config["base_model_name_or_path"] = backbone
        for modules in (config.get("target_modules"), config.get("feedforward_modules")):  # sets in PEFT
            if isinstance(modules, list):
                modules.sort()

    edit_json(path / "adapter_config.json", change)
