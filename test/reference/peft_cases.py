"""What the scripts for methods of PEFT share: an adapter with random numbers, saved and read back by PEFT, and what it gives."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from common import clean_peft_directory, cross_entropy, fresh_directory, greedy, labels_of, load_backbone
from common import next_token_log_probs, pad_right, random_tokens, write_json

BACKBONE = "llama-gqa"


@dataclass
class Scatter:
    """Which parameters get random numbers: those with `mark` in their name get `value(name, old, noise)`."""

    mark: str
    value: Callable


def file_key(name: str) -> str:
    """Parameter name inside PEFT -> key in adapter_model.safetensors."""
    return name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")


def scatter(model: PeftModel, seed: int, how: Scatter) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if how.mark in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(how.value(name, parameter, noise))


@torch.no_grad()
def expected_sequences(logits_of: Callable, seed: int, bare: Callable, lengths=(3, 8)) -> list[dict]:
    """logits_of(tokens) -> [T, V]; `bare` the same without the adapter, which must give something else."""
    rng = random.Random(seed)
    sequences = []
    for length in lengths:
        continuation = None
        while continuation is None:
            tokens = random_tokens(rng, length)
            continuation = greedy(lambda longer: logits_of(longer)[-1], tokens)
        logits = logits_of(tokens)
        assert (bare(tokens) - logits).abs().max() > 0.1, "the adapter must matter"
        log_probs = next_token_log_probs(logits, tokens)
        sequences.append({"tokens": tokens, "logits": logits, "logProbs": log_probs, "greedy": continuation})
    return sequences


def padded_batch(seed: int) -> dict:
    rng = random.Random(seed)
    prompt_lengths, lengths = [3, 6, 1], [8, 9, 5]
    tokens, mask = pad_right([random_tokens(rng, length) for length in lengths])
    labels = labels_of(tokens, mask, prompt_lengths)
    return {"tokens": tokens, "mask": mask, "promptLengths": prompt_lengths, "lengths": lengths, "labels": labels}


def training(loss, batch: dict, parameters: dict, path: Path, **more) -> dict:
    """Writes the gradients of `loss` for `parameters` (by file key); gives the entry `training` of expected.json."""
    values = torch.autograd.grad(loss, list(parameters.values()))
    save_file({k: v.contiguous() for k, v in zip(parameters, values)}, path / "gradients.safetensors")
    kept = {k: v for k, v in batch.items() if k != "mask"}
    return kept | {"supervisedTokens": int((batch["labels"] != -100).sum()), "loss": loss.item(), **more}


def logits_with(model) -> Callable:
    return lambda tokens: model(torch.tensor([tokens])).logits[0]


def write_case(method: str, name: str, config: PeftConfig, seed: int, how: Scatter, with_loss=None) -> None:
    """`with_loss(model, batch)` -> (loss, more entries) where it is not the cross entropy alone."""
    path = fresh_directory(method, name)
    model = get_peft_model(load_backbone(BACKBONE), config).eval()
    scatter(model, seed, how)
    model.save_pretrained(path)
    clean_peft_directory(path, BACKBONE)

    # Everything expected comes from the adapter as read back by PEFT.
    model = PeftModel.from_pretrained(load_backbone(BACKBONE), path, is_trainable=True).eval()
    saved = load_file(path / "adapter_model.safetensors")
    ours = {file_key(n): p for n, p in model.named_parameters() if how.mark in n and file_key(n) in saved}
    assert saved.keys() == ours.keys() and all(torch.equal(saved[k], ours[k]) for k in saved)
    sequences = expected_sequences(logits_with(model), seed, logits_with(load_backbone(BACKBONE)))
    batch = padded_batch(seed)
    if with_loss:
        loss, more = with_loss(model, batch)
    else:
        loss, more = cross_entropy(model(batch["tokens"], attention_mask=batch["mask"]).logits, batch["labels"]), {}
    result = {"backbone": BACKBONE, "sequences": sequences, "training": training(loss, batch, ours, path, **more)}
    write_json(path / "expected.json", result)
    print(method, name, len(saved), "tensors")
