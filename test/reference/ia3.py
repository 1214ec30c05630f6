"""Writes test/fixtures/ia3/<case>/: (IA)3 adapters as PEFT saves them, what they compute, and their gradients; and the
form `projected`, in which the paper trains them: every scale l is 1 + v P^T, with a vector v and a matrix P."""

import json

import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import save_file

from common import cross_entropy, fresh_directory, load_backbone, write_json
from peft_cases import BACKBONE, Scatter, expected_sequences, file_key, logits_with, padded_batch, training, write_case

CASES = {
    "outputs": dict(target_modules=["q_proj", "k_proj", "up_proj"], feedforward_modules=[]),
    "inputs": dict(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "endings": dict(target_modules=["q_proj", "o_proj", "mlp.gate_proj"], feedforward_modules=["o_proj", "mlp.gate_proj"]),
    "regex": dict(target_modules=r".*\.[01]\.(self_attn\.(q|k)|mlp\.(up|down))_proj", feedforward_modules=r".*mlp\.down_proj"),
}  # fmt: skip
DIM = 6


def projected() -> None:
    path = fresh_directory("ia3", "projected")
    options = dict(target_modules=["q_proj", "k_proj", "up_proj"], feedforward_modules=["up_proj"])
    model = get_peft_model(load_backbone(BACKBONE), IA3Config(task_type="CAUSAL_LM", **options)).eval()
    generator = torch.Generator().manual_seed(450)
    tensors, scales = {}, {}
    for name, scale in sorted(model.named_parameters()):
        if "ia3_l" not in name:
            continue
        v = torch.randn(1, DIM, generator=generator).requires_grad_()
        p = (0.2 * torch.randn(scale.numel(), DIM, generator=generator)).requires_grad_()
        tensors |= {file_key(name) + "_vector": v, file_key(name) + "_projection": p}
        made = (1 + v @ p.T).reshape(scale.shape)
        scale.data.copy_(made)
        scales[scale] = made
    config = {"peft_type": "IA3", "task_type": "CAUSAL_LM", "base_model_name_or_path": BACKBONE, **options,
              "inference_mode": False, "projection_dim": DIM}  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: t.detach() for k, t in tensors.items()}, path / "adapter_model.safetensors")
    bare = load_backbone(BACKBONE)
    sequences = expected_sequences(logits_with(model), 450, logits_with(bare))
    batch = padded_batch(450)
    loss = cross_entropy(model(batch["tokens"], attention_mask=batch["mask"]).logits, batch["labels"])
    outer = torch.autograd.grad(loss, list(scales))
    # Chain rule: a function of v and P with the same gradient as the loss, and its value.
    through = sum((made * g).sum() for made, g in zip(scales.values(), outer))
    entry = training(through - through.detach() + loss.detach(), batch, tensors, path)
    write_json(path / "expected.json", {"backbone": BACKBONE, "sequences": sequences, "training": entry})
    print("ia3 projected", len(tensors), "tensors")


def main() -> None:
    for seed, (name, options) in enumerate(CASES.items()):
        config = IA3Config(task_type="CAUSAL_LM", **options)
        write_case("ia3", name, config, 440 + seed, Scatter("ia3_l", lambda _, __, noise: 1 + 0.5 * noise))
    projected()


if __name__ == "__main__":
    main()
