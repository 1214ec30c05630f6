"""SentencePiece models, and what the Python package makes of texts with them.

Writes `test/fixtures/tokenizers/sentencepiece/`: a `NAME.model` for each kind, and `expected.json`, for
`src/models/tokenizer/sentencepiece.test.ts`. Texts and drawn strings are those of `tokenizer_families.py`; the names of
control pieces in them are changed, which the package takes as letters and Tokenizer as tokens.
To see what the package makes of string number N:  tokenizer_sentencepiece.py MODEL N
"""

import io
import json
import sys
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizer_families import FIXTURES, TEXTS, TRAINING, bases, digest, families, scripts, strings

OUTPUT = FIXTURES / "sentencepiece"
# Wide letters, ligatures, fractions, several characters at once, and some that go.
RULES = ["FF21\t41", "FF22\t42", "FF11\t31", "FB01\t66 69", "FB00\t66 66", "BD\t31 2044 32", "65 301\tE9", "6E 303\tF1", "A0\t20", "3000\t20", "2003\t20",
         "200B\t", "1\t", "AD\t", "9\t20", "A\t20", "D\t20", "D A\t20", "1F600\t3A 29", "2026\t2E 2E 2E", "FF76\t30AB", "FF76 FF9E\t30AC", "212B\tC5", "41 30A\tC5"]  # fmt: skip

COMMON = {"vocab_size": 460, "num_threads": 1, "minloglevel": 2, "max_sentence_length": 10000, "character_coverage": 1.0, "hard_vocab_limit": False}


def train(**options: object) -> proto.ModelProto:
    writer = io.BytesIO()
    lines = [line.replace("\n", " ").replace("\r", " ") for line in TRAINING] * 4
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=writer, **{**COMMON, **options})
    model = proto.ModelProto()
    model.ParseFromString(writer.getvalue())
    # The trainer's own settings, paths among them, are of no use here.
    kept = {name: getattr(model.trainer_spec, name) for name in ("model_type", "byte_fallback", "unk_id", "bos_id", "eos_id", "pad_id")}
    model.trainer_spec.Clear()
    for name, value in kept.items():
        setattr(model.trainer_spec, name, value)
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    model.ClearField("self_test_data")
    return model


def models() -> dict[str, proto.ModelProto]:
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True}
    with tempfile.TemporaryDirectory() as directory:
        rules = Path(directory) / "rules.tsv"
        rules.write_text("".join(f"{rule}\t\n" if rule.endswith("\t") else f"{rule}\n" for rule in RULES))
        own = {"normalization_rule_tsv": str(rules)}
        symbols = ["<start>", "<end>", "▁▁", "▁▁▁", "ing", "12"]
        found = {
            "llama": train(model_type="bpe", byte_fallback=True, split_digits=True, **plain, vocab_size=700),
            "gemma": train(model_type="bpe", byte_fallback=True, add_dummy_prefix=False, split_digits=True, user_defined_symbols=symbols, bos_id=2, eos_id=1, pad_id=0, unk_id=3, **plain, vocab_size=700),
            "rules": train(model_type="bpe", user_defined_symbols=["<start>", "1\u20442"], **own),
            "rules-kept-spaces": train(model_type="bpe", remove_extra_whitespaces=False, byte_fallback=True, **own, vocab_size=700),
            "unigram": train(model_type="unigram", user_defined_symbols=symbols, **own),
            "unigram-bytes": train(model_type="unigram", byte_fallback=True, **plain, vocab_size=560),
        }
    # Many pieces of equal score: the leftmost joins first.
    tied = proto.ModelProto()
    tied.CopyFrom(found["llama"])
    for piece in tied.pieces:
        piece.score = float(round(piece.score / 40))
    return {**found, "ties": tied}


def plain(text: str) -> str:
    return text.replace("<s>", "<t>").replace("</s>", "</t>").replace("<unk>", "<u>").replace("<pad>", "<p>")


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    drawn = [plain(text) for text in strings(scripts())]
    texts = [plain(text) for text in TEXTS]
    expected = {}
    for name, model in models().items():
        data = model.SerializeToString()
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        if len(sys.argv) == 3:
            if sys.argv[1] == name:
                text = drawn[int(sys.argv[2])]
                print(json.dumps(text), processor.encode(text), processor.encode(text, out_type=str))
            continue
        (OUTPUT / f"{name}.model").write_bytes(data)
        expected[name] = {"ids": [processor.encode(text) for text in texts], "strings": "".join(digest(processor.encode(text)) for text in drawn)}
    if expected:
        (OUTPUT / "expected.json").write_text(json.dumps({"texts": texts, "models": expected}, separators=(",", ":")).replace('"ids":', '\n"ids":') + "\n")


main()
