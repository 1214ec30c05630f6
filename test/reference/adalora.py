"""Writes test/fixtures/adalora/<case>/: AdaLoRA adapters as PEFT saves them, what they compute, and their gradients; and
test/fixtures/curve/adalora/: ten training steps with PEFT's rank allocator.

One step: forward and backward, clipping by the global norm, AdamW, schedule, `update_and_allocate(step)`, steps counted
from 0 as in PEFT's examples. The loss is PEFT's own: cross entropy and the orthogonality of A and B.
"""

import json
import random

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import get_linear_schedule_with_warmup

from common import MODULES, clean_peft_directory, fresh_directory, labels_of, load_backbone, pad_right, random_tokens, write_json
from peft_cases import BACKBONE, Scatter, expected_sequences, file_key, logits_with, padded_batch, scatter, training

CASES = {
    "all-modules": dict(init_r=4, target_r=2, lora_alpha=8, target_modules=MODULES),
    "pruned": dict(init_r=5, target_r=2, lora_alpha=6, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]),
    "emptied": dict(init_r=3, target_r=1, lora_alpha=3, target_modules=["k_proj", "gate_proj"]),  # modules of rank 0
}  # fmt: skip
SCATTER = Scatter("lora_", lambda name, _, noise: (0.7 if "lora_E" in name else 0.3) * noise)
STEPS = 10
TRAINING = dict(init_r=4, target_r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"],
                total_step=STEPS, tinit=1, tfinal=3, deltaT=2, beta1=0.85, beta2=0.8, orth_reg_weight=0.4)  # fmt: skip
OPTIMIZER = {"betas": [0.9, 0.999], "eps": 1e-8, "weightDecay": 0.01, "maxGradNorm": 1.0, "warmupSteps": 1}
LEARNING_RATE = 2e-2


def loss_of(model, tokens, mask, labels):
    """PEFT's loss; transformers shifts labels by itself. -> loss, cross entropy."""
    shifted = torch.full_like(labels, -100)
    shifted[:, 1:] = labels[:, :-1]
    loss = model(tokens, attention_mask=mask, labels=shifted).loss
    kept = model.peft_config["default"].orth_reg_weight
    model.peft_config["default"].orth_reg_weight = 0
    with torch.no_grad():
        plain = model(tokens, attention_mask=mask, labels=shifted).loss.item()
    model.peft_config["default"].orth_reg_weight = kept
    return loss, plain


def pattern(model, name: str, seed: int) -> dict | None:
    if name == "all-modules":
        return None
    generator = torch.Generator().manual_seed(seed)
    share = 0.5 if name == "pruned" else 0.2
    keys = [n for n, _ in model.base_model.model.named_parameters() if "lora_E" in n]
    while True:
        result = {k: (torch.rand(model.peft_config["default"].init_r, generator=generator) < share).tolist() for k in keys}
        sums = [sum(v) for v in result.values()]
        if (0 in sums) == (name == "emptied") and sum(sums) > 2:
            return result


def case(name: str, options: dict, seed: int) -> None:
    path = fresh_directory("adalora", name)
    config = AdaLoraConfig(task_type="CAUSAL_LM", total_step=100, **options)
    model = get_peft_model(load_backbone(BACKBONE), config).eval()
    scatter(model, seed, SCATTER)
    config = model.peft_config["default"]
    config.rank_pattern = pattern(model, name, seed)
    if config.rank_pattern:
        model.base_model.rankallocator.mask_using_rank_pattern(model.base_model.model, config.rank_pattern)
    masked = logits_with(model)([1, 5, 9, 11])
    model.save_pretrained(path)
    clean_peft_directory(path, BACKBONE)
    model = PeftModel.from_pretrained(load_backbone(BACKBONE), path, is_trainable=True).eval()
    assert torch.allclose(logits_with(model)([1, 5, 9, 11]), masked, atol=1e-5)
    saved = load_file(path / "adapter_model.safetensors")
    ours = {file_key(n): p for n, p in model.named_parameters() if "lora_" in n}
    assert saved.keys() == ours.keys() and all(torch.equal(saved[k], ours[k]) for k in saved)
    result = {"backbone": BACKBONE, "sequences": expected_sequences(logits_with(model), seed, logits_with(load_backbone(BACKBONE)))}
    if name != "emptied":
        batch = padded_batch(seed)
        loss, plain = loss_of(model, batch["tokens"], batch["mask"], batch["labels"])
        more = {"auxiliary": {"orthogonality": loss.item() - plain}}
        result["training"] = training(loss, batch, ours, path, **more)
    write_json(path / "expected.json", result)
    print("adalora", name, len(saved), "tensors", [sum(v) for v in (config.rank_pattern or {}).values()])


