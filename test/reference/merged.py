"""Writes test/fixtures/merged/<method>/expected.json: what transformers computes from a checkpoint that milora merged.

Run after `make build`, whose dist/ does the merging. The numbers are checked here against PEFT, with the adapter beside
the backbone and merged by PEFT itself; the tests hold milora's own reading of its merged checkpoints to them.
"""

import random
import subprocess
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from common import FIXTURES, fresh_directory, load_backbone, random_tokens, write_json

CASES = {"lora": "patterns", "dora": "rslora", "adalora": "pruned", "ia3": "inputs"}
BACKBONE = "llama-gqa"
MERGE = """
import { readBackboneConfig } from "./dist/models/index.js";
import { Adapter, mergeAdapter } from "./dist/methods/index.js";
const [backbone, adapter, output] = process.argv.slice(1);
const loaded = Adapter.load(adapter, readBackboneConfig(backbone));
await mergeAdapter(loaded, backbone, output);
loaded.dispose();
"""


@torch.no_grad()
def main() -> None:
    for method, case in CASES.items():
        backbone, adapter = FIXTURES / "backbones" / BACKBONE, FIXTURES / method / case
        with tempfile.TemporaryDirectory() as scratch:
            command = ["node", "--input-type=module", "-e", MERGE, str(backbone), str(adapter), f"{scratch}/merged"]
            subprocess.run(command, check=True, cwd=FIXTURES.parent.parent)
            merged = LlamaForCausalLM.from_pretrained(Path(scratch) / "merged", attn_implementation="eager").eval()
            assert merged.dtype == torch.float32
        peft = PeftModel.from_pretrained(load_backbone(BACKBONE), adapter).eval()
        rng = random.Random(7)
        sequences = []
        for length in [1, 9]:
            tokens = random_tokens(rng, length)
            logits = merged(torch.tensor([tokens])).logits[0]
            assert torch.allclose(logits, peft(torch.tensor([tokens])).logits[0], atol=1e-4), method
            sequences.append({"tokens": tokens, "logits": logits})
        unloaded = dict(peft.merge_and_unload().named_parameters())
        for name, parameter in merged.named_parameters():
            assert torch.allclose(parameter, unloaded[name], atol=1e-5), (method, name)
        path = fresh_directory("merged", method)
        write_json(path / "expected.json", {"backbone": BACKBONE, "adapter": f"{method}/{case}", "sequences": sequences})
        print("merged", method, case)


if __name__ == "__main__":
    main()
