"""IAPT (Zhu et al. 2024, arXiv 2405.18203) in PyTorch, and its fixtures test/fixtures/iapt/<case>/.

Right before layer l its generator makes soft prompts from the residual stream H [n, d] of the instruction's n tokens:
    A = softmax(H W_p) over the tokens, W_p [d, tokens];   P = U f(D Aᵀ H) [tokens, d], f rational.
The layer's attention sees them before all tokens: their keys and values are those of the layer itself (its norm, then
k_proj and v_proj). Keys are not rotated; the text's own positions begin after the soft prompts.
"""

import torch
from transformers import DynamicCache

from own import OwnMethod, write_cases
from rational import rational


class IAPT(OwnMethod):
    defaults = {"peft_type": "IAPT", "num_virtual_tokens": 4, "bottleneck": 8}
    reads_prompts = True

    def at(self, l: int, rest: str) -> str:
        return self.path(l, f"iapt.{rest}")

    def shapes(self):
        b, tokens, shapes = self.config["bottleneck"], self.config["num_virtual_tokens"], {}
        for l in range(len(self.layers)):
            shapes[self.at(l, "pooler.weight")] = (tokens, self.d)
            shapes[self.at(l, "down.weight")] = (b, self.d)
            shapes[self.at(l, "activation.numerator")] = (7,)
            shapes[self.at(l, "activation.denominator")] = (5,)
            shapes[self.at(l, "up.weight")] = (self.d, b)
        return shapes

    def attach(self):
        for l, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(lambda _, args, l=l: self.insert(l, args[0]))

    def soft_prompts(self, l: int, h):
        """h [B, T, d] -> [B, tokens, d]."""
        t = lambda rest: self.tensors[self.at(l, rest)]  # noqa: E731
        scores = (h @ t("pooler.weight").T).masked_fill(~self.prompt_mask[..., None], -torch.inf)  # [B, T, tokens]
        pooled = scores.softmax(dim=1).transpose(1, 2) @ h  # [B, tokens, d]
        numerator, denominator = t("activation.numerator").unbind(), t("activation.denominator").unbind()
        return rational(pooled @ t("down.weight").T, numerator, denominator) @ t("up.weight").T

    def insert(self, l: int, h) -> None:
        layer = self.layers[l]
        x = layer.input_layernorm(self.soft_prompts(l, h))
        heads = lambda y: y.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)  # noqa: E731
        self.cache.update(heads(layer.self_attn.k_proj(x)), heads(layer.self_attn.v_proj(x)), l)

    def run(self, tokens, mask):
        B, T = tokens.shape
        P = self.config["num_virtual_tokens"]
        self.cache = DynamicCache()
        visible = torch.ones(T, P + T, dtype=torch.bool).tril(P)  # right padding needs no mask
        additive = torch.zeros(T, P + T, dtype=self.backbone.dtype).masked_fill(~visible, -1e30)
        return self.backbone(
            tokens, attention_mask=additive.expand(B, 1, T, P + T), past_key_values=self.cache,
            position_ids=(P + torch.arange(T)).expand(B, T), use_cache=True,
        ).logits  # fmt: skip


def main() -> None:
    write_cases(IAPT, "iapt", {"default": {}, "two-tokens": dict(num_virtual_tokens=2, bottleneck=5)})


if __name__ == "__main__":
    main()
