"""MOELoRA in the form of the MiLoRA paper's baseline, in PyTorch, and its fixtures test/fixtures/moelora/<case>/.

Every LoRA is cut into `num_experts` experts of r / num_experts ranks. A router per module chooses `top_k` of them for
every token: p = softmax(x W_g), x the input of the module's sub-layer (after the norm), which all its modules' routers
read. y' = y + s sum_e g_e B_e A_e z, z the module's own input, g = p of the chosen ones divided by their sum.
Load balance over the prompt's tokens, per router: E sum_e f_e P_e, f_e the share of the choices that fell on e, P_e its
mean probability; averaged over routers. PEFT's LoRA is the case in which all gates are 1: checked below.
"""

import torch
from torch.nn import functional as F

from common import MODULES, load_backbone
from own import BACKBONE, OwnMethod, block_of, write_cases
from peft import LoraConfig, get_peft_model


class MOELoRA(OwnMethod):
    defaults = {
        "peft_type": "MOELORA", "r": 8, "lora_alpha": 8, "num_experts": 4, "top_k": 2, "target_modules": MODULES,
        "load_balance_coefficient": 0.01,
    }  # fmt: skip
    all_gates_one = False  # for the comparison with LoRA only

    def sites(self):
        return [(l, module) for l in range(len(self.layers)) for module in self.config["target_modules"]]

    def at(self, l: int, module: str, rest: str) -> str:
        return self.path(l, f"{block_of(module)}.{module}.{rest}.weight")

    def shapes(self):
        shapes = {}
        for l, module in self.sites():
            outputs, inputs = self.module(l, module).weight.shape
            shapes[self.at(l, module, "lora_A")] = (self.config["r"], inputs)
            shapes[self.at(l, module, "lora_B")] = (outputs, self.config["r"])
            shapes[self.at(l, module, "moelora_router")] = (self.config["num_experts"], self.d)
        return shapes

    def attach(self):
        self.block_inputs = {}
        for l in range(len(self.layers)):
            for block in ["self_attn", "mlp"]:

                def remember(_, args, kwargs, at=(l, block)):
                    self.block_inputs[at] = args[0] if args else kwargs["hidden_states"]

                self.block(l, block).register_forward_pre_hook(remember, with_kwargs=True)
        for l, module in self.sites():
            change = lambda z, y, l=l, module=module: self.change(l, module, z, y)  # noqa: E731
            self.replace_output(self.module(l, module), change)

    def begin(self):
        self.probabilities, self.chosen, self.gaps = {}, {}, []

    def change(self, l, module, z, y):
        c = self.config
        logits = self.block_inputs[l, block_of(module)] @ self.tensors[self.at(l, module, "moelora_router")].T
        p = torch.softmax(logits, dim=-1)  # [B, T, E]
        chosen = torch.zeros_like(p).scatter(-1, p.topk(c["top_k"], dim=-1).indices, 1.0)
        gates = chosen * p / (chosen * p).sum(-1, keepdim=True)
        self.probabilities[l, module], self.chosen[l, module] = p, chosen
        if c["top_k"] < c["num_experts"]:
            ordered = logits.sort(-1, descending=True).values
            self.gaps.append((ordered[..., c["top_k"] - 1] - ordered[..., c["top_k"]]).min().item())
        if self.all_gates_one:
            gates = torch.ones_like(p)
        low = z @ self.tensors[self.at(l, module, "lora_A")].T  # [B, T, r]
        low = low * gates.repeat_interleave(c["r"] // c["num_experts"], dim=-1)
        return y + c["lora_alpha"] / c["r"] * low @ self.tensors[self.at(l, module, "lora_B")].T

    def margin(self):
        return min(self.gaps, default=1.0)

    def losses(self):
        mask = self.prompt_mask[..., None]  # [B, T, 1]
        mean = lambda x: (x * mask).sum((0, 1)) / mask.sum()  # noqa: E731
        each = []
        for site, p in self.probabilities.items():
            f = mean(self.chosen[site]) / self.config["top_k"]
            each.append(self.config["num_experts"] * (f * mean(p)).sum())
        return {"load_balance": self.config["load_balance_coefficient"] * torch.stack(each).mean()}


def check_against_peft() -> None:
    model = MOELoRA(load_backbone(BACKBONE), {}).randomise(1)
    model.all_gates_one = True
    peft = get_peft_model(load_backbone(BACKBONE), LoraConfig(
        r=8, lora_alpha=8, target_modules=MODULES, task_type="CAUSAL_LM",
    )).eval()  # fmt: skip
    tokens = torch.tensor([[1, 5, 9, 17, 33]])
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(model.tensors[name.replace(".default", "")])
        ours, theirs = model.forward(tokens, torch.ones_like(tokens), [5]), peft(tokens).logits
    assert torch.allclose(ours, theirs, atol=1e-4), F.l1_loss(ours, theirs)


def main() -> None:
    check_against_peft()
    write_cases(MOELoRA, "moelora", {
        "default": {},
        "subset": dict(target_modules=["down_proj", "k_proj", "o_proj"], r=6, lora_alpha=3, num_experts=3, top_k=1),
        "all-active": dict(top_k=4, load_balance_coefficient=0),
    })  # fmt: skip


if __name__ == "__main__":
    main()
