"""Full fine-tuning with transformers and its fixtures, test/fixtures/full/<case>/: every weight is W + delta.

The gradient of a delta is that of its weight. With tied embeddings the table is trained as embedding and as head at once.
"""

from torch.func import functional_call

import own
from own import OwnMethod, write_cases


class Full(OwnMethod):
    defaults = {"peft_type": "FULL"}

    def attach(self):
        pass

    def key(self, name: str) -> str:
        return f"base_model.model.{name.removesuffix('.weight')}.delta"

    def shapes(self):
        return {self.key(name): tuple(weight.shape) for name, weight in self.backbone.named_parameters()}

    def run(self, tokens, mask):
        weights = {name: w.detach() + self.tensors[self.key(name)] for name, w in self.backbone.named_parameters()}
        return functional_call(self.backbone, weights, (tokens,), {"attention_mask": mask}).logits

    def randomise(self, seed: int, std: float = 0.1) -> "Full":
        return super().randomise(seed, std)


if __name__ == "__main__":
    for backbone in ["llama-gqa", "llama-tied"]:
        own.BACKBONE = backbone
        write_cases(Full, "full", {backbone.removeprefix("llama-"): {}})