def steps() -> None:
    path = fresh_directory("curve", "adalora")
    config = AdaLoraConfig(task_type="CAUSAL_LM", **TRAINING)
    model = get_peft_model(load_backbone(BACKBONE), config).eval()
    scatter(model, 490, Scatter("lora_", lambda name, _, noise: (0.1 if "lora_E" in name else 0.3) * noise))
    parameters = {file_key(n): p for n, p in model.named_parameters() if p.requires_grad}
    (path / "initial").mkdir()
    written = {"peft_type": "ADALORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BACKBONE, **TRAINING,
               "inference_mode": False}  # fmt: skip
    (path / "initial" / "adapter_config.json").write_text(json.dumps(written, indent=2) + "\n")
    save_file({k: p.detach().clone() for k, p in parameters.items()}, path / "initial" / "adapter_model.safetensors")

    rng = random.Random(490)
    pool = [(random_tokens(rng, n), p) for n, p in zip([6, 8, 9, 7, 10, 5], [2, 3, 4, 3, 5, 1])]
    o = OPTIMIZER
    adam = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, betas=o["betas"], eps=o["eps"],
                             weight_decay=o["weightDecay"], foreach=False)  # fmt: skip
    schedule = get_linear_schedule_with_warmup(adam, o["warmupSteps"], STEPS)
    allocator = model.base_model.rankallocator
    seen = {}  # what the allocator has thought about last
    mask_to_budget = allocator.mask_to_budget

    def watched(inner, budget):
        ipt = lambda part, n: allocator._element_score(n % part)  # noqa: E731
        names = [n.replace("lora_A", "%s") for n, _ in inner.named_parameters() if "lora_A" in n]
        scores = [ipt("lora_E", n).view(-1) + ipt("lora_A", n).mean(1) + ipt("lora_B", n).mean(0) for n in names]
        ordered = torch.cat(scores).sort().values
        cut = allocator.init_bgt - budget
        seen["margin"] = (ordered[cut] / ordered[cut - 1]).item()
        seen.update(budget=budget, scores=[s.tolist() for s in scores])
        return mask_to_budget(inner, budget)

    allocator.mask_to_budget = watched
    states, entries = {}, []
    for step in range(STEPS):
        rows = rng.sample(pool, 4)
        tokens, mask = pad_right([t for t, _ in rows])
        prompts = [p for _, p in rows]
        loss, plain = loss_of(model, tokens, mask, labels_of(tokens, mask, prompts))
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), o["maxGradNorm"]).item()
        rate = schedule.get_last_lr()[0]
        adam.step()
        schedule.step()
        seen.clear()
        model.base_model.update_and_allocate(step)
        assert seen.get("margin", 2) > 1.001, "two scores are so close that rounding could swap them"
        by_key = lambda kind: {file_key("base_model.model." + n): t for n, t in getattr(allocator, kind).items()}  # noqa: E731
        for kind, tensors in {"": parameters, "exp_avg_ipt.": by_key("exp_avg_ipt"), "exp_avg_unc.": by_key("exp_avg_unc")}.items():
            states |= {f"{step}.{kind}{k}": t.detach().clone() for k, t in tensors.items()}
        ranks = {k: int((p != 0).sum()) for k, p in parameters.items() if k.endswith("lora_E")}
        entries.append({
            "loss": loss.item(), "crossEntropy": plain, "gradNorm": norm, "learningRate": rate, "ranks": ranks,
            "allocation": {k: seen[k] for k in ("budget", "scores")} if seen else None,
            "batch": {"tokens": tokens, "lengths": mask.sum(1), "promptLengths": prompts},
        })  # fmt: skip
        print("step", step, round(loss.item(), 4), round(plain, 4), round(norm, 3), seen.get("budget"), list(ranks.values()), seen.get("margin"))
    save_file(states, path / "states.safetensors")
    model.save_pretrained(path / "final")
    clean_peft_directory(path / "final", BACKBONE)
    write_json(path / "expected.json", {"backbone": BACKBONE, "optimizer": OPTIMIZER, "learningRate": LEARNING_RATE, "steps": entries})


def main() -> None:
    for seed, (name, options) in enumerate(CASES.items()):
        case(name, options, 480 + seed)
    steps()


if __name__ == "__main__":
    main()
