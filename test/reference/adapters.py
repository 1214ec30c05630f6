"""Parallel-Adapter (He et al. 2021, arXiv 2110.04366) and Learned-Adapter (Zhang et al. 2023) in PyTorch, and their
fixtures: test/fixtures/{parallel-adapter,learned-adapter}/<case>/.

Both add a bottleneck beside a sub-layer (attention or feed-forward): y' = y + s U f(D x), x the sub-layer's input after
the norm, y its output. The learned one has a rational f of its own at every place, and may read y instead of x.
"""

import torch
from torch.nn import functional as F

from own import OwnMethod, write_cases
from rational import rational

BLOCKS = ["self_attn", "mlp"]
FORMS = ["parallel", "sequential"]


class ParallelAdapter(OwnMethod):
    defaults = {"peft_type": "PARALLEL_ADAPTER", "bottleneck": 8, "activation": "relu", "scaling": 1.0}

    def shapes(self):
        b, shapes = self.config["bottleneck"], {}
        for l in range(len(self.layers)):
            for block in BLOCKS:
                shapes[self.path(l, f"{block}.parallel_adapter.down.weight")] = (b, self.d)
                shapes[self.path(l, f"{block}.parallel_adapter.up.weight")] = (self.d, b)
        return shapes

    def attach(self):
        f = getattr(F, self.config["activation"])
        for l in range(len(self.layers)):
            for block in BLOCKS:
                down = self.tensors[self.path(l, f"{block}.parallel_adapter.down.weight")]
                up = self.tensors[self.path(l, f"{block}.parallel_adapter.up.weight")]
                change = lambda x, y, down=down, up=up: y + self.config["scaling"] * f(x @ down.T) @ up.T  # noqa: E731
                self.replace_output(self.block(l, block), change)


class LearnedAdapter(OwnMethod):
    """`placement` {block: [form or null for each layer]}; null as a whole: the search, with every form behind a gate."""

    defaults = {"peft_type": "LEARNED_ADAPTER", "bottleneck": 8, "adapters": 4, "temperature": 0.5, "placement": None}

    def form(self, l: int, block: str) -> str | None:
        placement = self.config["placement"]
        return "search" if placement is None else placement[block][l]

    def places(self):
        return [(l, b) for l in range(len(self.layers)) for b in BLOCKS if self.form(l, b) is not None]

    def at(self, l: int, block: str, rest: str) -> str:
        return self.path(l, f"{block}.learned_adapter.{rest}")

    def shapes(self):
        b, shapes = self.config["bottleneck"], {}
        for l, block in self.places():
            shapes[self.at(l, block, "down.weight")] = (b, self.d)
            shapes[self.at(l, block, "up.weight")] = (self.d, b)
            shapes[self.at(l, block, "activation.numerator")] = (7,)
            shapes[self.at(l, block, "activation.denominator")] = (5,)
            if self.form(l, block) == "search":
                shapes[self.at(l, block, "gate")] = (len(FORMS),)
        return shapes

    def attach(self):
        for l, block in self.places():
            self.replace_output(self.block(l, block), lambda x, y, l=l, block=block: self.change(l, block, x, y))

    def change(self, l, block, x, y):
        parts = {rest: self.tensors.get(self.at(l, block, rest))
                 for rest in ["down.weight", "up.weight", "activation.numerator", "activation.denominator", "gate"]}  # fmt: skip

        def adapter(z):
            numerator, denominator = parts["activation.numerator"], parts["activation.denominator"]
            return rational(z @ parts["down.weight"].T, numerator.unbind(), denominator.unbind()) @ parts["up.weight"].T

        match self.form(l, block):
            case "parallel":
                return y + adapter(x)
            case "sequential":
                return y + adapter(y)
            case "search":  # FORMS in order, each behind its relaxed gate
                gates = torch.sigmoid(parts["gate"] / self.config["temperature"])
                return y + gates[0] * adapter(x) + gates[1] * adapter(y)


def main() -> None:
    write_cases(ParallelAdapter, "parallel-adapter", {
        "default": {},
        "gelu-scaled": dict(activation="gelu", scaling=4.0, bottleneck=5),
    })  # fmt: skip
    write_cases(LearnedAdapter, "learned-adapter", {
        "search": {},
        "placed": dict(placement={
            "self_attn": ["parallel", None, "sequential"], "mlp": ["sequential", "parallel", None],
        }),
    })  # fmt: skip


if __name__ == "__main__":
    main()
