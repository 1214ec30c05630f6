"""MiLoRA (Zhang et al. 2024, arXiv 2410.18035) and MiDoRA in PyTorch, by forward hooks on transformers' LLaMA.

Written to be read beside the paper, not to be fast: no KV cache, every token of every sequence runs every expert and a
gate of 0 switches it off. Equations 2, 3, 6 and 8 are in `MiLoRA.choose`, 4 and 5 in `MiLoRA.load_balance_loss`.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from common import MODULES
from rational import DENOMINATOR, NUMERATOR, rational

DEFAULTS = {
    "peft_type": "MILORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 4, "target_modules": MODULES,
    "top_k": 3, "use_dora": False, "gate": "straight_through", "pooler": "self_attention",
    "activation": "rational", "rational_orders": [6, 5], "load_balance_coefficient": 0.01,
}  # fmt: skip


class MiLoRA:
    """Holds the adapter's tensors by their file keys in `tensors` and hooks itself into `backbone`."""

    def __init__(self, backbone, config: dict, tensors: dict | None = None):
        self.config, self.backbone = DEFAULTS | config, backbone
        self.layers = backbone.model.layers
        self.experts = self.config["target_modules"]  # expert order = order in the file
        self.scale = self.config["lora_alpha"] / self.config["r"]
        self.tensors = tensors or {key: torch.zeros(shape) for key, shape in self.shapes().items()}
        assert {k: tuple(v.shape) for k, v in self.tensors.items()} == self.shapes()
        for tensor in self.tensors.values():
            tensor.requires_grad_(True)
        self.progress = 1.0  # share of the training that is done
        self.hooks = []
        for l, layer in enumerate(self.layers):
            self.hooks.append(layer.register_forward_pre_hook(lambda _, args, l=l: self.choose(l, args[0])))
            for e in range(len(self.experts)):
                hook = lambda module, args, y, l=l, e=e: self.expert(l, e, module, args[0], y)  # noqa: E731
                self.hooks.append(self.module(l, e).register_forward_hook(hook))

    # ---- names and shapes ----------------------------------------------------------------------------------------

    def site(self, l: int, e: int) -> str:
        part = "self_attn" if self.experts[e] in MODULES[:4] else "mlp"
        return f"base_model.model.model.layers.{l}.{part}.{self.experts[e]}"

    def router(self, l: int) -> str:
        return f"base_model.model.model.layers.{l}.milora_router"

    def module(self, l: int, e: int):
        return self.backbone.get_submodule(self.site(l, e).removeprefix("base_model.model."))

    def activation(self, l: int) -> str:
        activation = self.config["activation"]
        return activation if isinstance(activation, str) else activation[l]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        d, shapes = self.backbone.config.hidden_size, {}
        for l in range(len(self.layers)):
            for e in range(len(self.experts)):
                outputs, inputs = self.module(l, e).weight.shape
                shapes[f"{self.site(l, e)}.lora_A.weight"] = (self.config["r"], inputs)
                shapes[f"{self.site(l, e)}.lora_B.weight"] = (outputs, self.config["r"])
                if self.config["use_dora"]:
                    shapes[f"{self.site(l, e)}.lora_magnitude_vector"] = (outputs,)
            if self.config["pooler"] == "self_attention":
                shapes[f"{self.router(l)}.pooler.weight"] = (1, d)
            if self.activation(l) == "rational":
                shapes[f"{self.router(l)}.activation.numerator"] = (7,)
                shapes[f"{self.router(l)}.activation.denominator"] = (5,)
            shapes[f"{self.router(l)}.gate.weight"] = (len(self.experts), d)
        return shapes

    # ---- the method ----------------------------------------------------------------------------------------------

    def pool(self, l: int, h, mask):
        """h [B, T, d], mask [B, T] true on prompt tokens -> [B, d]. Sets the attention [B, T] of poolers that have one."""
        outside = ~mask[..., None]  # [B, T, 1]
        self.attention[l] = None
        match self.config["pooler"]:
            case "self_attention":
                scores = h @ self.tensors[f"{self.router(l)}.pooler.weight"].T  # [B, T, 1]
                weights = scores.masked_fill(outside, -torch.inf).softmax(dim=1)
                self.attention[l] = weights[..., 0]
                return (weights * h).sum(1)
            case "mean":
                self.attention[l] = mask / mask.sum(1, keepdim=True)
                return h.masked_fill(outside, 0).sum(1) / mask.sum(1, keepdim=True)
            case "last":
                self.attention[l] = F.one_hot(mask.sum(1) - 1, mask.shape[1]).float()
                return h[torch.arange(len(h)), mask.sum(1) - 1]
            case "max":
                return h.masked_fill(outside, -torch.inf).amax(1)

    def activate(self, l: int, x):
        match self.activation(l):
            case "rational":
                numerator = self.tensors[f"{self.router(l)}.activation.numerator"]
                denominator = self.tensors[f"{self.router(l)}.activation.denominator"]
                return rational(x, numerator.unbind(), denominator.unbind())
            case "gelu":
                return F.gelu(x)
            case "relu":
                return F.relu(x)
            case "identity":
                return x

    def choose(self, l: int, h) -> None:
        """The router of layer l on the residual stream before the layer's norm. Sets probabilities and gates [B, E]."""
        pooled = self.pool(l, h, self.prompt_mask)
        if self.config.get("router_input", "raw") == "rms":
            pooled = pooled * torch.rsqrt(pooled.square().mean(-1, keepdim=True) + 1e-6)
        scores = self.activate(l, pooled) @ self.tensors[f"{self.router(l)}.gate.weight"].T
        p = scores.softmax(-1)
        top = scores.topk(self.config["top_k"], dim=-1).indices  # the order of p, without its underflows to equal zeros
        mask = torch.zeros_like(p).scatter(-1, top, 1.0)
        if self.config.get("anneal"):  # experts that were not chosen fade out while training
            mask = mask + (1 - mask) * max(0.0, 1 - self.progress / self.config["anneal"])
        match self.config["gate"]:
            case "straight_through":
                gates = mask * (1 + (p - p.detach()))
            case "probability":
                gates = mask * p
            case "renormalized":
                gates = mask * p / (mask * p).sum(-1, keepdim=True)
        self.pooled[l], self.probabilities[l], self.gates[l] = pooled, p, gates
        self.routes[l] = top.sort(-1).values

    def expert(self, l: int, e: int, module, x, y):
        a = self.tensors[f"{self.site(l, e)}.lora_A.weight"]
        b = self.tensors[f"{self.site(l, e)}.lora_B.weight"]
        delta = self.scale * (x @ a.T @ b.T)
        if self.config["use_dora"]:  # delta = y_DoRA - y_base; the norm is a constant in training (DoRA, section 4.3)
            magnitude = self.tensors[f"{self.site(l, e)}.lora_magnitude_vector"]
            norm = (module.weight + self.scale * (b @ a)).norm(dim=1).detach()
            delta = magnitude / norm * (y + delta) - y
        return y + self.gates[l][:, e, None, None] * delta

    def forward(self, tokens, mask, prompt_lengths):
        """tokens, mask int64 [B, T], padded on the right -> logits [B, T, V]. Leaves routes etc. of the batch behind."""
        self.prompt_mask = torch.arange(tokens.shape[1])[None] < torch.tensor(prompt_lengths)[:, None]
        self.attention, self.pooled, self.probabilities, self.gates, self.routes = {}, {}, {}, {}, {}
        return self.backbone(tokens, attention_mask=mask).logits

    def load_balance_loss(self):
        """Of the latest forward pass: N sum_i f_i p_i, averaged over the layers."""
        losses = []
        for p in self.probabilities.values():  # [B, E]
            f = F.one_hot(p.argmax(-1), p.shape[-1]).float().mean(0)
            losses.append(p.shape[-1] * (f * p.mean(0)).sum())
        return torch.stack(losses).mean()

    # ---- starting values and files -------------------------------------------------------------------------------

    @torch.no_grad()
    def randomise(self, seed: int, std: float = 0.2) -> "MiLoRA":
        """Random A and B; magnitudes and coefficients scattered around their starting values."""
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in sorted(self.tensors.items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if key.endswith("numerator"):
                tensor.copy_(torch.tensor(NUMERATOR) + 0.02 * noise)
            elif key.endswith("denominator"):
                tensor.copy_(torch.tensor(DENOMINATOR) + 0.02 * noise)
            elif key.endswith("magnitude_vector"):
                weight = self.backbone.get_parameter(
                    key.removeprefix("base_model.model.").replace("lora_magnitude_vector", "weight")
                )
                tensor.copy_(weight.norm(dim=1) * (1 + 0.2 * noise))
            else:
                tensor.copy_(std * noise)
        return self

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def save(self, path: Path, backbone_name: str) -> None:
        config = {"base_model_name_or_path": backbone_name} | self.config
        (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({k: v.detach().contiguous() for k, v in self.tensors.items()}, path / "adapter_model.safetensors")

    @classmethod
    def load(cls, backbone, path: Path) -> "MiLoRA":
        config = json.loads((path / "adapter_config.json").read_text())
        return cls(backbone, config, load_file(path / "adapter_model.safetensors"))
