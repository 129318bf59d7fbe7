#!/usr/bin/env python3
"""make_compose_new.py > data/compose_new.c: characters with a part in composing (NFC) that the tokenizers library does not compose
with. Its tables are of Unicode 9, and what has come since it leaves as it is. Needs tokenizers==0.23.3 and unicodedata2==18.0.0."""
import random

import unicodedata2
from tokenizers import normalizers

theirs = normalizers.NFC().normalize_str
nfc = lambda text: unicodedata2.normalize("NFC", text)
new = set()
for code in range(0x110000):
    c = chr(code)
    if 0xD800 <= code < 0xE000 or not (unicodedata2.combining(c) or unicodedata2.decomposition(c)):
        continue
    apart = unicodedata2.normalize("NFD", c)
    if any(theirs(t) != nfc(t) for t in (c, apart, "a\u0345" + c, "a" + c + "\u0334", "e" + c + "\u0301")):
        new.add(code)
        new.update(p for p in map(ord, apart) if p > 0xFFFF)  # the parts are as new, where they are not common marks

# The rule: such a character ends what is composed, and stands for itself.
def ours(text):
    out, run = "", ""
    for c in text:
        if ord(c) in new:
            out, run = out + nfc(run) + c, ""
        else:
            run += c
    return out + nfc(run)

rng = random.Random(1)
marks = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and unicodedata2.combining(chr(c))]
whole = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and unicodedata2.decomposition(chr(c))]
pool = [*map(chr, new), *rng.sample(marks, 300), *rng.sample(whole, 300), *"aeK", "\uac00", "\u1100", "\u1161", "\u11a8"]
for _ in range(1000000):
    text = "".join(rng.choice(pool) for _ in range(rng.randrange(1, 7)))
    assert ours(text) == theirs(text), ascii(text)

ranges = []
for code in sorted(new):
    if ranges and ranges[-1][1] == code - 1:
        ranges[-1][1] = code
    else:
        ranges.append([code, code])
print('#include "data/compose.h"\n')
print("/* Written by tests/tokenizers/make_compose_new.py. */")
print("static const uint32_t ranges[][2] = {")
for first, last in ranges:
    print(f"    {{0x{first:04x}, 0x{last:04x}}},")
print("""};

bool compose_is_new(uint32_t character)
{
    int low = 0, high = (int)(sizeof ranges / sizeof ranges[0]) - 1;
    while (low <= high) {
        const int middle = (low + high) / 2;
        if (character < ranges[middle][0]) {
            high = middle - 1;
        } else if (character > ranges[middle][1]) {
            low = middle + 1;
        } else {
            return true;
        }
    }
    return false;
}""")
