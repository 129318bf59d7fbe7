#include "data/pattern.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "data/unicode_new.h"

/* Unicode's White_Space. */
#define SPACES                                                                                     \
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"        \
    "\\x{205f}\\x{3000}"

struct reader {
    const char *at, *begin, *end;
    bool in_class, with_new;
    struct byte_list *out;
};

static enum status refuse(const char *at, size_t bytes, const char *why)
{
    return status_fail(STATUS_DATA, "'%.*s' in a pattern is not built (%s)", (int)bytes, at, why);
}

static enum status copy(struct reader *reader, size_t bytes)
{
    TRY(byte_list_add(reader->out, reader->at, bytes));
    reader->at += bytes;
    return STATUS_OK;
}

static enum status replace(struct reader *reader, size_t bytes, const char *by)
{
    reader->at += bytes;
    return byte_list_add(reader->out, by, strlen(by));
}

static bool follows(const struct reader *reader, const char *text)
{
    const size_t bytes = strlen(text);
    return (size_t)(reader->end - reader->at) >= bytes && memcmp(reader->at, text, bytes) == 0;
}

/* The new characters of a category ("Lu") or of a group of them ("L"). */
static enum status add_new(struct byte_list *out, const char *category, size_t letters)
{
    int count = 0;
    const struct unicode_range *ranges = unicode_new_ranges(&count);
    for (int i = 0; i < count; i++) {
        char text[32];
        if (memcmp(ranges[i].category, category, letters) == 0) {
            const int bytes = snprintf(text, sizeof text, "\\x{%x}-\\x{%x}",
                                       (unsigned)ranges[i].first, (unsigned)ranges[i].last);
            TRY(byte_list_add(out, text, (size_t)bytes));
        }
    }
    return STATUS_OK;
}

/* \p{Lu}, \P{Lu}, \p{^Lu}: a general category has one or two letters, else it is a script. */
static enum status property(struct reader *reader)
{
    const char *open = reader->at + 2;
    const char *close = memchr(open, '}', (size_t)(reader->end - open));
    if (open >= reader->end || *open != '{' || close == NULL) {
        return refuse(reader->at, 2, "needs a name in braces");
    }
    const char *name = open + 1;
    const bool inverted = *name == '^';
    name += inverted;
    for (const char *c = name; c < close; c++) {
        if (!isalpha((unsigned char)*c) && *c != '_') {
            return refuse(reader->at, (size_t)(close + 1 - reader->at), "only categories, scripts");
        }
    }
    const bool category = close - name <= 2, out = (reader->at[1] == 'P') != inverted;
    reader->at = close + 1;
    if (!category) {
        TRY(byte_list_add(reader->out, out ? "\\P{sc:" : "\\p{sc:", 6));
        return byte_list_add(reader->out, name, (size_t)(close + 1 - name));
    }
    const bool own_class = reader->with_new && !reader->in_class;
    if (own_class) {
        TRY(byte_list_add(reader->out, out ? "[^" : "[", out ? 2 : 1));
    }
    TRY(byte_list_add(reader->out, out && !own_class ? "\\P{" : "\\p{", 3));
    TRY(byte_list_add(reader->out, name, (size_t)(close + 1 - name)));
    if (own_class || (reader->with_new && !out)) {
        TRY(add_new(reader->out, name, (size_t)(close - name)));
    }
    return own_class ? byte_list_add(reader->out, "]", 1) : STATUS_OK;
}

static bool are_hex(const char *text, int count)
{
    for (int i = 0; i < count; i++) {
        if (!isxdigit((unsigned char)text[i])) {
            return false;
        }
    }
    return true;
}

/* \x09 below 0x80, \x{3000}, \u3000 */
static enum status code_point(struct reader *reader)
{
    const char *digits = reader->at + 2;
    const size_t left = (size_t)(reader->end - digits);
    if (reader->at[1] == 'u' && left >= 4 && are_hex(digits, 4)) {
        TRY(byte_list_add(reader->out, "\\x{", 3));
        TRY(byte_list_add(reader->out, digits, 4));
        TRY(byte_list_add(reader->out, "}", 1));
        reader->at += 6;
        return STATUS_OK;
    }
    if (reader->at[1] == 'x' && left >= 2 && are_hex(digits, 2) && digits[0] < '8') {
        return copy(reader, 4);
    }
    const char *close = left > 0 && digits[0] == '{' ? memchr(digits, '}', left) : NULL;
    if (reader->at[1] == 'x' && close != NULL && close - digits <= 7 &&
        are_hex(digits + 1, (int)(close - digits - 1))) {
        return copy(reader, (size_t)(close + 1 - reader->at));
    }
    return refuse(reader->at, left >= 2 ? 4 : left + 2, "write \\x{...}");
}

