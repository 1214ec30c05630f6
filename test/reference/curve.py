"""Writes test/fixtures/curve/<case>/: 20 optimisation steps of LoRA and MiLoRA, loss by loss.

One step, in this order:
1. forward and backward of the training batch (all its micro-batches; the gradient is that of the mean over all supervised
   tokens of the batch), clipping by the global norm, AdamW step, schedule step;
2. bi-level only: forward and backward of the dev batch with the weights updated in 1, then clipping, AdamW and schedule step
   of Theta (the rational coefficients). Step 1 leaves Theta alone, step 2 everything else.
   The loss of 2 is the loss of 1 on other data: cross entropy plus load balancing.
Each group has its own AdamW, gradient norm and schedule; decay applies to every parameter, and parameters that got no
gradient count as having gradient zero (they decay, too). The first step has learning rate 0, as in transformers.
"""

import itertools
import math
import random

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import get_linear_schedule_with_warmup

from common import FIXTURES, clean_peft_directory, cross_entropy, fresh_directory, labels_of, load_backbone, pad_right
from common import random_tokens, write_json
from lora import adapter_key
from milora import MiLoRA
from milora_cases import make

BACKBONE, STEPS, SAMPLES = "llama-gqa", 20, 4
OPTIMIZER = {"betas": [0.9, 0.999], "eps": 1e-8, "weightDecay": 0.01, "maxGradNorm": 1.0, "warmupRatio": 0.06}
CASES = {  # microBatches: samples in each micro-batch of a step
    "lora": {"method": "lora", "microBatches": [4], "learningRate": 1e-3},
    "lora-accumulated": {"method": "lora", "microBatches": [3, 1], "learningRate": 1e-3},
    "milora": {"method": "milora", "microBatches": [4], "learningRate": 1e-3},
    "milora-bilevel": {"method": "milora", "microBatches": [4], "learningRate": 1e-3, "activationLearningRate": 1e-2},
    "milora-annealed": {
        "method": "milora", "config": {"anneal": 0.5, "router_input": "rms"}, "microBatches": [4], "learningRate": 1e-3,
    },
}


ROUTE_MARGIN = 2e-3  # of log-probabilities


class NearTie(Exception):
    """Two experts are so close in some step that rounding could swap them: another seed is needed."""


class LoRA:
    """PEFT's LoRA with the interface of `MiLoRA` that is needed here."""

    def __init__(self, path):
        self.model = PeftModel.from_pretrained(load_backbone(BACKBONE), path, is_trainable=True).eval()
        self.tensors = {adapter_key(n): p for n, p in self.model.named_parameters() if p.requires_grad}

    def forward(self, tokens, mask, prompt_lengths):
        return self.model(tokens, attention_mask=mask).logits


