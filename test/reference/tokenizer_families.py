"""The tokenizers of the model families in small, for `src/models/tokenizer/families.test.ts`.

Writes `test/fixtures/tokenizers/families.json`. Each family has the normalizer, pre-tokenizer, post-processor, decoder
and added tokens of the real one; the vocabularies are small and trained here (the real ones may not be redistributed).
The merges of the byte-level one cross all borders of words, so that a border set wrongly changes the ids.

Per family: the ids of TEXTS; and, for thousands of strings drawn from all scripts of Unicode and for random ids, a hash
of 16 bits each. The test draws the same strings. To see what the reference makes of string number N of a family:

    tokenizer_families.py FAMILY N
"""

import json
import sys
import unicodedata
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "tokenizers"
STRINGS = 2000
SEQUENCES = 300
MASK = 0xFFFFFFFF

TRAINING = [
    "All human beings are born free and equal in dignity and rights. They're endowed with reason, and it's said we'll "
    "act towards one another in a spirit of brotherhood. I'm sure they'd do; you've seen it. DON'T SAY IT'S 'LL",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.  Ils sont doués de raison.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.\n\n\n  Sie sind begabt\t\tund\r\n\r\nsollen",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Όλοι οι άνθρωποι γεννιούνται ελεύθεροι",
    "人人生而自由，在尊严和权利上一律平等。すべての人間は、生まれながらにして自由であり、모든 인간은 태어날 때부터 자유로우며",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. כל בני האדם נולדו בני חורין सभी मनुष्यों को गौरव ก็มนุษย์ทั้งหลาย",
    "if (x  ==  1) {\n    return  x + 2;\n}\n        y = [1, 22, 333, 4444, 55555, 666666];  // 1234567890 2024-01-01",
    "https://example.org/a/b?c=d&e=%20f#g_h-i~j <b>x</b> e\u0301 n\u0303 a\u0308 😀👍🏽 ٣٤٥ ½ ² 0000 11 0.5 $100",
]