/* \d is \p{Nd} */
static enum status digit(struct reader *reader)
{
    const bool own_class = reader->with_new && !reader->in_class;
    TRY(byte_list_add(reader->out, own_class ? "[\\d" : "\\d", own_class ? 3 : 2));
    TRY(reader->with_new ? add_new(reader->out, "Nd", 2) : STATUS_OK);
    reader->at += 2;
    return byte_list_add(reader->out, "]", own_class);
}

static enum status escape(struct reader *reader)
{
    if (reader->end - reader->at < 2) {
        return refuse(reader->at, 1, "nothing after it");
    }
    const char c = reader->at[1];
    if (!isalnum((unsigned char)c)) {
        return copy(reader, 2);
    }
    if (c == 's') {
        return replace(reader, 2, reader->in_class ? SPACES : "[" SPACES "]");
    }
    if (c == 'S' && !reader->in_class) {
        return replace(reader, 2, "[^" SPACES "]");
    }
    if (c == 'v') {
        return replace(reader, 2, "\\x0b");
    }
    if (c == 'p' || c == 'P') {
        return property(reader);
    }
    if (c == 'd') {
        return digit(reader);
    }
    if (c == 'x' || c == 'u') {
        return code_point(reader);
    }
    if (strchr("rntfae", c) != NULL || (!reader->in_class && (c == 'A' || c == 'z'))) {
        return copy(reader, 2);
    }
    return refuse(reader->at, 2, "engines differ on it");
}

static enum status in_class(struct reader *reader)
{
    if (*reader->at == '[' || follows(reader, "&&")) {
        return refuse(reader->at, *reader->at == '[' ? 1 : 2, "sets within a class");
    }
    reader->in_class = *reader->at != ']';
    return copy(reader, 1);
}

/* [ or [^, and a ] right behind it, which is an ordinary character there. */
static enum status open_class(struct reader *reader)
{
    reader->in_class = true;
    TRY(copy(reader, follows(reader, "[^") ? 2 : 1));
    return reader->at < reader->end && *reader->at == ']' ? replace(reader, 1, "\\]") : STATUS_OK;
}

static enum status open_group(struct reader *reader)
{
    static const char *const good[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
    if (follows(reader, "(*")) {
        return refuse(reader->at, 2, "verbs");
    }
    if (!follows(reader, "(?")) {
        return copy(reader, 1);
    }
    if (follows(reader, "(?i)") && reader->at == reader->begin) {
        return copy(reader, 4);
    }
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        if (follows(reader, good[i])) {
            return copy(reader, strlen(good[i]));
        }
    }
    return refuse(reader->at, reader->end - reader->at < 4 ? 2 : 4, "kind of group or flag");
}

/* {3} {1,3} {1,}; {,3} means nothing to PCRE2, and a + behind one is possessive to PCRE2 alone. */
static enum status repeat(struct reader *reader)
{
    const char *close = memchr(reader->at, '}', (size_t)(reader->end - reader->at));
    const size_t bytes = close != NULL ? (size_t)(close + 1 - reader->at) : 1;
    bool good = close != NULL && bytes > 2 && isdigit((unsigned char)reader->at[1]);
    for (const char *c = reader->at + 1; good && c < close; c++) {
        good = isdigit((unsigned char)*c) || *c == ',';
    }
    if (!good || (close + 1 < reader->end && close[1] == '+')) {
        return refuse(reader->at, bytes + good, "this repetition");
    }
    return copy(reader, bytes);
}

enum status pattern_translate(struct byte_list *out, const char *pattern, size_t bytes,
                              bool with_new)
{
    struct reader reader = {
        .at = pattern, .begin = pattern, .end = pattern + bytes, .with_new = with_new, .out = out};
    while (reader.at < reader.end) {
        const char c = *reader.at;
        if (c == '\\') {
            TRY(escape(&reader));
        } else if (reader.in_class) {
            TRY(in_class(&reader));
        } else if (c == '[') {
            TRY(open_class(&reader));
        } else if (c == '(') {
            TRY(open_group(&reader));
        } else if (c == '{') {
            TRY(repeat(&reader));
        } else {
            TRY(copy(&reader, 1));
        }
    }
    return STATUS_OK;
}

enum status pattern_quote(struct byte_list *out, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if ((unsigned char)text[i] < 0x80 && !isalnum((unsigned char)text[i])) {
            TRY(byte_list_add(out, "\\", 1));
        }
        TRY(byte_list_add(out, text + i, 1));
    }
    return STATUS_OK;
}
