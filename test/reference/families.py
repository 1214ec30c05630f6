"""Writes test/fixtures/families/<case>/: tiny random checkpoints of every family and every kind of RoPE scaling as
transformers saves them (bfloat16), with expected.json; for each family also a LoRA that PEFT has trained for a few steps
(lora/) and a MiLoRA (milora/), with what they compute and the gradients of their losses."""

import copy
import random
import sys
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from common import BOS, EOS, FIXTURES, MODULES, PAD, VOCAB, clean_peft_directory, cross_entropy, edit_json, fresh_directory
from common import greedy, labels_of, next_token_log_probs, pad_right, random_tokens, write_json
from milora import MiLoRA

FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
COMMON = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5,
    bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, tie_word_embeddings=False,
)  # fmt: skip
# Small numbers of positions and windows, so that short sequences go beyond them.
LONG = [1.0, 1.3, 2.0, 4.0], [1.5, 2.5, 6.0, 9.0]

CASES = {
    "llama3": ("Llama", dict(head_dim=16, tie_word_embeddings=True, rope_parameters=dict(
        rope_type="llama3", rope_theta=5e5, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32))),
    "llama-linear": ("Llama", dict(max_position_embeddings=64,
        rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0))),
    "llama-dynamic": ("Llama", dict(head_dim=16, max_position_embeddings=32,
        rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=4.0))),
    "llama-biases": ("Llama", dict(attention_bias=True, mlp_bias=True, rope_parameters=dict(rope_type="default", rope_theta=1e4))),
    "mistral": ("Mistral", dict(head_dim=16, sliding_window=8, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "gemma": ("Gemma", dict(head_dim=16, num_key_value_heads=1, tie_word_embeddings=True)),
    "gemma2": ("Gemma2", dict(num_hidden_layers=3, intermediate_size=24, num_key_value_heads=1, head_dim=16, sliding_window=8, query_pre_attn_scalar=24,
        attn_logit_softcapping=3.0, final_logit_softcapping=5.0, tie_word_embeddings=True)),
    "gemma2-local": ("Gemma2", dict(head_dim=24, sliding_window=5, query_pre_attn_scalar=24, tie_word_embeddings=True,
        attn_logit_softcapping=2.0, final_logit_softcapping=None, layer_types=["full_attention", "sliding_attention"])),
    "gemma3": ("Gemma3", dict(num_hidden_layers=6, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8,
        query_pre_attn_scalar=20, tie_word_embeddings=True, rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1e6, factor=4.0),
            sliding_attention=dict(rope_type="default", rope_theta=1e4)))),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=1,
        rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen2-yarn": ("Qwen2", dict(tie_word_embeddings=True, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32))),
    "qwen3": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "phi3": ("Phi3", dict(num_attention_heads=2, num_key_value_heads=1, sliding_window=12)),
    "phi3-long": ("Phi3", dict(num_attention_heads=2, num_key_value_heads=1, original_max_position_embeddings=32,
        rope_parameters=dict(rope_type="longrope", rope_theta=1e4, partial_rotary_factor=0.5,
            short_factor=LONG[0], long_factor=LONG[1]))),
    # Heads that the runtime's attention does not take: 4 features, as in many test models, and 10 with a window.
    "llama-narrow": ("Llama", dict(hidden_size=16, num_key_value_heads=4)),
    "mistral-narrow": ("Mistral", dict(head_dim=10, sliding_window=8)),
}  # fmt: skip
# Lengths of the sequences: short ones, and one beyond every window and original length. Those of phi3-long and the 12
# tokens after them are all on one side of 32.
LENGTHS = [3, 6, 11, 50]
PREFIXED = ["mistral", "gemma3", "mistral-narrow"]  # windows on all layers, and on some
ADAPTED = ["mistral", "gemma", "gemma2", "gemma3", "qwen2", "qwen3", "phi3", "llama-biases"]


