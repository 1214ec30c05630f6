"""Speed of PyTorch with PEFT on random weights: the peer of the `train` and `decode` benchmarks.

    python peft_bench.py train  --steps 5             # LoRA: whole optimizer steps, tokens/s
    python peft_bench.py decode --steps 64 --past 128 # LoRA not merged, batch 1: ms a token
    python peft_bench.py '{"shape": "smollm2-135m", "threads": 2, ...}'   # a `train` worker speaking JSON lines

Needs torch, transformers and peft. The first two forms print one JSON object. Plain PyTorch in float32: scaled-dot-product
attention and the fused AdamW, no torch.compile, no activation checkpointing, no autocast.
"""

import argparse
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

SHAPES = {  # hidden, FFN, layers, heads, kv heads, head width, vocabulary, tied, RoPE base
    "tiny": (256, 512, 2, 4, 2, 64, 512, True, 100000.0),
    "smollm2-135m": (576, 1536, 30, 9, 3, 64, 49152, True, 100000.0),
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 64, 32000, False, 10000.0),
}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(shape: str, rank: int):
    """A random LLaMA with a LoRA of this rank on all seven modules, not merged; float32."""
    hidden, ffn, layers, heads, kv_heads, width, vocab, tied, theta = SHAPES[shape]
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=width, tie_word_embeddings=tied, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, attn_implementation="sdpa",
    )  # fmt: skip
    lora = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=MODULES, lora_dropout=0.0, task_type="CAUSAL_LM")
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)


def trainer(shape: str, rank: int, batch: int, length: int):
    """-> step() doing forward, backward, clipping and AdamW on one fixed batch; gives (ms, loss before the step)."""
    model = build(shape, rank).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    tokens = torch.randint(0, SHAPES[shape][6], (batch, length), generator=torch.Generator().manual_seed(3))

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss  # all but the first token supervised
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return (time.perf_counter() - start) * 1e3, loss.item()

    return step


@torch.inference_mode()
def decode(shape: str, rank: int, past: int, steps: int) -> dict:
    """Greedy tokens one by one after a prompt of `past` tokens -> ms of the prompt and of every token."""
    model = build(shape, rank).eval()
    vocab = SHAPES[shape][6]
    prompt = torch.tensor([[260 + (i * 7919) % (vocab - 260) for i in range(past)]])

    def one_run() -> tuple[float, list[float]]:
        start = time.perf_counter()
        out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        prefill, times = (time.perf_counter() - start) * 1e3, []
        for _ in range(steps):
            start = time.perf_counter()
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            times.append((time.perf_counter() - start) * 1e3)
        return prefill, times

    one_run()  # warm-up
    prefill, times = one_run()
    return {"prefillMs": prefill, "stepMs": times, "medianStepMs": statistics.median(times)}


def peak_rss() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions() -> dict:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}


def serve(settings: dict) -> None:
    """A worker of `npm run train`: `round` on the input -> one round of steps, `end` -> peak memory."""
    if settings["method"] != "lora":
        sys.exit(f"PEFT is the peer for the method lora only, not for {settings['method']}")
    torch.set_num_threads(settings["threads"])
    step = trainer(settings["shape"], settings["options"]["r"], settings["batch"], settings["length"])
    say = lambda message: print(json.dumps(message), flush=True)  # noqa: E731
    say({"ready": versions()})
    for line in sys.stdin:
        if line.strip() == "round":
            times, losses = zip(*(step() for _ in range(settings["steps"])))
            say({"round": {"stepMs": times, "loss": losses[-1]}})
        elif line.strip() == "end":
            break
    say({"end": {"peakRss": peak_rss()}})


def main() -> None:
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        serve(json.loads(sys.argv[1]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["train", "decode"])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, help="timed steps (train 5, decode 64)")
    parser.add_argument("--batch", type=int, default=8, help="train: sequences a step")
    parser.add_argument("--length", type=int, default=128, help="train: tokens a sequence")
    parser.add_argument("--past", type=int, default=128, help="decode: prompt tokens")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.mode == "train":
        options.steps = options.steps or 5
        step = trainer(options.shape, options.rank, options.batch, options.length)
        step()  # warm-up
        times, losses = zip(*(step() for _ in range(options.steps)))
        median = statistics.median(times)
        rate = options.batch * options.length / median * 1e3
        result = {"stepMs": times, "medianStepMs": median, "medianTokensPerSecond": rate, "losses": losses}
    else:
        options.steps = options.steps or 64
        result = decode(options.shape, options.rank, options.past, options.steps)
    print(json.dumps({**vars(options), **result, "peakRssBytes": peak_rss(), "versions": versions()}))


if __name__ == "__main__":
    main()