TEXTS = [
    "", " ", "  ", "a", " a", "a ", "Hello world", " Hello  world ", "   leading, and trailing   ", "\n", "\n\n \n", "\t",
    "It's what they'd said: we'll, I'm, you've, DON'T, IT'S WE'LL I'M YOU'VE THEY'RE HE'D 's's 'S'Ll it’s x'ſ 'Kelvin",
    "Line one\nLine two\r\n\n\n\tTabbed\t\ttwice   \n   \r\n \r x",
    "x = 12345.678e-9; y[0] += 2**10  # π ≈ 3.14159, 1 12 123 1234 12345 123456 1234567",
    "def f(n):\n    if n < 2:\n        return n\n    return f(n - 1) + f(n - 2)\n",
    "https://example.org/a/b?c=d&e=%20f#g_h-i~j mail@example.org C:\\dir\\file.txt /usr/lib//x.so",
    "combining e\u0301 n\u0303 a\u0308\u0323 Z\u0351\u036b\u0343\u036a g\u0308 \u0301 alone é ñ ǖ Å \u212b ﬁ ﬀ ½ ² ① Ⅷ",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg. ẞ ß ſ",
    "Ça coûte 12,50 € — n'est-ce pas ? «Oui», dit-elle… l'œuvre de Zoë",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία ΣΊΣΥΦΟΣ ς σ",
    "Съешь же ещё этих мягких французских булок, да выпей чаю й ё \u0438\u0306",
    "نص حكيم له سر قاطع وذو شأن عظيم ٠١٢٣٤ ۱۲۳ لا اَلْعَرَبِيَّةُ ـــ",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה שָׁלוֹם",
    "ऋषियों को सताने वाले दुष्ट क्ष त्र ज्ञ क्‍ष क्‌ष ४५६ स्त्री",
    "ภาษาไทยไม่มีช่องว่าง น้ำ เก้าอี้ ๑๒๓", "বাংলা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം ქართული አማርኛ ខ្មែរ မြန်မာ བོད་ཡིག",
    "日本語のテキスト、漢字とカタカナ。ｶﾀｶﾅ ＡＢＣ１２３ 々〆〇", "中文繁體字測試，简体字测试。「引号」《书名》 ２０２４年１月",
    "한국어 문장도 있습니다. \u1112\u1161\u11ab\u1100\u1173\u11af ㅋㅋㅋ ㅎㅎ",
    "emoji: 😀👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷🏳️‍🌈 ❤️ 1️⃣ 🤷🏾‍♀️ ©®™ ☺︎",
    "astral 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𒀀 𝒳² 𠀋 \U0010ffff \ue000 \U000f0000 \ufffe \ufffd",
    "digits ² ³ ½ ⅷ ٣٤٥ 七 ४५ 1²3 ①② x² m³ ᛮ 〡〢 𝟘𝟙 １２３４５",
    "spaces a\u00a0b\u2003c\u3000d\u200be\u2028f\u2029g\u0085h\ufeffi\u202fj \u00a0 k\u3000\u3000 \u2028\u2028 \u1680x\u180ey",
    "\ufeffbyte order mark", "\u3000ideographic first", "last ideographic\u3000", "white \x85x  \ufeff's \n\x85 \x85\ufeff  \x85!\x0b\x0c x\x1c\x1d\x1e\x1f",
    "control \x01\x1f\x7f\x80\x9f end \x00 nul", "zero\u200dwidth\u200cjoin\u2060er\u00adsoft \u202eright\u202c \u2066x\u2069",
    "literal ▁ marks ▁▁ ▁a Ġ Ċ <0x41> <0xE4><0xBD> <0xFF", "_under__score_ snake_case CamelCase XMLHttpRequest iPhone ABCdefGHI aB",
    "...!!!??? --- *** ((())) [[]] {{}} <<>> ;;; ::: ,,, ''' \"\"\" ``` ~~~ ### $$$ %%% ^^^ &&& +++ === ||| \\\\\\ ///\n//\r\n!\n\n?",
    "specials <|im_start|>user\nhi<|im_end|> <|endoftext|><|pad|> <s> [INST] x [/INST] </s><unk> <s>x <bos>a<eos>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<s>", " <s> ", "</s> a", "a</s>", "<s><s>", "<|endoftext|>", "x<|endoftext|>", "<|end|>  \n x<|end|>\n", "<s", "<|im_end|", "<<s>>",
    " <l>  <l>a<l>\t<l>\u3000<l>", " <r>  <r>a<r>\t<r>\u3000<r> ", " <b>  <b>a<b> \n <b>", "wordword word-word word word. _word (word) wordé 3word",
    " NoRm norm NORM <Norm> <norm> x", "<a>b<a>bc<a>", "▁tok tok  tok", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ababababababababababababab cdcdcdcd \x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20indented",
    "MiXeD cAsE ЁЖИК ǅ ß ẞ İ ı ﬁ ΑΣ Σ", "a\nb\n\nc\n\n\nd\n\n\n\ne \n f\n g", "x\r\ny\r\n\r\nz\r\rw\n\r", "the the the and and in in dignity and rights",
]


def token(id: int, content: str, **flags: bool) -> dict:
    kinds = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content, **kinds, **flags}


def train(lines: list[list[str]], count: int) -> list[tuple[str, str]]:
    """The most frequent pair, again and again; equals by spelling, so that every run gives the same merges."""
    merges = []
    for _ in range(count):
        pairs = Counter(pair for line in lines for pair in zip(line, line[1:]))
        best, times = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if times < 1:
            break
        merges.append(best)
        for line in lines:
            for at in range(len(line) - 2, -1, -1):
                if at + 1 < len(line) and (line[at], line[at + 1]) == best:
                    line[at : at + 2] = ["".join(best)]
    return merges


def byte_characters() -> list[str]:
    """GPT-2's table from bytes to printable characters."""
    table, moved = [], 0
    for byte in range(256):
        printable = 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)
        table.append(chr(byte if printable else 256 + moved))
        moved += not printable
    return table


