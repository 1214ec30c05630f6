"""Writes test/fixtures/backbones/<name>/: tiny random LLaMA checkpoints as Hugging Face saves them, and expected.json."""

import copy
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from common import BOS, EOS, PAD, VOCAB, edit_json, fresh_directory, greedy, load_backbone
from common import next_token_log_probs, pad_right, random_tokens, write_json

COMMON = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, rms_norm_eps=1e-5,
    bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, tie_word_embeddings=False,
)  # fmt: skip


def rope(theta: float) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


BACKBONES = {
    "llama-tied": dict(tie_word_embeddings=True, num_key_value_heads=4, rope_parameters=rope(10000.0)),
    "llama-untied": dict(num_key_value_heads=4, rope_parameters=rope(10000.0), rms_norm_eps=1e-6),  # sharded
    "llama-gqa": dict(num_hidden_layers=3, rope_parameters=rope(10000.0)),
    "llama-headdim": dict(head_dim=16, num_key_value_heads=1, rope_parameters=rope(10000.0)),  # bfloat16
    "llama-rope500k": dict(tie_word_embeddings=True, rope_parameters=rope(500000.0)),  # transformers 4 config
}


def randomise(model: LlamaForCausalLM, seed: int) -> None:
    """Larger weights than usual, so that logits differ by more than rounding and greedy choices are clear."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.25 * noise)


def as_transformers_4(config: dict) -> None:
    """The layout that most checkpoints on the hub still have: rope_theta, rope_scaling, torch_dtype."""
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"
    del config["head_dim"]  # older files leave it out: hidden_size / num_attention_heads


@torch.no_grad()
def expected(model: LlamaForCausalLM, seed: int) -> dict:
    rng = random.Random(seed)
    next_logits = lambda tokens: model(torch.tensor([tokens])).logits[0, -1]  # noqa: E731
    sequences = []
    for length in [1, 4, 7, 10, 40]:
        tokens = [BOS] if length == 1 else random_tokens(rng, length)
        continuation = greedy(next_logits, tokens)
        while continuation is None and length > 1:
            tokens = random_tokens(rng, length)
            continuation = greedy(next_logits, tokens)
        logits = model(torch.tensor([tokens])).logits[0]
        entry = {"tokens": tokens, "logProbs": next_token_log_probs(logits, tokens), "greedy": continuation}
        entry |= {"lastLogits": logits[-1]} if length > 10 else {"logits": logits}
        sequences.append(entry)

    members = [2, 1, 3]
    tokens, mask = pad_right([sequences[i]["tokens"] for i in members])
    logits = model(tokens, attention_mask=mask).logits
    for row, i in enumerate(members):  # causal attention: right padding changes nothing
        assert torch.allclose(logits[row, : mask[row].sum()], sequences[i]["logits"], atol=1e-4)
    batch = {"tokens": tokens, "lengths": mask.sum(1), "sequences": members}
    return {"vocabSize": VOCAB, "sequences": sequences, "batch": batch}


def main() -> None:
    for seed, (name, options) in enumerate(BACKBONES.items()):
        path = fresh_directory("backbones", name)
        model = LlamaForCausalLM(LlamaConfig(**(COMMON | options))).eval()
        randomise(model, seed)
        dtype = torch.bfloat16 if name == "llama-headdim" else torch.float32
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(dtype))
        # A copy is saved: .to(bfloat16) would round the RoPE frequencies, too.
        copy.deepcopy(model).to(dtype).save_pretrained(path, max_shard_size=40_000 if "untied" in name else "5GB")
        if name == "llama-rope500k":
            edit_json(path / "config.json", as_transformers_4)
        loaded = load_backbone(name)  # what is on disk must be the model made above, RoPE base included
        probe = torch.arange(3, 40)[None]
        assert torch.allclose(loaded(probe).logits, model(probe).logits, atol=1e-4)
        write_json(path / "expected.json", expected(loaded, seed))
        print(name, sorted(p.name for p in path.iterdir()))


if __name__ == "__main__":
    main()
