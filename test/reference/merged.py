"""Writes test/fixtures/merged/<case>/expected.json: what transformers computes from a checkpoint that milora merged.

Run after `make build`, whose dist/ does the merging. The numbers are checked here against PEFT, with the adapter beside
the backbone and merged by PEFT itself; the tests hold milora's own reading of its merged checkpoints to them.
"""

import random
import subprocess
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import FIXTURES, fresh_directory, random_tokens, write_json

GQA = "backbones/llama-gqa"
# name: adapter, backbone (a directory, or a GGUF file of it as the third)
CASES = {
    "lora": ("lora/patterns", GQA), "dora": ("dora/rslora", GQA), "adalora": ("adalora/pruned", GQA), "ia3": ("ia3/inputs", GQA),
    "gemma2": ("families/gemma2/lora", "families/gemma2"), "qwen3": ("families/qwen3/lora", "families/qwen3"),
    "phi3": ("families/phi3/lora", "families/phi3"), "gguf": ("lora/all-modules", GQA, "gguf/llama-gqa-f32.gguf"),
}  # fmt: skip
MERGE = """
import { readBackboneConfig } from "./dist/models/index.js";
import { Adapter, mergeAdapter } from "./dist/methods/index.js";
const [backbone, adapter, output] = process.argv.slice(1);
const loaded = Adapter.load(adapter, readBackboneConfig(backbone));
await mergeAdapter(loaded, backbone, output, { dtype: "float32", maxShardSize: 50_000 });
loaded.dispose();
"""


@torch.no_grad()
def main() -> None:
    for name, (adapter, backbone, *gguf) in CASES.items():
        source = FIXTURES / (gguf[0] if gguf else backbone)
        with tempfile.TemporaryDirectory() as scratch:
            command = ["node", "--input-type=module", "-e", MERGE, str(source), str(FIXTURES / adapter), f"{scratch}/merged"]
            subprocess.run(command, check=True, cwd=FIXTURES.parent.parent)
            path = Path(scratch) / "merged"
            assert len(list(path.glob("*.safetensors"))) > 1
            merged = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
            assert merged.dtype == torch.float32
            if gguf:  # the tokenizer, too, is one that transformers reads
                assert AutoTokenizer.from_pretrained(path).convert_tokens_to_ids("w7") == 7
        bare = lambda: AutoModelForCausalLM.from_pretrained(  # noqa: E731
            FIXTURES / backbone, dtype=torch.float32, attn_implementation="eager"
        )
        peft = PeftModel.from_pretrained(bare(), FIXTURES / adapter).eval()
        rng = random.Random(7)
        sequences = []
        for length in [1, 9]:
            tokens = random_tokens(rng, length)
            logits = merged(torch.tensor([tokens])).logits[0]
            assert torch.allclose(logits, peft(torch.tensor([tokens])).logits[0], atol=1e-4), name
            sequences.append({"tokens": tokens, "logits": logits})
        unloaded = dict(peft.merge_and_unload().named_parameters())
        for key, parameter in merged.named_parameters():
            assert torch.allclose(parameter, unloaded[key], atol=1e-5), (name, key)
        path = fresh_directory("merged", name)
        write_json(path / "expected.json", {"backbone": gguf[0] if gguf else backbone, "adapter": adapter, "sequences": sequences})
        print("merged", name)


if __name__ == "__main__":
    main()
