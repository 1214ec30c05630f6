"""Writes test/fixtures/lora/<case>/: LoRA adapters as PEFT saves them, what they compute, and (all-modules) gradients."""

import random

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from common import MODULES, clean_peft_directory, cross_entropy, edit_json, fresh_directory, greedy, labels_of
from common import load_backbone, next_token_log_probs, pad_right, random_tokens, write_json

BACKBONE = "llama-gqa"
CASES = {
    "all-modules": dict(r=4, lora_alpha=8, target_modules=MODULES),
    "qv-suffixes": dict(r=4, lora_alpha=4, target_modules=["self_attn.q_proj", "v_proj"]),
    "rslora": dict(r=4, lora_alpha=8, target_modules=MODULES, use_rslora=True),
    "patterns": dict(
        r=4, lora_alpha=8, target_modules=MODULES,
        rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6}, alpha_pattern={"v_proj": 16, "layers.2.self_attn.o_proj": 2},
    ),
    "layers": dict(r=4, lora_alpha=8, target_modules=["q_proj", "gate_proj"], layers_to_transform=[0, 2]),
    "all-linear": dict(r=3, lora_alpha=3, target_modules="all-linear"),
    "regex": dict(r=2, lora_alpha=4, target_modules=r".*\.[01]\.(self_attn\.(q|k)|mlp\.up)_proj"),
}  # fmt: skip


def randomise(model: PeftModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def adapter_key(name: str) -> str:
    """Parameter name inside PEFT -> key in adapter_model.safetensors."""
    return name.replace(".default", "")


@torch.no_grad()
def expected(model: PeftModel, base, seed: int) -> dict:
    rng = random.Random(seed)
    next_logits = lambda tokens: model(torch.tensor([tokens])).logits[0, -1]  # noqa: E731
    sequences = []
    for length in [3, 8]:
        continuation = None
        while continuation is None:
            tokens = random_tokens(rng, length)
            continuation = greedy(next_logits, tokens)
        logits = model(torch.tensor([tokens])).logits[0]
        with model.disable_adapter():
            assert (model(torch.tensor([tokens])).logits[0] - logits).abs().max() > 0.1, "the adapter must matter"
        log_probs = next_token_log_probs(logits, tokens)
        sequences.append({"tokens": tokens, "logits": logits, "logProbs": log_probs, "greedy": continuation})
    return {"backbone": BACKBONE, "sequences": sequences}


def gradients(model: PeftModel, path, seed: int) -> dict:
    """Mean cross entropy over the response tokens of a right-padded batch, and its gradient for every A and B."""
    rng = random.Random(seed)
    prompt_lengths, lengths = [3, 6, 1], [8, 9, 5]
    tokens, mask = pad_right([random_tokens(rng, length) for length in lengths])
    labels = labels_of(tokens, mask, prompt_lengths)
    loss = cross_entropy(model(tokens, attention_mask=mask).logits, labels)
    parameters = {adapter_key(n): p for n, p in model.named_parameters() if "lora_" in n}
    values = torch.autograd.grad(loss, list(parameters.values()))
    save_file({k: v.contiguous() for k, v in zip(parameters, values)}, path / "gradients.safetensors")
    return {"training": {
        "tokens": tokens, "promptLengths": prompt_lengths, "lengths": lengths, "labels": labels,
        "supervisedTokens": int((labels != -100).sum()), "loss": loss.item(),
    }}  # fmt: skip


def main() -> None:
    for seed, (name, options) in enumerate(CASES.items()):
        path = fresh_directory("lora", name)
        base = load_backbone(BACKBONE)
        config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **options)
        model = get_peft_model(base, config).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        randomise(model, 100 + seed)
        model.save_pretrained(path)
        clean_peft_directory(path, BACKBONE)
        if name == "all-linear":  # PEFT expands the word when it saves; adapters written by hand or older tools keep it
            edit_json(path / "adapter_config.json", lambda c: c.update(target_modules="all-linear"))

        # Everything expected comes from the adapter as read back by PEFT.
        model = PeftModel.from_pretrained(load_backbone(BACKBONE), path, is_trainable=True).eval()
        saved = load_file(path / "adapter_model.safetensors")
        ours = {adapter_key(n): p for n, p in model.named_parameters() if "lora_" in n}
        assert saved.keys() == ours.keys() and all(torch.equal(saved[k], ours[k]) for k in saved)
        result = expected(model, base, 100 + seed)
        if name == "all-modules":
            result |= gradients(model, path, 100 + seed)
        write_json(path / "expected.json", result)
        print(name, len(saved), "tensors")


if __name__ == "__main__":
    main()
