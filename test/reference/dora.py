"""Writes test/fixtures/dora/<case>/: DoRA adapters as PEFT saves them, what they compute, and their gradients."""

from peft import LoraConfig

from common import MODULES
from peft_cases import Scatter, write_case

CASES = {
    "all-modules": dict(r=4, lora_alpha=8, target_modules=MODULES),
    "rslora": dict(r=4, lora_alpha=8, target_modules=MODULES, use_rslora=True),
    "patterns": dict(
        r=4, lora_alpha=8, target_modules=MODULES,
        rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6}, alpha_pattern={"v_proj": 16, "layers.2.self_attn.o_proj": 2},
    ),
    "layers": dict(r=3, lora_alpha=3, target_modules=["k_proj", "up_proj"], layers_to_transform=[1]),
}  # fmt: skip


def randomise(name: str, value, noise):
    """Magnitudes are scattered around the norms they start from, A and B around 0."""
    return value * (1 + 0.2 * noise) if "magnitude" in name else 0.2 * noise


def main() -> None:
    for seed, (name, options) in enumerate(CASES.items()):
        config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", use_dora=True, **options)
        write_case("dora", name, config, 400 + seed, Scatter("lora_", randomise))


if __name__ == "__main__":
    main()
