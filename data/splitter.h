/* splitter: cuts text into the words that byte-pair encoding works on, step by step: every step
 * cuts the pieces of the one before by a pattern (PCRE2 with UTF and UCP, compiled to machine code
 * where that works).
 */
#ifndef DATA_SPLITTER_H
#define DATA_SPLITTER_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/base/status.h"

/* What becomes of a pattern's matches and the text between them. */
enum split_keep {
    SPLIT_KEEP_ALL,     /* both, each a piece of its own */
    SPLIT_KEEP_MATCHES, /* the text between is dropped */
    SPLIT_KEEP_GAPS     /* the matches are dropped */
};

struct splitter;         /* read-only once made, shared by threads */
struct splitter_scratch; /* of one thread */

/* Local. Errors of all: STATUS_RESOURCE. */
enum status splitter_open(struct splitter **splitter) __attribute__((warn_unused_result));
void splitter_close(struct splitter *splitter); /* accepts NULL */
/* The next step. quote: the pattern is just text; else it is in Oniguruma's syntax (pattern.h).
 * Errors: STATUS_DATA for a pattern that is not built, or no pattern. */
enum status splitter_add(struct splitter *splitter, const char *pattern, size_t bytes, bool quote,
                         enum split_keep keep) __attribute__((warn_unused_result));

enum status splitter_scratch_open(struct splitter_scratch **scratch)
    __attribute__((warn_unused_result));
void splitter_scratch_close(struct splitter_scratch *scratch); /* accepts NULL */

/* Local. Calls `use` with every piece, in order; `text` is well-formed UTF-8. Errors: of `use`;
 * STATUS_DATA where a pattern gives up on a text. */
enum status splitter_run(const struct splitter *splitter, struct splitter_scratch *scratch,
                         const char *text, size_t bytes,
                         enum status (*use)(void *context, const char *piece, size_t bytes),
                         void *context) __attribute__((warn_unused_result));

#endif
