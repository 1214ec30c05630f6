"""Shared by the methods that PEFT does not have (moelora.py, adapters.py, iapt.py): a base class that hooks itself into
transformers' LLaMA, and the writer of their fixtures. Written to be read, not to be fast: no KV cache anywhere."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from common import MODULES, cross_entropy, fresh_directory, greedy, labels_of, load_backbone
from common import next_token_log_probs, pad_right, random_tokens, write_json
from rational import DENOMINATOR, NUMERATOR

BACKBONE = "llama-gqa"
PROMPTS, RESPONSES = [6, 1, 11, 3], [4, 5, 3, 2]


class OwnMethod:
    """Holds the adapter's tensors by their file keys in `tensors`. A method defines `defaults`, `shapes` and `attach`."""

    defaults: dict
    reads_prompts = False  # whether what it computes depends on where the prompt ends

    def __init__(self, backbone, options: dict, tensors: dict | None = None):
        self.config = {"task_type": "CAUSAL_LM"} | self.defaults | options
        self.backbone, self.layers = backbone, backbone.model.layers
        self.d = backbone.config.hidden_size
        shapes = self.shapes()
        self.tensors = tensors or {key: torch.zeros(shape) for key, shape in shapes.items()}
        assert {k: tuple(v.shape) for k, v in self.tensors.items()} == shapes
        for tensor in self.tensors.values():
            tensor.requires_grad_(True)
        self.attach()

    def path(self, l: int, rest: str) -> str:
        return f"base_model.model.model.layers.{l}.{rest}"

    def block(self, l: int, name: str):
        return getattr(self.layers[l], name)

    def module(self, l: int, name: str):
        return getattr(self.block(l, block_of(name)), name)

    def replace_output(self, module, change) -> None:
        """change(x, y) -> what the module gives instead of y, for modules called with one tensor or by keyword."""

        def hook(_, args, kwargs, output):
            x = args[0] if args else kwargs["hidden_states"]
            if isinstance(output, tuple):
                return (change(x, output[0]), *output[1:])
            return change(x, output)

        module.register_forward_hook(hook, with_kwargs=True)

    def begin(self) -> None:
        """Called before every forward pass."""

    def forward(self, tokens, mask, prompt_lengths):
        """tokens, mask int64 [B, T], padded on the right -> logits [B, T, V]."""
        self.prompt_mask = torch.arange(tokens.shape[1])[None] < torch.tensor(prompt_lengths)[:, None]
        self.begin()
        return self.run(tokens, mask)

    def run(self, tokens, mask):
        return self.backbone(tokens, attention_mask=mask).logits

    def losses(self) -> dict:
        """Auxiliary losses of the latest pass, weighted."""
        return {}

    def margin(self) -> float:
        """How far the latest pass was from computing something else (another choice of experts)."""
        return 1.0

    @torch.no_grad()
    def randomise(self, seed: int, std: float = 0.2) -> "OwnMethod":
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in sorted(self.tensors.items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if key.endswith("activation.numerator"):
                tensor.copy_(torch.tensor(NUMERATOR) + 0.02 * noise)
            elif key.endswith("activation.denominator"):
                tensor.copy_(torch.tensor(DENOMINATOR) + 0.02 * noise)
            else:
                tensor.copy_(std * noise)
        return self

    def save(self, path: Path) -> None:
        config = {"base_model_name_or_path": BACKBONE} | self.config
        (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({k: v.detach().contiguous() for k, v in self.tensors.items()}, path / "adapter_model.safetensors")

    @classmethod
    def load(cls, backbone, path: Path) -> "OwnMethod":
        config = json.loads((path / "adapter_config.json").read_text())
        return cls(backbone, config, load_file(path / "adapter_model.safetensors"))


def block_of(module: str) -> str:
    return "self_attn" if module in MODULES[:4] else "mlp"


def one(model: OwnMethod, tokens: list[int], prompt_length: int):
    return model.forward(torch.tensor([tokens]), torch.ones(1, len(tokens)).long(), [prompt_length])[0]


@torch.no_grad()
def expected_sequence(model: OwnMethod, rng: random.Random, prompt_length: int, response_length: int):
    """None where no clear case is found. A prompt of one token is always the same one."""
    bare = load_backbone(BACKBONE)
    for _ in range(30):
        tokens = random_tokens(rng, prompt_length + response_length)
        prompt = tokens[:prompt_length] if model.reads_prompts else tokens
        logits = one(model, tokens, prompt_length)
        if model.margin() < 1e-4 or (bare(torch.tensor([tokens])).logits[0] - logits).abs().max() < 0.1:
            continue
        margins = []

        def following(longer):
            last = one(model, longer, prompt_length)[-1]
            margins.append(model.margin())
            return last

        continuation = greedy(following, prompt)
        if continuation is None or min(margins) < 1e-4:
            continue
        ends = {"prompt": prompt, "response": tokens[prompt_length:]} if model.reads_prompts else {"tokens": tokens}
        return ends | {
            "logits": logits, "logProbs": next_token_log_probs(logits, tokens), "greedy": continuation,
        }  # fmt: skip


def training(model: OwnMethod, sequences: list[dict], path) -> dict | None:
    rows = [s["tokens"] if "tokens" in s else s["prompt"] + s["response"] for s in sequences]
    tokens, mask = pad_right(rows)
    labels = labels_of(tokens, mask, PROMPTS)
    logits = model.forward(tokens, mask, PROMPTS)
    if model.margin() < 1e-4:
        return None
    for b, s in enumerate(sequences):  # the batch computes what each sequence alone computes
        away = (logits[b, : mask[b].sum()] - s["logits"]).abs().max()
        assert away < 1e-2
        if away > 2e-5:
            return None
    ce, losses = cross_entropy(logits, labels), model.losses()
    loss = ce + sum(losses.values())
    values = torch.autograd.grad(loss, list(model.tensors.values()), materialize_grads=True)
    if rounding(model, tokens, labels) > 3e-5:
        return None
    save_file({k: v.contiguous() for k, v in zip(model.tensors, values)}, path / "gradients.safetensors")
    return {
        "tokens": tokens, "promptLengths": PROMPTS, "lengths": mask.sum(1), "labels": labels,
        "supervisedTokens": int((labels != -100).sum()), "crossEntropy": ce.item(),
        "auxiliary": {name: value.item() for name, value in losses.items()}, "loss": loss.item(),
    }  # fmt: skip


def gradients_of(model: OwnMethod, tensors: dict, dtype, tokens, labels) -> list:
    fresh = type(model)(load_backbone(BACKBONE).to(dtype), model.config, tensors)
    mask = torch.ones_like(tokens)  # padding stands at the end, where no real token sees it
    loss = cross_entropy(fresh.forward(tokens, mask, PROMPTS), labels) + sum(fresh.losses().values())
    return torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True)


def rounding(model: OwnMethod, tokens, labels) -> float:
    """How far gradients in float32 are from those in float64, relative to the largest number of each tensor (at least
    1), the worst of a few passes with every parameter moved by about its last bit: whether the case is well conditioned."""
    exact = {k: v.detach().double() for k, v in model.tensors.items()}
    references = gradients_of(model, exact, torch.float64, tokens, labels)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(4):
        moved = {k: (v * (1 + 1e-7 * torch.randn(v.shape, generator=generator))).float() for k, v in exact.items()}
        for v, r in zip(gradients_of(model, moved, torch.float32, tokens, labels), references):
            worst = max(worst, ((v - r).abs().max() / r.abs().max().clamp(min=1)).item())
    return worst


def write_cases(method: type[OwnMethod], folder: str, cases: dict[str, dict]) -> None:
    """test/fixtures/<folder>/<case>/: adapter directory, expected.json, gradients.safetensors."""
    for index, (name, options) in enumerate(cases.items()):
        path = fresh_directory(folder, name)
        for seed in range(1000 * index, 1000 * (index + 1)):  # the first adapter that gives clear cases
            model = method(load_backbone(BACKBONE), options).randomise(seed)
            rng = random.Random(seed)
            sequences = [expected_sequence(model, rng, p, r) for p, r in zip(PROMPTS, RESPONSES)]
            if None in sequences:
                continue
            trained = training(model, sequences, path)
            if trained is not None:
                break
        model.save(path)
        write_json(path / "expected.json", {"backbone": BACKBONE, "sequences": sequences, "training": trained})
        print(folder, name, seed, len(model.tensors), "tensors, loss", round(trained["loss"], 4))
