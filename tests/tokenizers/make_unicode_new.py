#!/usr/bin/env python3
"""make_unicode_new.py > data/unicode_new.c: characters of Unicode 16 that Unicode 14 lacks.
Needs Python 3.11 (whose unicodedata is of Unicode 14) and unicodedata2==16.0.0."""
import unicodedata

import unicodedata2

assert unicodedata.unidata_version == "14.0.0" and unicodedata2.unidata_version == "16.0.0"
ranges = []
for code in range(0x110000):
    before, after = unicodedata.category(chr(code)), unicodedata2.category(chr(code))
    if before == after or before != "Cn":  # one mark (U+1171E) became another kind of mark
        continue
    if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == after:
        ranges[-1][1] = code
    else:
        ranges.append([code, code, after])
print('#include "data/unicode_new.h"\n')
print("/* Written by tests/tokenizers/make_unicode_new.py. */")
print("static const struct unicode_range ranges[] = {")
for first, last, category in ranges:
    print(f'    {{0x{first:04x}, 0x{last:04x}, "{category}"}},')
print("""};

const struct unicode_range *unicode_new_ranges(int *count)
{
    *count = (int)(sizeof ranges / sizeof ranges[0]);
    return ranges;
}

bool unicode_is_new(uint32_t character)
{
    int low = 0, high = (int)(sizeof ranges / sizeof ranges[0]) - 1;
    while (low <= high) {
        const int middle = (low + high) / 2;
        if (character < ranges[middle].first) {
            high = middle - 1;
        } else if (character > ranges[middle].last) {
            low = middle + 1;
        } else {
            return true;
        }
    }
    return false;
}""")
