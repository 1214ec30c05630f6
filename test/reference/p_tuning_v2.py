"""Writes test/fixtures/p-tuning-v2/<case>/: prefixes as PEFT saves them, what they compute, and their gradients; and the
form `projected`, in which the paper trains them: keys E_K W^T and values E_V W^T with one matrix W a layer."""

import json

import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from common import clean_peft_directory, cross_entropy, fresh_directory, load_backbone, write_json
from peft_cases import expected_sequences, logits_with, padded_batch, training

CASES = {
    "plain": ("llama-gqa", dict(num_virtual_tokens=5)),
    "one-token": ("llama-tied", dict(num_virtual_tokens=1)),
    "head-dim": ("llama-headdim", dict(num_virtual_tokens=4)),
    "mlp": ("llama-gqa", dict(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7)),
}  # fmt: skip
HIDDEN, TOKENS = 6, 4


def loss_of(model, batch: dict):
    # PEFT sets the cache by itself; right padding is masked, though no real token could see it.
    return cross_entropy(model(batch["tokens"], attention_mask=batch["mask"]).logits, batch["labels"])


def with_embeddings(model, embeddings):
    """PEFT's forward pass with a given prefix [tokens, layers * 2 * width], through which gradients flow."""
    model.prompt_encoder["default"].forward = lambda prefix: embeddings.expand(prefix.shape[0], -1, -1)
    model.active_peft_config.inference_mode = False
    return model


def peft_case(name: str, backbone: str, options: dict, seed: int) -> None:
    path = fresh_directory("p-tuning-v2", name)
    torch.manual_seed(seed)  # starting values
    model = get_peft_model(load_backbone(backbone), PrefixTuningConfig(task_type="CAUSAL_LM", **options)).eval()
    trained = logits_with(model)([1, 5, 9])
    model.save_pretrained(path)
    clean_peft_directory(path, backbone)
    saved = load_file(path / "adapter_model.safetensors")
    assert list(saved) == ["prompt_embeddings"]
    read = PeftModel.from_pretrained(load_backbone(backbone), path).eval()
    assert torch.allclose(logits_with(read)([1, 5, 9]), trained, atol=1e-5)
    sequences = expected_sequences(logits_with(read), seed, logits_with(load_backbone(backbone)))
    embeddings = saved["prompt_embeddings"].requires_grad_()
    batch = padded_batch(seed)
    loss = loss_of(with_embeddings(read, embeddings), batch)
    entry = training(loss, batch, {"prompt_embeddings": embeddings}, path)
    write_json(path / "expected.json", {"backbone": backbone, "sequences": sequences, "training": entry})
    print("p-tuning-v2", name, tuple(embeddings.shape))


def projected(seed: int) -> None:
    backbone = "llama-gqa"
    path = fresh_directory("p-tuning-v2", "projected")
    options = dict(num_virtual_tokens=TOKENS, encoder_hidden_size=HIDDEN, prefix_projection=True)
    model = get_peft_model(load_backbone(backbone), PrefixTuningConfig(task_type="CAUSAL_LM", **options)).eval()
    settings = model.active_peft_config
    generator = torch.Generator().manual_seed(seed)
    tensors, rows = {}, []
    for l in range(settings.num_layers):
        at = f"prompt_encoder.layers.{l}"
        for part, shape in dict(key=(TOKENS, HIDDEN), value=(TOKENS, HIDDEN), projection=(settings.token_dim, HIDDEN)).items():
            tensors[f"{at}.{part}.weight"] = (0.6 * torch.randn(shape, generator=generator)).requires_grad_()
        rows += [tensors[f"{at}.{part}.weight"] @ tensors[f"{at}.projection.weight"].T for part in ("key", "value")]
    model = with_embeddings(model, torch.cat(rows, dim=1))
    config = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": backbone, **options,
              "token_dim": settings.token_dim, "num_attention_heads": settings.num_attention_heads,
              "num_layers": settings.num_layers, "num_transformer_submodules": 1, "inference_mode": False}  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: t.detach() for k, t in tensors.items()}, path / "adapter_model.safetensors")
    sequences = expected_sequences(logits_with(model), seed, logits_with(load_backbone(backbone)))
    batch = padded_batch(seed)
    entry = training(loss_of(model, batch), batch, tensors, path)
    write_json(path / "expected.json", {"backbone": backbone, "sequences": sequences, "training": entry})
    print("p-tuning-v2 projected", len(tensors), "tensors")


def main() -> None:
    for seed, (name, (backbone, options)) in enumerate(CASES.items()):
        peft_case(name, backbone, options, 460 + seed)
    projected(470)


if __name__ == "__main__":
    main()
