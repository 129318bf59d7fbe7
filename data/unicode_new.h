/* unicode_new: the characters that Unicode 16 has and Unicode 14 has not.
 *
 * PCRE2 10.42 (Debian 12, Ubuntu 24.04) knows Unicode 14, the tokenizers library Unicode 16. Nobody
 * writes those characters much, but where one stands the two cut differently; so a text with one of
 * them is cut by patterns that name these ranges (pattern.h). For a newer PCRE2 they say nothing
 * new.
 */
#ifndef DATA_UNICODE_NEW_H
#define DATA_UNICODE_NEW_H

#include <stdbool.h>
#include <stdint.h>

struct unicode_range {
    uint32_t first, last;
    char category[3]; /* "Lo" */
};

/* In order. */
const struct unicode_range *unicode_new_ranges(int *count);
bool unicode_is_new(uint32_t character);

#endif
