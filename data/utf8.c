#include "data/utf8.h"

#include <string.h>

/* How many bytes go together as the character that `first` begins: *wanted of them are needed. */
static int fitting(const unsigned char *at, size_t bytes, int *wanted)
{
    const unsigned char first = at[0];
    *wanted = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (first < 0x80 || first < 0xc2 || first > 0xf4) {
        *wanted = first < 0x80 ? 1 : 5; /* 5: begins nothing */
        return 1;
    }
    /* The second byte: no longer form than needed, no surrogates, nothing above U+10FFFF. */
    const unsigned char low = first == 0xe0   ? 0xa0
                              : first == 0xf0 ? 0x90
                                              : 0x80,
                        high = first == 0xed   ? 0x9f
                               : first == 0xf4 ? 0x8f
                                               : 0xbf;
    if (bytes < 2 || at[1] < low || at[1] > high) {
        return 1;
    }
    int count = 2;
    while (count < *wanted && (size_t)count < bytes && (at[count] & 0xc0) == 0x80) {
        count++;
    }
    return count;
}

int utf8_length(const char *text, size_t bytes)
{
    int wanted = 0;
    if (bytes == 0) {
        return 0;
    }
    return fitting((const unsigned char *)text, bytes, &wanted) == wanted ? wanted : 0;
}

size_t utf8_bad(const char *text, size_t bytes)
{
    int wanted = 0;
    return (size_t)fitting((const unsigned char *)text, bytes, &wanted);
}

size_t utf8_prefix(const char *text, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        uint64_t eight;
        if (bytes - at >= sizeof eight) {
            memcpy(&eight, text + at, sizeof eight);
            if ((eight & 0x8080808080808080u) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        const int length = utf8_length(text + at, bytes - at);
        if (length == 0) {
            break;
        }
        at += (size_t)length;
    }
    return at;
}

uint32_t utf8_character(const char *text, int length)
{
    const unsigned char *at = (const unsigned char *)text;
    static const unsigned char mask[5] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t character = at[0] & mask[length];
    for (int i = 1; i < length; i++) {
        character = character << 6 | (at[i] & 0x3f);
    }
    return character;
}

int utf8_write(char out[4], uint32_t character)
{
    if (character < 0x80) {
        out[0] = (char)character;
        return 1;
    }
    const int length = character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (character & 0x3f));
        character >>= 6;
    }
    out[0] = (char)(lead[length] | character);
    return length;
}

enum status utf8_replace(struct byte_list *out, const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        const size_t good = utf8_prefix(text + at, bytes - at);
        TRY(byte_list_add(out, text + at, good));
        at += good;
        if (at < bytes) {
            TRY(byte_list_add(out, "\xef\xbf\xbd", 3));
            at += utf8_bad(text + at, bytes - at);
        }
    }
    return STATUS_OK;
}
