"""Speed of PyTorch with PEFT on random weights: the peer of the `train` and `decode` benchmarks, as a worker of theirs.

    python peft_bench.py '{"shape": "smollm2-135m", "threads": 2, ...}'

The argument is that of `lib/train-settings.ts`, or, where it has `loads`, of `lib/decode-settings.ts`, and the shape's `config`;
it speaks JSON lines, see `lib/worker.ts`. Needs torch, transformers and peft. Plain PyTorch: scaled-dot-product attention and, in training, float32
and the fused AdamW; no torch.compile, no activation checkpointing, no autocast.
"""

import json
import os
import resource
import statistics
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(settings: dict, rank: int | None, dtype: torch.dtype = torch.float32):
    """A random LLaMA; with a LoRA of this rank on all seven modules, not merged, unless it is None."""
    shape = settings["config"]
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=shape["vocabSize"], hidden_size=shape["hiddenSize"], intermediate_size=shape["intermediateSize"],
        num_hidden_layers=shape["numLayers"], num_attention_heads=shape["numHeads"],
        num_key_value_heads=shape["numKvHeads"], head_dim=shape["headDim"],
        tie_word_embeddings=shape["tieWordEmbeddings"], max_position_embeddings=shape["maxPositions"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["ropeTheta"]}, attn_implementation="sdpa",
        dtype=dtype, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    if rank is None:
        return model
    lora = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=MODULES, lora_dropout=0.0, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, lora, autocast_adapter_dtype=False)


def trainer(settings: dict):
    """-> step() doing forward, backward, clipping and AdamW on one fixed batch; gives (ms, loss before the step)."""
    batch, length = settings["batch"], settings["length"]
    model = build(settings, settings["options"]["r"]).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    tokens = torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(3))

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss  # all but the first token supervised
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return (time.perf_counter() - start) * 1e3, loss.item()

    return step


class Clock(transformers.StoppingCriteria):
    """Takes the time of every step of `generate`, beams or not, and stops nothing."""

    def __init__(self):
        self.times = [time.perf_counter()]

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@torch.inference_mode()
def answer(model, load: dict) -> dict:
    """`generate` -> ms of the prompt, and the median of the steps after it."""
    vocab = model.config.vocab_size
    token = lambda i, sequence: 260 + (i * 7919 + sequence * 104_729) % (vocab - 260)  # noqa: E731
    prompt = torch.tensor([[token(i, row) for i in range(load["past"])] for row in range(load["batch"])])
    clock, tokens = Clock(), load["steps"] + 1
    model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, num_beams=load["beams"],
        min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0, stopping_criteria=[clock],
    )  # fmt: skip
    first, *steps = ((b - a) * 1e3 for a, b in zip(clock.times, clock.times[1:]))
    return {"prefillMs": first, "stepMs": statistics.median(steps) if steps else None}


def read_bytes(model, load: dict) -> float:
    """What a step reads: all parameters but an embedding table of its own, keys and values."""
    config = model.config
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    table = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.nbytes
    width = next(model.parameters()).element_size()
    positions = load["batch"] * load["beams"] * (load["past"] + load["steps"] / 2)
    keys = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return parameters - table + 2 * positions * keys * width


def peak_rss() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions() -> dict:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}


def say(message: dict) -> None:
    print(json.dumps(message), flush=True)


def rounds(one) -> None:
    """`round` on the input -> what `one()` gives, `end` -> peak memory."""
    for line in sys.stdin:
        if line.strip() == "round":
            say({"round": one()})
        elif line.strip() == "end":
            break
    say({"end": {"peakRss": peak_rss()}})


def serve_training(settings: dict) -> None:
    step = trainer(settings)

    def one() -> dict:
        times, losses = zip(*(step() for _ in range(settings["steps"])))
        return {"stepMs": times, "loss": losses[-1]}

    say({"ready": versions()})
    rounds(one)


def serve_decoding(settings: dict) -> None:
    rank = settings["adapter"]["options"]["r"] if "adapter" in settings else None
    model = build(settings, rank, getattr(torch, settings["dtype"])).eval()
    loads, peaks = settings["loads"], []
    for load in loads:
        answer(model, load)
        peaks.append(peak_rss())
    say({"ready": {**versions(), "peakRss": peaks, "readBytes": [read_bytes(model, load) for load in loads]}})
    rounds(lambda: [answer(model, load) for load in loads])


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].startswith("{"):
        sys.exit(__doc__)
    settings = json.loads(sys.argv[1])
    method = settings["adapter"]["method"] if "adapter" in settings else settings.get("method", "lora")
    if method != "lora":
        sys.exit(f"PEFT is the peer for the method lora only, not for {method}")
    torch.set_num_threads(settings["threads"])
    (serve_decoding if "loads" in settings else serve_training)(settings)


if __name__ == "__main__":
    main()