def bases() -> dict:
    table = byte_characters()
    merges = train([[table[byte] for byte in line.encode()] for line in TRAINING], 520)
    tokens = [*sorted(table), *("".join(merge) for merge in merges)]
    byte_level = {"tokens": list(dict.fromkeys(tokens)), "merges": merges}
    # Words with the blank before them, as SentencePiece trains.
    words = ["▁" + word for line in TRAINING for word in line.split(" ")] + ["▁▁▁▁", "▁▁▁▁▁▁▁▁", "▁▁▁▁"]
    merges = train([list(word) for word in words], 420)
    characters = sorted({c for word in words for c in word if c < "\u3000" and c not in "\n\r\t"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    known = set(tokens)
    kept = []
    for left, right in merges:
        if left in known and right in known:
            kept.append((left, right))
            known.add(left + right)
    tokens += [left + right for left, right in kept]
    return {"bytes": byte_level, "pieces": {"tokens": list(dict.fromkeys(tokens)), "merges": kept}}


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*steps: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def byte_level(prefix: bool = False, regex: bool = False) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def around(front: list[str], back: list[str], ids: dict[str, int]) -> dict:
    """TemplateProcessing."""
    mark = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    specials = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in [*front, *back]}
    body = [*map(mark, front), {"Sequence": {"id": "A", "type_id": 0}}, *map(mark, back)]
    return {"type": "TemplateProcessing", "single": body, "pair": [*body, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": specials}


def metaspace(scheme: str, cut: bool) -> dict:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


def replace(pattern: str, content: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
POSSESSIVE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK3 = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

BYTES_DECODER = byte_level(True, True)
PIECES_DECODER = {
    "type": "Sequence",
    "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
}
BPE = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
LLAMA2_NORMALIZER = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]}


def families(known: dict) -> dict:
    """name: base and the parts of tokenizer.json."""
    found: dict[str, dict] = {}

    def add(name: str, base: str, special: list[str], parts: dict, model: dict | None = None, more: list[dict] | None = None) -> None:
        ids = {spelling: id for id, spelling in enumerate(known[base]["tokens"])}
        added = []
        for spelling in [*special, *(more or [])]:
            entry = token(0, spelling) if isinstance(spelling, str) else dict(spelling)
            entry["id"] = ids.setdefault(entry["content"], len(ids))
            added.append(entry)
        front, back = parts.pop("around", ([], []))
        post = around(front, back, ids) if front or back else None
        if base == "bytes":
            byte_post = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
            post = {"type": "Sequence", "processors": [byte_post, post]} if post else byte_post
        whole = {"normalizer": None, "pre_tokenizer": None, "post_processor": post, **parts}
        whole.setdefault("decoder", BYTES_DECODER if base == "bytes" else PIECES_DECODER)
        kind = {} if base == "bytes" else {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        found[name] = {"base": base, "added_tokens": sorted(added, key=lambda entry: entry["id"]), **whole, "model": {**BPE, **kind, **(model or {})}}

    ends = ["<|endoftext|>"]
    chatml = [*ends, "<|im_start|>", "<|im_end|>"]
    add("gpt2", "bytes", ends, {"pre_tokenizer": byte_level(False, True)})
    add("gpt2-prefix", "bytes", ends, {"pre_tokenizer": byte_level(True, True)})
    add("llama3", "bytes", ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        {"pre_tokenizer": sequence(split(LLAMA3), byte_level()), "around": (["<|begin_of_text|>"], [])}, {"ignore_merges": True})
    add("qwen2", "bytes", chatml, {"normalizer": {"type": "NFC"}, "pre_tokenizer": sequence(split(QWEN2), byte_level())})
    add("smollm2", "bytes", chatml, {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, byte_level(False, True))})
    add("digits-together", "bytes", chatml, {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False}, byte_level(False, True))})
    add("tekken", "bytes", ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        {"pre_tokenizer": sequence(split(TEKKEN), byte_level()), "around": (["<s>"], [])}, {"ignore_merges": True})
    add("o200k", "bytes", ends, {"pre_tokenizer": sequence(split(O200K, "Removed", True), byte_level())})
    add("possessive", "bytes", ends, {"pre_tokenizer": sequence(split(POSSESSIVE), byte_level())})
    add("deepseek", "bytes", ["<s>", "</s>"], {"pre_tokenizer": sequence(
        split("[\r\n]"), split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕ]+"),
        split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"), split(r"[一-龥ࠀ-一가-퟿]+"),
        {"type": "Digits", "individual_digits": True}, byte_level()), "around": (["<s>"], [])})
    add("deepseek3", "bytes", ["<s>", "</s>"], {"pre_tokenizer": sequence(
        split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK3), byte_level())})
    add("falcon", "bytes", ends, {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Contiguous"}, byte_level(False, True),
        {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]"))})
    add("starcoder", "bytes", ends, {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, byte_level(False, True)), "around": ([], ends)})
    add("bloom", "bytes", ["<s>", "</s>"], {"pre_tokenizer": sequence(split(BLOOM), byte_level())})
    for behavior in ["Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        add(f"split-{behavior}", "bytes", ends, {"pre_tokenizer": sequence(split(r"\p{N}|[ \n]|\p{Han}", behavior), byte_level())})
        add(f"split-inverted-{behavior}", "bytes", ends, {"pre_tokenizer": sequence(split(r"\p{L}+|[.,]", behavior, True), byte_level())})
    add("words", "bytes", ends, {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}]},
        "pre_tokenizer": sequence({"type": "Whitespace"}, byte_level())})
    add("bert-words", "bytes", ends, {"normalizer": {"type": "NFKC"}, "pre_tokenizer": sequence({"type": "BertPreTokenizer"}, byte_level())})
    add("white", "bytes", ends, {"normalizer": {"type": "NFD"}, "pre_tokenizer": sequence({"type": "WhitespaceSplit"}, {"type": "CharDelimiterSplit", "delimiter": "-"}, {"type": "Punctuation", "behavior": "Isolated"}, byte_level())})

    llama2 = ["<unk>", "<s>", "</s>"]
    add("llama2", "pieces", llama2, {"normalizer": LLAMA2_NORMALIZER, "around": (["<s>"], [])})
    add("mistral3", "pieces", [*llama2, "[INST]", "[/INST]"], {"pre_tokenizer": metaspace("first", False), "around": (["<s>"], [])})
    for scheme in ["first", "always", "never"]:
        for cut in [True, False]:
            decoder = {**metaspace(scheme, cut)}
            add(f"metaspace-{scheme}-{'split' if cut else 'whole'}", "pieces", llama2, {"pre_tokenizer": metaspace(scheme, cut), "decoder": decoder, "around": ([], ["</s>"])})
    phi3 = [token(0, name, rstrip=True) for name in ["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>", "<|im_end|>"]]
    add("phi3", "pieces", ["<unk>", "<s>", token(0, "</s>", rstrip=True, special=False)], {"normalizer": LLAMA2_NORMALIZER}, None, phi3)
    gemma = [token(0, run * count, special=False) for run in ["\n", "▁", "\t"] for count in range(2, 8)]
    add("gemma", "pieces", ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        {"normalizer": replace(" ", "▁"), "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
         "decoder": {"type": "Sequence", "decoders": PIECES_DECODER["decoders"][:3]}, "around": (["<bos>"], [])}, None, gemma)
    # A special token that normalising changes is no longer left out by the reference; here it is.
    zoo = [token(0, "<l>", lstrip=True), token(0, "<r>", rstrip=True), token(0, "<b>", lstrip=True, rstrip=True), token(0, "word", single_word=True, special=False),
           token(0, "NoRm", normalized=True, special=False), token(0, "<Norm>", normalized=True, special=False), token(0, "<a>"), token(0, "<a>b"), token(0, "▁tok", special=False), token(0, "tok", normalized=True, special=False, lstrip=True)]
    add("zoo", "pieces", llama2, {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, replace(" ", "▁")]}}, None, zoo)
    add("zoo-bytes", "bytes", ends, {"pre_tokenizer": byte_level(False, True)}, None, zoo)
    add("no-fallback", "pieces", llama2, {"normalizer": LLAMA2_NORMALIZER}, {"byte_fallback": False, "fuse_unk": True})
    add("no-fusing", "pieces", llama2, {"normalizer": {"type": "Sequence", "normalizers": [replace(r"\s+", " ", "Regex"), replace(" ", "▁")]}}, {"byte_fallback": False, "fuse_unk": False})
    return found


