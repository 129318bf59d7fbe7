/* utf8: what is well-formed UTF-8 (Unicode 15, table 3-7), and one character of it. */
#ifndef DATA_UTF8_H
#define DATA_UTF8_H

#include <stddef.h>
#include <stdint.h>

#include "data/lists.h"

/* Bytes of the character that begins here: 1 to 4; 0 where none does (`bytes` may be 0). */
int utf8_length(const char *text, size_t bytes);
/* Bytes of the longest prefix that is well formed. */
size_t utf8_prefix(const char *text, size_t bytes);
/* Bytes of what is no character here, where utf8_length is 0 and `bytes` is not: as much as could
 * have become one, at least 1 (what one U+FFFD stands for, Unicode 15, section 3.9). */
size_t utf8_bad(const char *text, size_t bytes);
/* The character that begins here, of utf8_length bytes, which must not be 0. */
uint32_t utf8_character(const char *text, int length);
/* Writes a character below 0x110000, no surrogate; returns its bytes. */
int utf8_write(char out[4], uint32_t character);
/* Appends the text, U+FFFD in place of what is no character. Errors: STATUS_RESOURCE. */
enum status utf8_replace(struct byte_list *out, const char *text, size_t bytes)
    __attribute__((warn_unused_result));

#endif
