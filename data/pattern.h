/* pattern: regular expressions of tokenizer.json, written for Oniguruma (Ruby's syntax, Unicode),
 * as PCRE2 understands them with UTF, UCP and MULTILINE.
 *
 * Most is the same in both. Translated: \s and \S (PCRE2 counts U+180E, which is no White_Space any
 * more), \v, \uHHHH, scripts in \p{...} (PCRE2 would take script extensions). Refused by name: what
 * the two read differently (nested classes, &&, {n,m}+ ..., \w, \b, \h, flags other than i) or what
 * one of them lacks.
 */
#ifndef DATA_PATTERN_H
#define DATA_PATTERN_H

#include <stdbool.h>

#include "data/lists.h"

/* Local. Appends the translation. with_new: categories get the characters of unicode_new.h too
 * (those of negated ones within a class stay as PCRE2 knows them). Errors: STATUS_DATA naming the
 * construct; STATUS_RESOURCE. */
enum status pattern_translate(struct byte_list *out, const char *pattern, size_t bytes,
                              bool with_new) __attribute__((warn_unused_result));
/* Local. Appends a pattern of just this text. */
enum status pattern_quote(struct byte_list *out, const char *text, size_t bytes)
    __attribute__((warn_unused_result));

#endif
