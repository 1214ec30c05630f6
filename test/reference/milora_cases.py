"""Writes test/fixtures/milora/<case>/: MiLoRA and MiDoRA adapters, what they compute and the gradients of their loss."""

import random

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from common import MODULES, cross_entropy, fresh_directory, greedy, labels_of, load_backbone
from common import next_token_log_probs, pad_right, random_tokens, write_json
from milora import MiLoRA

BACKBONE = "llama-gqa"
CASES = {
    "default": {},
    "k1": dict(top_k=1, lora_alpha=8),
    "k7": dict(top_k=7),
    "pooler-mean": dict(pooler="mean"),
    "pooler-last": dict(pooler="last"),
    "pooler-max": dict(pooler="max"),
    "activation-gelu": dict(activation="gelu"),
    "activation-relu": dict(activation="relu"),
    "activation-identity": dict(activation="identity"),
    "activation-per-layer": dict(activation=["relu", "rational", "gelu"]),
    "gate-probability": dict(gate="probability"),
    "gate-renormalized": dict(gate="renormalized", lora_alpha=6),
    "router-rms": dict(router_input="rms"),
    "subset": dict(target_modules=["v_proj", "down_proj", "q_proj", "up_proj"], top_k=2),
    "dora": dict(use_dora=True),
    "dora-probability": dict(use_dora=True, gate="probability", top_k=2, lora_alpha=8),
}
PROMPTS, RESPONSES = [6, 1, 11, 3], [4, 5, 3, 2]


def make(options: dict, seed: int) -> MiLoRA:
    """Random, with gate weights that suit the small residual stream before layer 0 and the larger one later."""
    model = MiLoRA(load_backbone(BACKBONE), options).randomise(seed)
    if "router_input" not in options:
        with torch.no_grad():
            for l, factor in enumerate([3.0, 0.5, 0.5]):
                model.tensors[f"{model.router(l)}.gate.weight"] *= factor
    return model


def margins(model: MiLoRA) -> tuple[float, float]:
    """How far the latest pass was from another route or arg-max, and |Q| from the kink at 0 of a rational activation."""
    k, route, kink = model.config["top_k"], 1.0, 1.0
    for l, p in model.probabilities.items():
        ordered = p.sort(-1, descending=True).values
        for cut in {1, k} - {p.shape[-1]}:
            route = min(route, (ordered[:, cut - 1] - ordered[:, cut]).min().item())
        if model.activation(l) == "rational":
            b = model.tensors[f"{model.router(l)}.activation.denominator"]
            q = sum(b[i] * model.pooled[l] ** (i + 1) for i in range(5))
            kink = min(kink, q.abs().min().item())
    return route, kink


def clear(model: MiLoRA) -> bool:
    route, kink = margins(model)
    return route > 1e-3 and kink > 1e-5


def distinct_routes(model: MiLoRA) -> tuple[int, int]:
    """Over prompts within a layer (the largest), and over layers within a prompt (the smallest)."""
    routes = torch.stack([model.routes[l] for l in range(len(model.layers))])  # [L, B, k]
    return max(len(layer.unique(dim=0)) for layer in routes), min(len(p.unique(dim=0)) for p in routes.unbind(1))


def one(model: MiLoRA, tokens: list[int], prompt_length: int):
    return model.forward(torch.tensor([tokens]), torch.ones(1, len(tokens)).long(), [prompt_length])[0]


@torch.no_grad()
def expected_sequence(model: MiLoRA, rng: random.Random, prompt_length: int, response_length: int):
    """None where no clear case is found: a prompt of one token is always the same one."""
    for _ in range(30):
        tokens = random_tokens(rng, prompt_length + response_length)
        prompt = tokens[:prompt_length]
        logits = one(model, tokens, prompt_length)
        routes, probabilities, attention = dict(model.routes), dict(model.probabilities), dict(model.attention)
        if not clear(model):
            continue
        # The router sees the original prompt only, however long the text grows.
        continuation = greedy(lambda longer: one(model, longer, prompt_length)[-1], prompt)
        if continuation is None:
            continue
        assert all(torch.equal(routes[l], model.routes[l]) for l in routes)
        layers = range(len(model.layers))
        return {
            "prompt": prompt, "response": tokens[prompt_length:],
            "routes": [routes[l][0] for l in layers], "probabilities": [probabilities[l][0] for l in layers],
            "attention": [None if attention[l] is None else attention[l][0, :prompt_length] for l in layers],
            "logits": logits, "logProbs": next_token_log_probs(logits, tokens), "greedy": continuation,
        }  # fmt: skip