def load(name: str):
    path = FIXTURES / "families" / name
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def make(family: str, options: dict, seed: int):
    if family == "Gemma3":
        config, model_class = transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM
    else:
        config, model_class = getattr(transformers, f"{family}Config"), getattr(transformers, f"{family}ForCausalLM")
    model = model_class(config(**(COMMON | options))).eval()
    model.set_attn_implementation("eager")  # the others know no soft cap
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                value = (0 if "Gemma" in family else 1) + 0.2 * noise
            else:
                value = (0.5 if name.endswith("bias") else 0.25) * noise
            parameter.copy_(value.bfloat16())
    return model


def with_cache(model, tokens: list[int], steps: int = 12):
    """Greedy as `generate` does it, with a KV cache: with dynamic scaling other numbers than without. Else as `greedy`."""
    out = list(tokens)
    cache, new = None, torch.tensor([tokens])
    for _ in range(steps):
        result = model(new, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        best = torch.topk(result.logits[0, -1], 2)
        if best.values[0] - best.values[1] <= 1e-3 or best.indices[0] == EOS:
            return None
        out.append(int(best.indices[0]))
        new = torch.tensor([[out[-1]]])
    return out[len(tokens) :]


@torch.no_grad()
def sequences_of(make_logits, seed: int, lengths, continuation) -> list[dict]:
    """make_logits(tokens) -> [T, V]; continuation(tokens) -> greedy tokens or None."""
    rng = random.Random(seed)
    sequences = []
    for length in lengths:
        following = None
        for _ in range(50):
            tokens = random_tokens(rng, length)
            following = continuation(tokens)
            if following is not None:
                break
        assert following is not None, "no clear continuation: another seed is needed"
        logits = make_logits(tokens)
        entry = {"tokens": tokens, "logProbs": next_token_log_probs(logits, tokens), "greedy": following}
        entry |= {"lastLogits": logits[-1]} if length > 11 else {"logits": logits}
        sequences.append(entry)
    return sequences


@torch.no_grad()
def expected(model, name: str, seed: int) -> dict:
    logits_of = lambda tokens: model(torch.tensor([tokens])).logits[0]  # noqa: E731
    if name == "llama-dynamic":
        # transformers keeps the frequencies of the longest sequence it has seen: each pass wants a fresh model
        logits_of = lambda tokens: load(name)(torch.tensor([tokens])).logits[0]  # noqa: E731
        continuation = lambda tokens: with_cache(load(name), tokens)  # noqa: E731
    else:
        continuation = lambda tokens: greedy(lambda longer: logits_of(longer)[-1], tokens, variety=2)  # noqa: E731
    return {"vocabSize": VOCAB, "sequences": sequences_of(logits_of, seed, LENGTHS, continuation)}


def training_batch(seed: int):
    rng = random.Random(seed)
    prompt_lengths, lengths = [3, 6, 1], [14, 9, 5]
    tokens, mask = pad_right([random_tokens(rng, length) for length in lengths])
    return tokens, mask, prompt_lengths, lengths, labels_of(tokens, mask, prompt_lengths)


def training_entry(loss, labels, tokens, prompt_lengths, lengths, **more) -> dict:
    return {"tokens": tokens, "promptLengths": prompt_lengths, "lengths": lengths, "labels": labels,
            "supervisedTokens": int((labels != -100).sum()), "loss": loss.item(), **more}  # fmt: skip


def lora(name: str, modules: list[str], seed: int, path: Path) -> None:
    model = get_peft_model(load(name), LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=modules))
    torch.manual_seed(seed)
    for n, p in model.named_parameters():
        if "lora_A" in n:
            torch.nn.init.kaiming_uniform_(p, a=5**0.5)
    tokens, mask, prompt_lengths, lengths, labels = training_batch(seed + 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(8):
        loss = cross_entropy(model(tokens, attention_mask=mask).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    clean_peft_directory(path, name)

    model = PeftModel.from_pretrained(load(name), path, is_trainable=True).eval()
    parameters = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    saved = load_file(path / "adapter_model.safetensors")
    assert saved.keys() == parameters.keys() and all(torch.equal(saved[k], parameters[k]) for k in saved)
    logits_of = lambda sequence: model(torch.tensor([sequence])).logits[0]  # noqa: E731
    continuation = lambda sequence: greedy(lambda longer: logits_of(longer)[-1], sequence, variety=2)  # noqa: E731
    sequences = sequences_of(logits_of, seed, [4, 20], continuation)
    loss = cross_entropy(model(tokens, attention_mask=mask).logits, labels)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    save_file({k: g.contiguous() for k, g in zip(parameters, gradients)}, path / "gradients.safetensors")
    training = training_entry(loss, labels, tokens, prompt_lengths, lengths)
    write_json(path / "expected.json", {"backbone": name, "sequences": sequences, "training": training})


def prefix(name: str, seed: int, path: Path) -> None:
    """A prefix before sequences longer than the window: it takes places in the window, and falls out of it."""
    torch.manual_seed(seed)
    model = get_peft_model(load(name), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    model.save_pretrained(path)
    clean_peft_directory(path, name)
    read = PeftModel.from_pretrained(load(name), path).eval()
    logits_of = lambda sequence: read(torch.tensor([sequence])).logits[0]  # noqa: E731
    continuation = lambda sequence: greedy(lambda longer: logits_of(longer)[-1], sequence, variety=2)  # noqa: E731
    write_json(path / "expected.json", {"backbone": name, "sequences": sequences_of(logits_of, seed, [4, 20], continuation)})


class FamilyMiLoRA(MiLoRA):
    """Where the modules of a family are, fused ones included."""

    def site(self, l: int, e: int) -> str:
        part = "self_attn" if self.experts[e] in [*MODULES[:4], *FUSED[:2]] else "mlp"
        return f"base_model.model.model.layers.{l}.{part}.{self.experts[e]}"


def clear(model: MiLoRA) -> bool:
    """Whether no route of the latest pass was near another one, nor a rational function near its kink."""
    k = model.config["top_k"]
    for l, p in model.probabilities.items():
        ordered = p.sort(-1, descending=True).values
        for cut in {1, k}:
            if (ordered[:, cut - 1] - ordered[:, cut]).min() < 1e-3:
                return False
        b = model.tensors[f"{model.router(l)}.activation.denominator"]
        q = sum(b[i] * model.pooled[l] ** (i + 1) for i in range(5))
        if q.abs().min() < 2e-5:
            return False
    return True


def milora(name: str, modules: list[str], seed: int, path: Path) -> None:
    """Experts are the family's modules. Routed on the RMS-normalised prompt: residual streams differ in scale."""
    options = dict(r=1, lora_alpha=2, target_modules=modules, router_input="rms", top_k=2)
    model = FamilyMiLoRA(load(name), options).randomise(seed, 0.15)
    with torch.no_grad():
        for key, tensor in model.tensors.items():
            if key.endswith("gate.weight"):
                tensor *= 1.5
    rng = random.Random(seed)
    sequences = []
    with torch.no_grad():
        for prompt_length, response_length in [(5, 9), (2, 4), (12, 3)]:
            for _ in range(1000):
                tokens = random_tokens(rng, prompt_length + response_length)
                prompt = tokens[:prompt_length]
                run = lambda t: model.forward(torch.tensor([t]), torch.ones(1, len(t), dtype=torch.long), [prompt_length])[0]  # noqa: E731, B023
                logits = run(tokens)
                if not clear(model):
                    continue
                following = greedy(lambda t: run(t)[-1], prompt, variety=2)  # noqa: B023
                if following is not None:
                    run(tokens)
                    break
            else:
                raise AssertionError("no prompt has a clear route: another seed is needed")
            sequences.append({
                "prompt": prompt, "response": tokens[prompt_length:], "greedy": following,
                "logProbs": next_token_log_probs(logits, tokens),
                "routes": [model.routes[l][0] for l in sorted(model.routes)],
                "probabilities": [model.probabilities[l][0] for l in sorted(model.probabilities)],
            })  # fmt: skip
    prompt_lengths = [len(s["prompt"]) for s in sequences]
    rows = [s["prompt"] + s["response"] for s in sequences]
    tokens, mask = pad_right(rows)
    labels = labels_of(tokens, mask, prompt_lengths)
    logits = model.forward(tokens, mask, prompt_lengths)
    assert clear(model)
    balance = model.load_balance_loss()
    loss = cross_entropy(logits, labels) + 0.01 * balance
    gradients = torch.autograd.grad(loss, list(model.tensors.values()), allow_unused=True)
    gradients = {k: torch.zeros_like(t) if g is None else g for (k, t), g in zip(model.tensors.items(), gradients)}
    model.save(path, name)
    save_file({k: g.contiguous() for k, g in gradients.items()}, path / "gradients.safetensors")
    lengths = [len(row) for row in rows]
    training = training_entry(loss, labels, tokens, prompt_lengths, lengths, loadBalanceLoss=balance.item())
    write_json(path / "expected.json", {"backbone": name, "sequences": sequences, "training": training})


def rope_frequencies() -> None:
    """rope.json: frequencies of scaled kinds at the sizes of published models, and what cosines are multiplied with."""
    spread = [round(1 + i * 1.3, 2) for i in range(48)]
    cases = {
        "default": (64, 131072, dict(rope_type="default", rope_theta=500000.0)),
        "linear": (128, 16384, dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
        "llama3": (64, 131072, dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0,
            high_freq_factor=4.0, original_max_position_embeddings=8192)),
        "llama3-8b": (128, 131072, dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
            high_freq_factor=4.0, original_max_position_embeddings=8192)),
        "yarn": (128, 131072, dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768)),
        "yarn-options": (64, 65536, dict(rope_type="yarn", rope_theta=1e4, factor=16.0, original_max_position_embeddings=4096,
            beta_fast=24.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.8, truncate=False)),
        "longrope": (96, 131072, dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0 + 0.01 * i for i in range(48)],
            long_factor=spread, original_max_position_embeddings=4096)),
    }  # fmt: skip
    entries = []
    for name, (dim, positions, parameters) in cases.items():
        config = transformers.LlamaConfig(
            hidden_size=4 * dim, num_attention_heads=4, max_position_embeddings=positions, rope_parameters=dict(parameters)
        )
        if name == "default":
            compute = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters
        else:
            compute = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
        short, attention = compute(config)
        long = compute(config, seq_len=positions)[0] if name == "longrope" else None
        entries.append({"name": name, "headDim": dim, "maxPositions": positions, "parameters": parameters,
            "frequencies": [short] if long is None else [short, long], "attention": attention})  # fmt: skip
    write_json(FIXTURES / "rope.json", {"cases": entries})


