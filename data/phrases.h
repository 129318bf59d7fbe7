/* phrases: a set of texts to find in another, each with a number: leftmost first, of those that
 * begin together the longest. */
#ifndef DATA_PHRASES_H
#define DATA_PHRASES_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/status.h"

/* A trie. A zeroed one is empty. */
struct phrases {
    struct phrase_node {
        int32_t child, sibling; /* 0: none */
        int32_t id;             /* of the phrase that ends here; -1: none does */
        unsigned char byte;
    } * nodes; /* [room] owned; node 0 is not used */
    int32_t count, room;
    int32_t first[256]; /* node of phrases that begin with this byte; 0: none */
};

/* Local. Errors: STATUS_RESOURCE. `bytes` >= 1. A phrase added twice keeps the later id. */
enum status phrases_add(struct phrases *phrases, const char *text, size_t bytes, int32_t id)
    __attribute__((warn_unused_result));
/* The next phrase in text at or after `from`: its id, where it is and how long; -1 when none is
 * left. */
int32_t phrases_find(const struct phrases *phrases, const char *text, size_t bytes, size_t from,
                     size_t *at, size_t *length);
void phrases_free(struct phrases *phrases); /* accepts a zeroed one; may be called twice */

#endif