def training(model: MiLoRA, sequences: list[dict], path) -> dict:
    tokens, mask = pad_right([s["prompt"] + s["response"] for s in sequences])
    prompt_lengths = [len(s["prompt"]) for s in sequences]
    labels = labels_of(tokens, mask, prompt_lengths)
    logits = model.forward(tokens, mask, prompt_lengths)
    for b, s in enumerate(sequences):  # the batch computes what each sequence alone computes
        assert torch.allclose(logits[b, : mask[b].sum()], s["logits"], atol=1e-4)
    ce, balance = cross_entropy(logits, labels), model.load_balance_loss()
    loss = ce + model.config["load_balance_coefficient"] * balance
    values = torch.autograd.grad(loss, list(model.tensors.values()), materialize_grads=True)
    save_file({k: v.contiguous() for k, v in zip(model.tensors, values)}, path / "gradients.safetensors")
    return {
        "tokens": tokens, "promptLengths": prompt_lengths, "lengths": mask.sum(1), "labels": labels,
        "supervisedTokens": int((labels != -100).sum()), "crossEntropy": ce.item(),
        "loadBalanceLoss": balance.item(), "loss": loss.item(),
    }  # fmt: skip


def check_against_peft(model: MiLoRA, sequence: dict) -> None:
    """With every expert active MiLoRA is PEFT's LoRA and MiDoRA is PEFT's DoRA: the same numbers must come out."""
    c = model.config
    base = load_backbone(BACKBONE)
    peft = get_peft_model(base, LoraConfig(
        r=c["r"], lora_alpha=c["lora_alpha"], target_modules=MODULES, use_dora=c["use_dora"], task_type="CAUSAL_LM",
    )).eval()  # fmt: skip
    parameters = {n.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector"): p
                  for n, p in peft.named_parameters() if "lora_" in n}  # fmt: skip
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(model.tensors[key])
    # Gate weights of 0: else A and B get a gradient through the routers, which PEFT does not have.
    tensors = {k: torch.zeros_like(v) if "gate.weight" in k else v.detach().clone() for k, v in model.tensors.items()}
    model = MiLoRA(load_backbone(BACKBONE), c | {"top_k": len(MODULES), "gate": "straight_through"}, tensors)
    tokens = sequence["prompt"] + sequence["response"]
    ours = one(model, tokens, len(sequence["prompt"]))
    theirs = peft(torch.tensor([tokens])).logits[0]
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()
    # The same for gradients, the detached norm of DoRA included.
    target = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad((ours * target).sum(), [tensors[k] for k in parameters])
    theirs = torch.autograd.grad((theirs * target).sum(), list(parameters.values()))
    assert all(torch.allclose(o, t, rtol=1e-3, atol=1e-3) for o, t in zip(ours, theirs))


def main() -> None:
    for index, (name, options) in enumerate(CASES.items()):
        path = fresh_directory("milora", name)
        for seed in range(1000 * index, 1000 * (index + 1)):  # the first adapter whose routes differ
            model = make(options, seed)
            rng = random.Random(seed)
            sequences = [expected_sequence(model, rng, p, r) for p, r in zip(PROMPTS, RESPONSES)]
            if None in sequences:
                continue
            peak = max(torch.stack(s["probabilities"]).max().item() for s in sequences)
            if peak > 0.95:  # a saturated softmax has no gradient worth comparing
                continue
            result = {"training": training(model, sequences, path)}
            prompts, layers = distinct_routes(model)
            if name == "k7" or (prompts >= 2 and layers >= 2):
                break
        assert clear(model)
        model.save(path, BACKBONE)
        if name in ("default", "k7", "dora"):
            check_against_peft(model, sequences[0])
        result = {"backbone": BACKBONE, "loadBalanceLoss": result["training"]["loadBalanceLoss"],
                  "sequences": sequences} | result  # fmt: skip
        write_json(path / "expected.json", result)
        print(name, seed, prompts, layers, [s["routes"][0].tolist() for s in sequences], margins(model), round(peak, 3))


if __name__ == "__main__":
    main()
