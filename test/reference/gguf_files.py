"""Writes test/fixtures/gguf/: the tiny backbones as GGUF files of several types, made with llama.cpp's own Python package.

    <name>.gguf        a backbone of test/fixtures/backbones with its name mapping, row order and metadata as
                       llama.cpp's convert_hf_to_gguf.py writes them, weights quantised with gguf.quants
    blocks.gguf        random blocks of every type, and blocks.safetensors, what gguf.quants makes of them
    metadata.gguf      a value of every metadata type
    tokenizer-*.gguf   small vocabularies of each kind of tokenizer, no weights; tokenizers.json: texts and their ids, from
                       sentencepiece and, for byte-level BPE, tokenizers with the pre-tokenizers of transformers
    expected.json      for each model the digests of its dequantised weights, logits and greedy tokens of transformers

pip install gguf==0.19.0
"""

import io
import json
import math
import random

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter, GGMLQuantizationType, LlamaFileType, RopeScalingType, TokenType
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2 import tokenization_qwen2 as qwen2

from common import BOS, EOS, FIXTURES, PAD, VOCAB, fresh_directory, random_tokens, write_json
from tokenizer_fixture import TRAINING

T = GGMLQuantizationType
BLOCKS = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]
# file: backbone, type of the matrices
MODELS = {
    "llama-gqa-f32": ("llama-gqa", T.F32),
    "llama-tied-f16": ("llama-tied", T.F16),
    "llama-headdim-bf16": ("llama-headdim", T.BF16),
    "llama-gqa-q8_0": ("llama-gqa", T.Q8_0),
    "llama-gqa-q4_0": ("llama-gqa", T.Q4_0),
    "llama-tied-q5_1": ("llama-tied", T.Q5_1),
}
# Of these GGUF files cannot say all: files made by llama.cpp's converter leave out what is changed here.
FAMILIES = {
    "llama3": {}, "llama-linear": {}, "llama-biases": {}, "mistral": {"sliding_window": None}, "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16}, "gemma3": {"query_pre_attn_scalar": 16}, "qwen2": {"use_sliding_window": False},
    "qwen2-yarn": {}, "qwen3": {}, "phi3": {}, "phi3-global": {"sliding_window": None}, "phi3-long": {},
}  # fmt: skip
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
SANDWICH = LAYER | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
PHI3 = LAYER | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
ARCHITECTURES = {
    "llama": ("llama", LAYER), "mistral": ("llama", LAYER), "qwen2": ("qwen2", LAYER), "qwen3": ("qwen3", LAYER),
    "gemma": ("gemma", LAYER), "gemma2": ("gemma2", SANDWICH), "gemma3_text": ("gemma3", SANDWICH),
    "phi3": ("phi3", PHI3),
}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str, layers: dict) -> str:
    path, kind = name.rsplit(".", 1)
    if path in TOP:
        return f"{TOP[path]}.{kind}"
    _, _, layer, module = path.split(".", 3)
    return f"blk.{layer}.{layers[module]}.{kind}"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf.py, LlamaModel.permute: ggml rotates neighbours, transformers the two halves of a head."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def metadata(writer: GGUFWriter, config, architecture: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    if architecture == "gemma3":
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
        rope = rope["full_attention"]
    else:
        writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if architecture != "phi3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture in ("llama", "phi3"):
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if architecture == "phi3":
        original = config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        if kind == "longrope":
            scale = config.max_position_embeddings / original
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    writer.add_vocab_size(config.vocab_size)
    if architecture in ("gemma2", "gemma3", "phi3") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def rope_tensors(writer: GGUFWriter, config) -> None:
    """Factors of the frequencies that the converter stores in place of a rule."""
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if rope.get("rope_type") == "llama3":
        frequencies = 1 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        original = rope["original_max_position_embeddings"]
        low, high = original / rope["low_freq_factor"], original / rope["high_freq_factor"]
        factors = []
        for frequency in frequencies:
            length = 2 * math.pi / frequency
            smooth = (original / length - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            between = 1 / ((1 - smooth) / rope["factor"] + smooth)
            factors.append(1.0 if length < high else rope["factor"] if length > low else float(between))
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    if rope.get("rope_type") == "longrope":
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32))


def vocabulary(writer: GGUFWriter, size: int) -> None:
    """No text is tokenised in these tests, but llama.cpp wants a vocabulary: specials, made-up words, one merge."""
    tokens = ["<pad>", "<bos>", "<eos>"] + [f"w{i}" for i in range(3, size - 2)] + ["w", "3"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["w 3"])
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (size - 3))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)


