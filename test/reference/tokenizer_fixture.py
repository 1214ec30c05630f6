"""Token ids and texts of the reference tokenizers, for `src/models/tokenizer.test.ts`.

Writes `test/fixtures/tokenizer.json`, and `test/fixtures/sentencepiece/`: a small BPE with byte fallback built the way
LLaMA 2's is, trained here on the text below (LLaMA 2's own may not be redistributed). A tokenizer kept elsewhere can be
compared too:  tokenizer_fixture.py DIRECTORY OUTPUT.json
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

ROOT = Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "test" / "fixtures"

# Universal Declaration of Human Rights, article 1: the most translated text there is.
TRAINING = [
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience "
    "et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und "
    "sollen einander im Geist der Brüderlichkeit begegnen.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны "
    "поступать в отношении друг друга в духе братства.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "if (x  ==  1) {\n    return  x + 2;\n}\n",
]

TEXTS = [
    "",
    " ",
    "   ",
    "a",
    "Hello world",
    " Hello  world ",
    "  leading, and trailing   ",
    "It's what they'd said: we'll, I'm, you've, DON'T.",
    "Line one\nLine two\r\n\n\n\tTabbed\t\ttwice   \n",
    "x = 12345.678e-9; y[0] += 2**10  # π ≈ 3.14159",
    "def f(n):\n    if n < 2:\n        return n\n    return f(n - 1) + f(n - 2)\n",
    *TRAINING,
    "Ça coûte 12,50 € — n'est-ce pas ? “Oui”, dit-elle…",
    "日本語のテキスト、漢字とカタカナ。한국어 문장도 있습니다. 中文繁體字測試。",
    "ภาษาไทยไม่มีช่องว่าง לא מבין עברית ქართული አማርኛ",
    "emoji: 😀👍🏽 👩‍👩‍👧‍👦 🇩🇪🏳️‍🌈 ❤️ 1️⃣ 🤷🏾‍♀️",
    "combining: e\u0301 n\u0303 a\u0308\u0323 Z\u0351\u036b\u0343\u036a\u0302\u036b g̈ é é",
    "digits: ² ³ ½ ⅷ ٣٤٥ 七 ४५ 1²3 ①② x² m³",
    "spaces: a\u00a0b\u2003c\u3000d\u200be\u2028f\u2029g\u0085h\ufeffi\u202fj \u00a0 k",
    "\ufeffbyte order mark first",
    "white or not:  \x85x  \ufeff's \n\x85 \x85\ufeff  \x85!",
    "control: \x00\x01\x1f\x7f\x80\x9f end",
    "astral: 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𒀀 𝒳² \U0010ffff \ue000",
    "literal ▁ marks ▁▁ Ġ <0x41> <0xE4><0xBD>",
    "specials: <|im_start|>user\nhi<|im_end|> <|endoftext|><|pad|> <s> [INST] </s><unk> <s>x",
    "<s>",
    "<|im_end|>",
    " <s>  spaced  </s> ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ababababababababababababab cdcdcdcd",
    "                                  indented",
    "https://example.org/a/b?c=d&e=%20f#g_h-i~j",
    "MiXeD cAsE ЁЖИК ǅ ß ẞ İ ı ﬁ",
]


def sentencepiece() -> Tokenizer:
    """A BPE like LLaMA 2's: spaces become ▁, no pre-tokenizer, bytes for what the vocabulary lacks."""
    trained = Tokenizer(models.BPE())
    mark = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Words are split for training only, so that no merge crosses from a character to a ▁, as in SentencePiece.
    words = [("▁" + word) for text in TRAINING for word in text.split(" ")]
    trained.train_from_iterator(
        [*words, "▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁"] * 2,
        trainers.BpeTrainer(vocab_size=700, limit_alphabet=120, show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    vocab = {token: id for id, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])}
    for token in sorted(model["vocab"], key=model["vocab"].get):
        vocab[token] = len(vocab)
    merges = [tuple(merge) for merge in model["merges"]]
    result = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    result.normalizer = mark
    result.add_special_tokens(["<unk>", "<s>", "</s>"])
    result.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    result.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return result


def cases(tokenizer: Tokenizer) -> list[dict]:
    found = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        found.append(
            {
                "text": text,
                "ids": ids,
                "plain": tokenizer.encode(text, add_special_tokens=False).ids,
                "decoded": tokenizer.decode(ids, skip_special_tokens=True),
                "withSpecials": tokenizer.decode(ids, skip_special_tokens=False),
            }
        )
    return found


def broken(tokenizer: Tokenizer) -> list[dict]:
    """Ids that do not end, begin or go on at a character, as a model may sample them."""
    found = []
    for text in ["😀👍🏽 日本語", "a 👩‍👩‍👧‍👦 b"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for start, end in [(0, len(ids) - 1), (1, len(ids)), (2, 5), (0, 2)]:
            part = ids[start:end]
            found.append({"ids": part, "decoded": tokenizer.decode(part)})
        found.append({"ids": ids[::-1], "decoded": tokenizer.decode(ids[::-1])})
    return found


def main() -> None:
    if len(sys.argv) == 3:
        tokenizer = Tokenizer.from_file(str(Path(sys.argv[1]) / "tokenizer.json"))
        Path(sys.argv[2]).write_text(json.dumps({"cases": cases(tokenizer)}))
        return
    directory = FIXTURES / "sentencepiece"
    directory.mkdir(parents=True, exist_ok=True)
    # The trainer breaks ties differently in every run, so one that is there is kept.
    if not (directory / "tokenizer.json").exists():
        trained = json.loads(sentencepiece().to_str())
        (directory / "tokenizer.json").write_text(json.dumps(trained, ensure_ascii=False) + "\n")
    small = Tokenizer.from_file(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "legacy": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    tiny = Tokenizer.from_file(str(ROOT / "assets" / "tiny-llama" / "tokenizer.json"))
    fixture = {
        "assets/tiny-llama": {"cases": cases(tiny), "broken": broken(tiny)},
        "test/fixtures/sentencepiece": {"cases": cases(small), "broken": broken(small)},
    }
    # ASCII only: the texts hold separators and byte order marks that editors change.
    (FIXTURES / "tokenizer.json").write_text(json.dumps(fixture).replace('{"text"', '\n{"text"') + "\n")


main()
