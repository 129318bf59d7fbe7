/* compose: NFC, as the tokenizers library composes texts.
 *
 * Its tables are of Unicode 9 (0.23.3), utf8proc's of Unicode 15 and later; normal forms of what
 * was there before never change. So a character that came since and would compose, come apart or
 * move stands for itself here, and what is before and behind it is composed apart from it.
 */
#ifndef DATA_COMPOSE_H
#define DATA_COMPOSE_H

#include <stdbool.h>

#include "data/lists.h"

/* Whether this character is one of those. */
bool compose_is_new(uint32_t character);
/* Whether anything in well-formed UTF-8 can change: below U+0300 every character is composed
 * already, and none joins the one before it. */
bool compose_changes(const char *text, size_t bytes);
/* Local. Appends the composed form of well-formed UTF-8. Errors: STATUS_RESOURCE. */
enum status compose(struct byte_list *out, const char *text, size_t bytes)
    __attribute__((warn_unused_result));

#endif