def main() -> None:
    only = sys.argv[1:]
    rope_frequencies()
    for seed, (name, (family, options)) in enumerate(CASES.items()):
        if only and name not in only:
            continue
        path = fresh_directory("families", name)
        model = make(family, options, seed)
        # A copy is saved: .to(bfloat16) would round the RoPE frequencies, too.
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(path)
        (path / "generation_config.json").unlink(missing_ok=True)
        if name == "gemma":  # as early checkpoints have it, which mean the tanh formula
            edit_json(path / "config.json", lambda c: c.update(hidden_act="gelu"))
        loaded = load(name)
        assert type(loaded) is type(model) and AutoConfig.from_pretrained(path).model_type == model.config.model_type
        probe = torch.arange(3, 60)[None]
        assert torch.allclose(loaded(probe).logits, model(probe).logits, atol=1e-4)
        write_json(path / "expected.json", expected(loaded, name, seed))
        modules = FUSED if family == "Phi3" else MODULES
        if name in ADAPTED:
            lora(name, modules, 100 + seed, fresh_directory("families", name, "lora"))
            milora(name, modules, 200 + seed, fresh_directory("families", name, "milora"))
        if name in PREFIXED:
            prefix(name, 300 + seed, fresh_directory("families", name, "prefix"))
        print(name, sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) // 1000, "kB")


if __name__ == "__main__":
    main()
