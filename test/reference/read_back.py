"""PEFT reads what milora has saved (test/fixtures/saved/<case>/, written by test/parity/saved.test.ts) and computes the
expected.json of each case, which must be what milora computes: test/parity/methods.test.ts compares them."""

import json
import warnings

import torch
from peft import PeftModel
from safetensors.torch import load_file

from common import FIXTURES, load_backbone, write_json
from peft_cases import expected_sequences, file_key, logits_with


def main() -> None:
    for seed, path in enumerate(sorted((FIXTURES / "saved").iterdir())):
        backbone = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(load_backbone(backbone), path).eval()
        saved = load_file(path / "adapter_model.safetensors")
        if "prompt_embeddings" in saved:
            assert torch.equal(saved["prompt_embeddings"], model.prompt_encoder["default"].embedding.weight)
        else:  # no tensor is left out, none is left as it was
            read = {file_key(n): p for n, p in model.named_parameters() if "lora_" in n or "ia3_" in n}
            assert saved.keys() == read.keys() and all(torch.equal(saved[k], read[k]) for k in saved)
        sequences = expected_sequences(logits_with(model), 500 + seed, logits_with(load_backbone(backbone)))
        write_json(path / "expected.json", {"backbone": backbone, "sequences": sequences})
        print(path.name, len(saved), "tensors", sorted({str(w.message)[:90] for w in caught}))


if __name__ == "__main__":
    main()
