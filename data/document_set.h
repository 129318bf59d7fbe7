/* document_set: which documents were seen, by 128-bit hashes. 16 bytes for each, in a table at
 * most three quarters full that doubles: 22 to 43 bytes of memory for each.
 */
#ifndef DATA_DOCUMENT_SET_H
#define DATA_DOCUMENT_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/hash.h"
#include "kernels/base/status.h"

/* A zeroed one is empty. */
struct document_set {
    struct hash128 *slot; /* [room] owned; zero: free */
    int64_t room, count;  /* room: 0 or a power of two */
};

/* Local. *added: it was not there. Errors: STATUS_RESOURCE with the number of documents. */
enum status document_set_add(struct document_set *set, struct hash128 hash, bool *added)
    __attribute__((warn_unused_result));
void document_set_free(struct document_set *set); /* accepts a zeroed one; may be called twice */

#endif
