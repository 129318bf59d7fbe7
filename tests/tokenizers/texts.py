"""Texts for comparing tokenizers, the same on every machine: pseudo-words of many scripts, code, random strings."""
import pathlib
import random
import sysconfig

# Letters and marks of the main block of each script.
SCRIPTS = {
    "latin": (0x41, 0x24F), "greek": (0x386, 0x3FF), "cyrillic": (0x400, 0x4FF), "armenian": (0x531, 0x587),
    "hebrew": (0x5D0, 0x5EA), "arabic": (0x620, 0x6D3), "syriac": (0x710, 0x74A), "thaana": (0x780, 0x7B1),
    "devanagari": (0x900, 0x963), "bengali": (0x981, 0x9E3), "gurmukhi": (0xA01, 0xA71), "gujarati": (0xA81, 0xAE3),
    "tamil": (0xB82, 0xBD7), "telugu": (0xC01, 0xC63), "kannada": (0xC81, 0xCE3), "malayalam": (0xD01, 0xD63),
    "sinhala": (0xD82, 0xDF3), "thai": (0xE01, 0xE4E), "lao": (0xE81, 0xEB9), "tibetan": (0xF40, 0xFBC),
    "myanmar": (0x1000, 0x104F), "georgian": (0x10A0, 0x10FF), "hangul": (0xAC00, 0xD7A3), "ethiopic": (0x1200, 0x135A),
    "cherokee": (0x13A0, 0x13F4), "khmer": (0x1780, 0x17D3), "mongolian": (0x1820, 0x18A8), "hiragana": (0x3041, 0x3096),
    "katakana": (0x30A1, 0x30FA), "han": (0x4E00, 0x9FA5),
}
PUNCTUATION = [", ", ". ", "! ", "? ", ": ", "; ", " - ", " (", ") ", "\n", "\n\n", "\r\n", "  ", "\t", "。", "、", "،", "؟", "।",
               "…", " “", "” ", "'s ", "'LL ", " 'tis ", "/", "\\", " #", "_", "@", " $", "£", " €", "~", "^", "`", "|"]
# What tokenizers trip over: separators, marks, look-alikes, special tokens and parts of them.
ODD = ["\u00a0", "\u1680", "\u180e", "\u2003", "\u200b", "\u200d", "\u2028", "\u2029", "\u202f", "\u3000", "\ufeff", "\x85", "\x0b", "\x0c",
       "\x00", "\x1f", "\x7f", "\u017f", "\u212a", "'\u017f", "'S", "'ll", "'Ve", "\u0301", "e\u0301", "\u00e9", "\u1e9b\u0323", "\u212b", "\uac00",
       "\u1100\u1161\u11a8", "\u0344", "\U0001f600", "\U0001f468\u200d\U0001f469", "\U0001f1e9\U0001f1ea", "\U00020000", "\ufdd0", "\U0010ffff",
       "\ue000", "\ufffd", "\u0660\u0661\u0662\u0663", "\u00bd", "\u2160", "\u3007", "\u4e00\u9fa5\u9fa6", "\u3040\u309f", "123", "1234567", "3.14",
       "0x1F", "<|endoftext|>", "<|", "|>", "<｜User｜>", "<｜", "｜>", "<｜end▁of▁sentence｜>", "<think>", "</s>", "<s>", "[INST]", " \n", "\n ", "   \n\n  x",
       "a" * 300, " " * 100, "\n" * 20, "ab" * 200, "é" * 120, "\r", "\r\r\n", "ﬁ", "ß", "İ", "ı", "ǆ", "Σς", "ﬀ", "'", "''", "'t't", "don't", "I'M"]


def word(rng, low, high):
    text = ""
    while not text:
        # surrogates never lie in these ranges; unassigned characters are part of the trial
        text = "".join(chr(rng.randint(low, high)) for _ in range(min(12, 1 + int(rng.expovariate(0.25)))))
    return text


def script_document(rng, name, characters):
    low, high = SCRIPTS[name]
    # a small vocabulary with frequent words, as languages have
    words = [word(rng, low, high) for _ in range(400)]
    parts, count = [], 0
    while count < characters:
        parts.append(words[min(399, int(rng.expovariate(0.02)))])
        parts.append(" " if rng.random() < 0.8 else rng.choice(PUNCTUATION))
        if rng.random() < 0.03:
            parts.append(str(rng.randint(0, 10 ** rng.randint(1, 9))))
        count += len(parts[-1]) + len(parts[-2])
    return "".join(parts)


def random_string(rng):
    parts = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.random()
        if kind < 0.3:
            parts.append(rng.choice(ODD))
        elif kind < 0.5:
            parts.append(rng.choice(PUNCTUATION))
        elif kind < 0.85:
            low, high = SCRIPTS[rng.choice(list(SCRIPTS))] if rng.random() < 0.6 else (0x20, 0x7E)
            parts.append(word(rng, low, high))
        else:
            c = rng.randint(1, 0x10FFFF)
            parts.append("\ufffd" if 0xD800 <= c < 0xE000 else chr(c))
    return "".join(parts)


# Letters and marks that compose or change places, some of them younger than the tokenizers library's tables.
COMPOSING = list("aeoKN \u00e9\u1e9b\u212b\uac00\u1100\u1161\u11a8\u0301\u0323\u0327\u0334\u0345\u035c\u0ebb\u0eb8\u0ec8\u0eba\u07fd\u0898\u08d3\u0c3c\u0d3b"
                 "\u1715\u1abf\u1df6\ua82c\U000105d2\u0307\U00010d24\U00010f46\U000110ba\U00011099\U00011930\U00011935\U00011938\U0001133b\U0001133c"
                 "\U000113c2\U000113b8\U00016ff0\U0001d15e\U0001d165\U0001e130\U0001e4ec")


def composing_string(rng):
    return "".join(rng.choice(COMPOSING) for _ in range(rng.randint(1, 12)))


def documents(seed, megabytes, strings):
    """Yields texts: about this much of prose and code, then so many random strings."""
    rng = random.Random(seed)
    budget = int(megabytes * 1e6)
    code = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
    names = list(SCRIPTS)
    turn = 0
    while budget > 0:
        if turn % 3 == 2 and code:
            text = code[turn // 3 % len(code)].read_text(encoding="utf-8", errors="replace")[:60000]
        else:
            text = script_document(rng, names[turn % len(names)], 8000)
        turn += 1
        budget -= len(text.encode())
        yield text
    for _ in range(strings):
        yield random_string(rng)
    for _ in range(strings // 10):
        yield composing_string(rng)