def whole(family: dict, known: dict) -> dict:
    """tokenizer.json of a family."""
    base = known[family["base"]]
    model = {**family["model"], "vocab": {spelling: id for id, spelling in enumerate(base["tokens"])}, "merges": base["merges"]}
    rest = {key: value for key, value in family.items() if key not in ("base", "model")}
    return {"version": "1.0", "truncation": None, "padding": None, **rest, "model": model}


class Draw:
    """The same small generator as in the test: xorshift of 32 bits."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, limit: int) -> int:
        x = self.state
        x ^= (x << 13) & MASK
        x ^= x >> 17
        x ^= (x << 5) & MASK
        self.state = x
        return x % limit


def scripts() -> list[list[int]]:
    """Runs of assigned characters, surrogates left out, cut into pieces of at most 256."""
    runs: list[list[int]] = []
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cn", "Cs"):
            continue
        if runs and runs[-1][1] == code - 1 and code % 256:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    # One in fifty of the thousands of equal pieces of Han, Hangul and private use.
    return [run for at, run in enumerate(runs) if run[1] - run[0] < 255 or run[0] < 0x3000 or at % 50 == 0]


PARTS = [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "1", "23", "4567", "a", "the", " and", "E", ".", ", ", "--", "_", "\u00a0", "\u0301", "▁", "<s>", "é", "\u3000", "\u200d", "😀"]


def strings(runs: list[list[int]]) -> list[str]:
    draw = Draw(20240607)
    found = []
    for _ in range(STRINGS):
        low, high = runs[draw.below(len(runs))]
        text = ""
        for _ in range(1 + draw.below(12)):
            text += PARTS[draw.below(len(PARTS))] if draw.below(3) == 0 else chr(low + draw.below(high - low + 1))
        found.append(text)
    return found


def sequences(size: int) -> list[list[int]]:
    draw = Draw(77)
    found = []
    for _ in range(SEQUENCES):
        limit = size if draw.below(2) else min(size, 300)
        found.append([draw.below(limit + 2) for _ in range(draw.below(14))])
    return found


def digest(numbers: list[int] | bytes) -> str:
    """FNV-1a, folded to 16 bits."""
    hash = 0x811C9DC5
    for number in numbers:
        hash = ((hash ^ number) * 0x01000193) & MASK
    return f"{(hash ^ (hash >> 16)) & 0xFFFF:04x}"


def main() -> None:
    known = bases()
    runs = scripts()
    texts = strings(runs)
    found = families(known)
    if len(sys.argv) == 3:
        tokenizer = Tokenizer.from_str(json.dumps(whole(found[sys.argv[1]], known)))
        text = texts[int(sys.argv[2])]
        print(json.dumps(text), tokenizer.encode(text).ids, tokenizer.encode(text).tokens)
        return
    for name, family in found.items():
        tokenizer = Tokenizer.from_str(json.dumps(whole(family, known)))
        encode = lambda text: tokenizer.encode(text).ids
        decode = lambda ids, skip: digest(tokenizer.decode(ids, skip_special_tokens=skip).encode())
        ids = [encode(text) for text in TEXTS]
        drawn = sequences(tokenizer.get_vocab_size())
        family["expected"] = {
            "ids": ids,
            "plain": "".join(digest(tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS),
            "decoded": "".join(decode(row, skip) for skip in (True, False) for row in ids),
            "strings": "".join(digest(encode(text)) for text in texts),
            "sequences": "".join(decode(row, skip) for skip in (True, False) for row in drawn),
        }
    FIXTURES.mkdir(parents=True, exist_ok=True)
    fixture = {"bases": known, "texts": TEXTS, "parts": PARTS, "runs": runs, "strings": STRINGS, "sequences": SEQUENCES, "families": found}
    lines = json.dumps(fixture, separators=(",", ":")).replace('"added_tokens":', '\n"added_tokens":').replace('"expected":', '\n"expected":')
    (FIXTURES / "families.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