def write_model(path, model, kind: T) -> dict:
    """-> the weights as transformers names them, dequantised."""
    config = model.config
    architecture, layers = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")  # llama.cpp wants certain tokens in models named after Phi-3
    writer.add_quantization_version(2)
    writer.add_file_type(LlamaFileType.ALL_F32)
    metadata(writer, config, architecture)
    vocabulary(writer, config.vocab_size)
    rope_tensors(writer, config)
    back = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = parameter.to(torch.float32).numpy()
        if "norm" in name and architecture.startswith("gemma"):
            weight = weight + 1
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if architecture == "llama" and heads:
            weight = permute(weight, heads)
        type_ = T.F32 if weight.ndim == 1 or "norm" in name else kind
        stored = quantize(weight, type_)
        writer.add_tensor(gguf_name(name, layers), stored, raw_dtype=type_)
        restored = dequantize(stored, type_).reshape(weight.shape)
        if architecture == "llama" and heads:  # the inverse: halves of a head back together
            n = weight.shape[0] // heads // 2
            restored = restored.reshape(heads, n, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
        if "norm" in name and architecture.startswith("gemma"):
            restored = restored - 1
        back[name] = np.ascontiguousarray(restored)
    finish(writer)
    return back


@torch.no_grad()
def computed(model, weights: dict, seed: int, lengths=(1, 9, 24)) -> list:
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    model.tie_weights()
    rng = random.Random(seed)
    cases = []
    for length in lengths:
        tokens = random_tokens(rng, length)
        cases.append({"tokens": tokens, "lastLogits": model(torch.tensor([tokens])).logits[0, -1]})
    return cases


def converted(directory) -> dict:
    expected = {}
    for seed, (name, (backbone, kind)) in enumerate(MODELS.items()):
        source = FIXTURES / "backbones" / backbone
        if not source.exists():
            continue
        config = AutoConfig.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        weights = write_model(directory / f"{name}.gguf", model, kind)
        expected[name] = {"backbone": f"backbones/{backbone}", "type": kind.name, "sequences": computed(model, weights, seed)}
        print(name, (directory / f"{name}.gguf").stat().st_size)
    for seed, (name, changes) in enumerate(FAMILIES.items()):
        source = FIXTURES / "families" / name.removesuffix("-global")
        config = AutoConfig.from_pretrained(source)
        for key, value in changes.items():
            setattr(config, key, value)
            if key == "use_sliding_window":
                config.layer_types = ["full_attention"] * config.num_hidden_layers
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        path = directory / f"{name}.gguf"
        weights = write_model(path, model, T.BF16)
        cases = computed(model, weights, 100 + seed, [2, 9, 20] if name == "phi3-long" else [2, 9, 50])
        expected[name] = {"backbone": f"families/{source.name}", "type": "BF16", "sequences": cases}
        print(name, path.stat().st_size)
    return expected


def blocks(directory) -> None:
    """Random bytes, with sane float16 scales, for each type; rows of 512 weights."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(directory / "blocks.gguf", "llama")
    reference = {}
    for kind in BLOCKS:
        values = rng.standard_normal((3, 512)).astype(np.float32)
        if kind in (T.Q4_K, T.Q5_K, T.Q6_K):
            size = {T.Q4_K: 144, T.Q5_K: 176, T.Q6_K: 210}[kind]
            raw = rng.integers(0, 256, (3, 2, size), dtype=np.uint8)
            for at in [208] if kind == T.Q6_K else [0, 2]:
                raw[:, :, at : at + 2] = rng.standard_normal((3, 2, 1)).astype(np.float16).view(np.uint8)
            stored = raw.reshape(3, -1)
        else:
            stored = quantize(values, kind)
        writer.add_tensor(f"{kind.name}", stored, raw_dtype=kind)
        reference[kind.name] = np.ascontiguousarray(dequantize(stored, kind).reshape(3, 512))
    finish(writer)
    save_file(reference, directory / "blocks.safetensors")
    (directory / "blocks.safetensors").chmod(0o644)


def every_type(directory) -> None:
    writer = GGUFWriter(directory / "metadata.gguf", "llama")
    writer.add_uint8("t.uint8", 200)
    writer.add_int8("t.int8", -100)
    writer.add_uint16("t.uint16", 60000)
    writer.add_int16("t.int16", -30000)
    writer.add_uint32("t.uint32", 4000000000)
    writer.add_int32("t.int32", -2000000000)
    writer.add_float32("t.float32", 0.1)
    writer.add_uint64("t.uint64", 2**64 - 1)
    writer.add_int64("t.int64", -(2**53))
    writer.add_float64("t.float64", 0.1)
    writer.add_bool("t.bool", True)
    writer.add_string("t.string", "Grüße, 世界 🌍")
    writer.add_array("t.strings", ["a", "", "ß"])
    writer.add_array("t.integers", [1, -2, 3])
    writer.add_array("t.floats", [0.5, -1.5])
    writer.add_array("t.bools", [True, False])
    writer.add_key_value("t.bytes", [1, 255], GGUFValueType.ARRAY, GGUFValueType.UINT8)
    writer.add_key_value("t.wide", [2**40, 1], GGUFValueType.ARRAY, GGUFValueType.UINT64)
    finish(writer)


TEXTS = [
    "", " ", "a", "Hello world", " Hello  world ", "   three blanks and\ttabs\n\nlines \r\n", "It's what they'd SAY, I'LL.",
    "x = 12345.678e-9; y[0] += 2**10  # pi", "Ça coûte 12,50 € - n'est-ce pas ?", "日本語のテキスト。한국어 문장", "ß😀👍🏽 e\u0301",
    "<s> and </s>, <|endoftext|>then<|im_end|>\n more", "▁▁ marks Ġ", "all human beings are born free", "tab\there",
    "人人生而自由，在尊严和权利上一律平等。", "\u00a0nbsp\u3000wide", "1 22 333 4444 55555", "<0x41>",
]  # fmt: skip


def sentencepiece_vocabulary(directory) -> dict:
    """A SentencePiece BPE as LLaMA 2's: byte fallback, no normalisation, a space before the text."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING), model_writer=model, model_type="bpe", vocab_size=700, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=1.0, num_threads=1,
        user_defined_symbols=["<|user|>"], minloglevel=2,
    )  # fmt: skip
    processor = SentencePieceProcessor(model_proto=model.getvalue())
    writer = GGUFWriter(directory / "tokenizer-spm.gguf", "llama")
    kinds = []
    for id_ in range(processor.vocab_size()):
        kind = TokenType.NORMAL
        if processor.IsUnknown(id_):
            kind = TokenType.UNKNOWN
        elif processor.IsControl(id_):
            kind = TokenType.CONTROL
        elif processor.IsByte(id_):
            kind = TokenType.BYTE
        elif processor.IdToPiece(id_) == "<|user|>":
            kind = TokenType.USER_DEFINED
        kinds.append(kind)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([processor.IdToPiece(i) for i in range(len(kinds))])
    writer.add_token_scores([processor.GetScore(i) for i in range(len(kinds))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}<|user|>{{ m.content }}{{ eos_token }}{% endfor %}")
    finish(writer)
    # The names of control tokens in a text become those tokens here, and text for sentencepiece: no such texts.
    plain = [text for text in [*TEXTS, *TRAINING] if "<s>" not in text and "</s>" not in text and text]
    cases = [{"text": t, "ids": [processor.bos_id(), *processor.encode(t)], "decoded": processor.decode(processor.encode(t))} for t in plain]
    return {"file": "tokenizer-spm.gguf", "cases": cases}


def byte_level_vocabularies(directory) -> list:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    # Merges that know no words, numbers or lines, so that ids tell where a pre-tokenizer cuts.
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    whole.train_from_iterator([*TRAINING, *[text for text in TEXTS if "<" not in text] * 3], trainer)
    vocab, merges = (json.loads(whole.to_str())["model"][key] for key in ("vocab", "merges"))
    sources = {
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "llama-bpe": split(TikTokenConverter(extra_special_tokens=[]).pattern),
        "qwen2": split(qwen2.PRETOKENIZE_REGEX),
    }
    results = []
    for pre, cut in sources.items():
        tokenizer = Tokenizer(models.BPE(vocab, [tuple(pair) for pair in merges], ignore_merges=pre == "llama-bpe"))
        tokenizer.add_special_tokens(specials)
        tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
        tokenizer.pre_tokenizer = cut
        tokenizer.decoder = decoders.ByteLevel()
        writer = GGUFWriter(directory / f"tokenizer-{pre}.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(sorted(vocab, key=vocab.get))
        writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(vocab) - 3))
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(2)
        finish(writer)
        front = [0] if pre == "llama-bpe" else []
        cases = [
            {"text": t, "ids": front + tokenizer.encode(t).ids, "decoded": tokenizer.decode(tokenizer.encode(t).ids)}
            for t in [*TEXTS, *TRAINING]
        ]
        results.append({"file": f"tokenizer-{pre}.gguf", "cases": cases})
    return results


def split(pattern: str):
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def finish(writer: GGUFWriter) -> None:
    """Sizes of a model where there are none, without which llama.cpp reads no vocabulary."""
    sizes = ["context_length", "embedding_length", "feed_forward_length", "head_count", "block_count"]
    if not any(key.endswith("context_length") for key in writer.kv_data[0]):
        for size in sizes:
            getattr(writer, f"add_{size}")(32)
        writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    directory = fresh_directory("gguf")
    blocks(directory)
    every_type(directory)
    tokenizer_files = [sentencepiece_vocabulary(directory), *byte_level_vocabularies(directory)]
    write_json(directory / "tokenizers.json", {"tokenizers": tokenizer_files})
    write_json(directory / "expected.json", converted(directory))
    assert len(GGUFReader(directory / "blocks.gguf").tensors) == len(BLOCKS)


if __name__ == "__main__":
    main()
