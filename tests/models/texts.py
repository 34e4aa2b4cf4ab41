"""Strings of every sort that a tokenizer may meet."""

from __future__ import annotations

import random

_WORDS = r"""
the quick brown fox 12345 3.14159 don't I'll we've O'Neill e-mail C++ naïve café Straße Привет
мир как дела Здравствуйте 你好 世界 中文 日本語 こんにちは カタカナ 한국어 안녕하세요 مرحبا العالم שלום
हिन्दी नमस्ते ไทย สวัสดี Ελληνικά καλημέρα Tiếng Việt ქართული Հայերեն አማርኛ ᚠᛇᚻ zażółć gęślą jaźń def f(x): return
x**2 <html> </div> {"key": [1, 2]} https://example.org/a?b=c#d user@example.org SELECT * FROM t
WHERE a>=1; \frac{a}{b} $x^2$ ¯\_(ツ)_/¯ ½ ² ™ ﬁ Ⅷ ｆｕｌｌ Å Å
"""
WORDS = _WORDS.split()
EMOJI = ["😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "🤖🤖🤖", "\U0001fae0"]
BLANKS = [
    " ",
    "  ",
    "   ",
    " " * 7,
    " " * 40,
    "\n",
    "\n\n",
    "\n" * 5,
    "\n" * 33,
    "\t",
    "\t\t\t",
    "\r\n",
    "\u3000",
    "\u00a0",
]
CONTROL = [
    "\x00",
    "\x01",
    "\x07",
    "\x1b[0m",
    "\x7f",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u202e",
    "\ufffd",
    "\x85",
]
_SPECIAL = r"""
<bos> <eos> <unk> <pad> <mask> <start_of_turn> <end_of_turn> <unused0> <unused12> <unused99>
<0x41> <0xFF> [multimodal] <s> </s> <|eot_id|> <|im_start|> <|im_end|> <start_of_image> [INST]
[/INST] <b> </table> <bos <start_of_turn ▁ ▁▁▁ ▁the <BOS> <unused999999> <|begin_of_text|>
<think> </think>
"""
SPECIAL = _SPECIAL.split()
RARE = ["\U0001d54a", "\U00013000", "\ue000", "\U0010ffff", "\u0301\u0302", "e\u0301", "\ud7a3", "\uffff"]


def varied(count: int, seed: int = 0) -> list[str]:
    """``count`` strings: each kind alone first, then mixtures."""
    choose = random.Random(seed)
    kinds = [WORDS, EMOJI, BLANKS, CONTROL, SPECIAL, RARE]
    texts = ["", *(text for kind in kinds for text in kind)]
    while len(texts) < count:
        parts = []
        for _ in range(choose.randint(1, 12)):
            kind = choose.choices(kinds, weights=[8, 2, 3, 1, 3, 1])[0]
            parts.append(choose.choice(kind))
            parts.append(choose.choice(["", " ", " ", " ", *BLANKS]))
        if choose.random() < 0.1:
            parts.append("".join(chr(choose.choice(range(0xD800))) for _ in range(8)))
        texts.append("".join(parts))
    return texts[:count] if count < 150 else choose.sample(texts, count)
