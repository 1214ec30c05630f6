"""SSP (Hu et al. 2022, "Sparse Structure Search", arXiv 2206.07382) in PyTorch and its fixtures, test/fixtures/ssp/<case>/.

Every linear module may get a LoRA and a bias. While searching each of these candidates i has a gate
p_i = sigmoid((a_i - zeta) / tau), and zeta is where the expected size, sum p_i size_i, is the budget ("shifted global
sigmoid"). The relaxed gate is a sample of the binary concrete distribution, sigmoid(logit p + logit u); the numbers here
are those of u = 1/2, the gate p itself. At the end candidates are taken by falling a, each that fits into the budget.
"""

import json

import torch

from common import FIXTURES, MODULES, load_backbone, write_json
from own import BACKBONE, OwnMethod, block_of, write_cases


class Shift(torch.autograd.Function):
    """zeta(a): by bisection in float64; backward by the implicit function theorem."""

    @staticmethod
    def forward(ctx, alpha, sizes, budget, tau):
        a, s = alpha.double(), sizes.double()
        low, high = a.min() - 100 * tau, a.max() + 100 * tau
        for _ in range(200):
            middle = (low + high) / 2
            if (torch.sigmoid((a - middle) / tau) * s).sum() > budget:
                low = middle
            else:
                high = middle
        p = torch.sigmoid((a - low) / tau)
        slopes = s * p * (1 - p)
        ctx.save_for_backward((slopes / slopes.sum()).to(alpha.dtype))
        return low.to(alpha.dtype)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None, None, None


class SSP(OwnMethod):
    defaults = {
        "peft_type": "SSP", "r": 4, "target_modules": "all-linear", "density": 0.5, "temperature": 1.0, "structure": None,
    }  # fmt: skip

    def candidates(self):
        """(layer, module, kind, size), site by site."""
        targets, found = self.config["target_modules"], []
        for l in range(len(self.layers)):
            for name in MODULES:
                if targets == "all-linear" or name in targets:
                    out, into = self.module(l, name).weight.shape
                    found += [(l, name, "lora", self.config["r"] * (out + into)), (l, name, "bitfit", out)]
        return found

    def budget(self) -> int:
        return self.config.get("budget") or int(self.config["density"] * sum(c[3] for c in self.candidates()))

    def has(self, l: int, name: str, kind: str) -> bool:
        structure = self.config["structure"]
        return structure is None or l in structure[kind].get(name, [])

    def at(self, l: int, name: str, rest: str) -> str:
        return self.path(l, f"{block_of(name)}.{name}.{rest}")

    def shapes(self):
        shapes, r = {}, self.config["r"]
        for l, name, kind, _ in self.candidates():
            if not self.has(l, name, kind):
                continue
            out, into = self.module(l, name).weight.shape
            if kind == "lora":
                shapes |= {self.at(l, name, "lora_A.weight"): (r, into), self.at(l, name, "lora_B.weight"): (out, r)}
            else:
                shapes[self.at(l, name, "bias")] = (out,)
        if self.config["structure"] is None:
            shapes["base_model.model.ssp_gates"] = (len(self.candidates()),)
        return shapes

    def gates(self) -> dict:
        """(l, module, kind) -> p, 1 for the parts of a structure that was found."""
        places = [c[:3] for c in self.candidates()]
        if self.config["structure"] is not None:
            return {place: 1.0 for place in places if self.has(*place)}
        alpha, tau = self.tensors["base_model.model.ssp_gates"], self.config["temperature"]
        sizes = torch.tensor([float(c[3]) for c in self.candidates()])
        p = torch.sigmoid((alpha - Shift.apply(alpha, sizes, self.budget(), tau)) / tau)
        assert abs((p * sizes).sum().item() / self.budget() - 1) < 1e-5
        return dict(zip(places, p))

    def begin(self):
        self.p = self.gates()

    def change(self, l: int, name: str, x, y):
        if (l, name, "lora") in self.p:
            a, b = self.tensors[self.at(l, name, "lora_A.weight")], self.tensors[self.at(l, name, "lora_B.weight")]
            scale = self.config.get("lora_alpha", self.config["r"]) / self.config["r"]
            y = y + self.p[l, name, "lora"] * scale * (x @ a.T @ b.T)
        if (l, name, "bitfit") in self.p:
            y = y + self.p[l, name, "bitfit"] * self.tensors[self.at(l, name, "bias")]
        return y

    def attach(self):
        for l, name in dict.fromkeys(c[:2] for c in self.candidates()):
            self.replace_output(self.module(l, name), lambda x, y, l=l, name=name: self.change(l, name, x, y))

    def randomise(self, seed: int, std: float = 0.3) -> "SSP":
        super().randomise(seed, std)
        if self.config["structure"] is None:
            with torch.no_grad():
                self.tensors["base_model.model.ssp_gates"] *= 4
        return self

    def found(self) -> dict:
        alpha = self.tensors["base_model.model.ssp_gates"].tolist()
        structure, left = {"lora": {}, "bitfit": {}}, self.budget()
        for _, (l, name, kind, size) in sorted(zip(alpha, self.candidates()), key=lambda pair: -pair[0]):
            if size <= left:
                left -= size
                structure[kind].setdefault(name, []).append(l)
        return {kind: {name: sorted(layers) for name, layers in modules.items()} for kind, modules in structure.items()}


def check_gradient() -> None:
    alpha = torch.randn(9, dtype=torch.double, requires_grad=True)
    sizes = torch.rand(9, dtype=torch.double) + 0.1
    shifted = lambda a: torch.sigmoid((a - Shift.apply(a, sizes, 2.0, 0.7)) / 0.7)  # noqa: E731
    assert torch.autograd.gradcheck(shifted, alpha)


CASES = {
    "search": {},
    "search-budget": {
        "budget": 1500, "temperature": 0.5, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "down_proj"],
    },
}  # fmt: skip


def main() -> None:
    check_gradient()
    write_cases(SSP, "ssp", CASES)
    for name in CASES:  # what the search would end with
        path = FIXTURES / "ssp" / name
        structure = SSP.load(load_backbone(BACKBONE), path).found()
        write_json(path / "expected.json", json.loads((path / "expected.json").read_text()) | {"structure": structure})
    write_cases(SSP, "ssp", {"found": {"structure": structure, "r": 3}})


if __name__ == "__main__":
    main()
