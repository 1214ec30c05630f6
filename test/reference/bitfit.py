"""BitFit (Ben-Zaken et al. 2021, arXiv 2106.10199) in PyTorch and its fixtures, test/fixtures/bitfit/<case>/.

LLaMA's linear modules have no biases, so each gets one of its own: y' = y + b. With `projection_dim` it is trained as
b = v P^T, a vector v [1, dim] and a matrix P [out, dim] for every module.
"""

from common import MODULES
from own import OwnMethod, block_of, write_cases


class BitFit(OwnMethod):
    defaults = {"peft_type": "BITFIT", "target_modules": MODULES, "inference_mode": True}

    def places(self):
        layers = self.config.get("layers_to_transform", range(len(self.layers)))
        return [(l, name) for l in layers for name in self.config["target_modules"]]

    def key(self, l: int, name: str) -> str:
        return self.path(l, f"{block_of(name)}.{name}.bias")

    def shapes(self):
        shapes, dim = {}, self.config.get("projection_dim")
        for l, name in self.places():
            out, key = self.module(l, name).weight.shape[0], self.key(l, name)
            shapes |= {key + "_vector": (1, dim), key + "_projection": (out, dim)} if dim else {key: (out,)}
        return shapes

    def bias(self, key: str):
        if "projection_dim" not in self.config:
            return self.tensors[key]
        return (self.tensors[key + "_vector"] @ self.tensors[key + "_projection"].T)[0]

    def attach(self):
        for l, name in self.places():
            change = lambda _, y, key=self.key(l, name): y + self.bias(key)  # noqa: E731
            self.replace_output(self.module(l, name), change)

    def randomise(self, seed: int, std: float = 0.3) -> "BitFit":
        return super().randomise(seed, std)


if __name__ == "__main__":
    write_cases(BitFit, "bitfit", {
        "biases": {},
        "projected": {"projection_dim": 4, "inference_mode": False},
        "subset": {"target_modules": ["o_proj", "up_proj"], "layers_to_transform": [0, 2]},
    })  # fmt: skip