class Group:
    """Parameters with their own AdamW, clipping and schedule."""

    def __init__(self, parameters: list, learning_rate: float):
        self.parameters = parameters
        self.adam = torch.optim.AdamW(
            parameters, lr=learning_rate, betas=OPTIMIZER["betas"], eps=OPTIMIZER["eps"],
            weight_decay=OPTIMIZER["weightDecay"], foreach=False,
        )  # fmt: skip
        warmup = math.ceil(OPTIMIZER["warmupRatio"] * STEPS)
        self.schedule = get_linear_schedule_with_warmup(self.adam, warmup, STEPS)

    def accumulate(self, loss) -> None:
        gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def step(self) -> tuple[float, float]:
        """-> norm before clipping, learning rate used."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, OPTIMIZER["maxGradNorm"]).item()
        rate = self.schedule.get_last_lr()[0]
        self.adam.step()
        self.schedule.step()
        self.adam.zero_grad()
        return norm, rate


def draw_batch(rng: random.Random, pool: list, sizes: list[int]) -> list[dict]:
    """Micro-batches out of a small pool of samples (tokens, prompt length), so that there is something to learn."""
    chosen, batch = rng.sample(pool, sum(sizes)), []
    for size in sizes:
        rows, chosen = chosen[:size], chosen[size:]
        tokens, mask = pad_right([tokens for tokens, _ in rows])
        batch.append({"tokens": tokens, "lengths": mask.sum(1).tolist(), "promptLengths": [p for _, p in rows]})
    return batch


def loss_of(model, micro: dict, total: int, reverse: bool):
    """Loss of one micro-batch, its cross entropy being the sum over its tokens / total. -> loss, and its parts."""
    order = slice(None, None, -1) if reverse else slice(None)
    tokens = micro["tokens"].flip(0) if reverse else micro["tokens"]
    lengths, prompts = micro["lengths"][order], micro["promptLengths"][order]
    mask = (torch.arange(tokens.shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    logits = model.forward(tokens, mask, prompts)
    ce = cross_entropy(logits, labels_of(tokens, mask, prompts), reduction="sum") / total
    if isinstance(model, LoRA):
        return ce, {}
    k = model.config["top_k"]
    for p in model.probabilities.values():
        ordered = p.log().sort(-1, descending=True).values
        if (ordered[:, [0, k - 1]] - ordered[:, [1, k]]).min() < ROUTE_MARGIN:
            raise NearTie
    balance = model.load_balance_loss()
    parts = {"crossEntropy": ce.item(), "loadBalanceLoss": balance.item()}
    return ce + model.config["load_balance_coefficient"] * balance, parts


def run(model, case: dict, batches: list, dev: list, reverse: bool = False):
    """-> per-step numbers. `reverse`: rows of each micro-batch in reverse order."""
    bilevel = "activationLearningRate" in case
    is_theta = lambda key: bilevel and ".activation." in key  # noqa: E731
    omega = Group([p for k, p in model.tensors.items() if not is_theta(k)], case["learningRate"])
    if bilevel:
        theta = Group([p for k, p in model.tensors.items() if is_theta(k)], case["activationLearningRate"])
    steps = []
    for i, (batch, dev_batch) in enumerate(zip(batches, dev)):
        model.progress = i / STEPS
        count = lambda b: sum(n - p for m in b for n, p in zip(m["lengths"], m["promptLengths"]))  # noqa: E731
        entry = {"loss": 0.0}
        for micro in batch:
            loss, parts = loss_of(model, micro, count(batch), reverse)
            omega.accumulate(loss)
            entry["loss"] += loss.item()
            entry |= parts
        entry["gradNorm"], entry["learningRate"] = omega.step()
        if bilevel:
            loss, _ = loss_of(model, dev_batch, count([dev_batch]), reverse)
            theta.accumulate(loss)
            entry["devLoss"] = loss.item()
            entry["devGradNorm"], entry["activationLearningRate"] = theta.step()
        steps.append(entry)
    return steps


def initial_adapter(case: dict, path, seed: int) -> None:
    if case["method"] == "milora":
        make(case.get("config", {}), seed).save(path, BACKBONE)
        return
    model = PeftModel.from_pretrained(load_backbone(BACKBONE), FIXTURES / "lora" / "all-modules", is_trainable=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    clean_peft_directory(path, BACKBONE)


def load(case: dict, path):
    return LoRA(path) if case["method"] == "lora" else MiLoRA.load(load_backbone(BACKBONE), path)


def main() -> None:
    for index, (name, case) in enumerate(CASES.items()):
        path = fresh_directory("curve", name)
        (path / "initial").mkdir()
        for seed in itertools.count(1000 * index):  # until no step is near another route
            rng = random.Random(seed)
            samples = []
            for _ in range(16):
                prompt, response = rng.randint(2, 6), rng.randint(2, 6)
                samples.append((random_tokens(rng, prompt + response), prompt))
            batches = [draw_batch(rng, samples[:8], case["microBatches"]) for _ in range(STEPS)]
            dev = [draw_batch(rng, samples[8:], [SAMPLES])[0] for _ in range(STEPS)]
            initial_adapter(case, path / "initial", seed)
            model, other = load(case, path / "initial"), load(case, path / "initial")
            try:
                steps = run(model, case, batches, dev)
                # How much of all this is rounding: the same with the rows of every batch in reverse order.
                other_steps = run(other, case, batches, dev, reverse=True)
                break
            except NearTie:
                continue
        rounding = {
            "loss": max(abs(a["loss"] - b["loss"]) for a, b in zip(steps, other_steps)),
            "parameters": max((model.tensors[k] - other.tensors[k]).abs().max().item() for k in model.tensors),
        }
        assert rounding["loss"] < 2e-5 and rounding["parameters"] < 1e-5, rounding
        for i, step in enumerate(steps):
            step["microBatches"] = batches[i]
            if "devLoss" in step:
                step["devBatch"] = dev[i]
        save_file({k: v.detach().contiguous() for k, v in model.tensors.items()}, path / "final.safetensors")
        write_json(path / "expected.json", {
            "backbone": BACKBONE, "numSteps": STEPS, "optimizer": OPTIMIZER | {"warmupSteps": 2}, **case,
            "steps": steps, "rounding": rounding,
        })  # fmt: skip
        print(name, seed, rounding)
        print("  loss", [round(s["loss"], 3) for s in steps], "\n  norm", [round(s["gradNorm"], 2) for s in steps])
        if "devLoss" in steps[0]:
            print("  dev", [round(s["devLoss"], 3) for s in steps], [round(s["devGradNorm"], 2) for s in steps])


if __name__ == "__main__":
    main()
