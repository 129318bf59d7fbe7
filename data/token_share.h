/* token_share: opens a token file on every rank of a group, each of whom looks at a part of it.
 *
 * Ranks that read the very same file, by one machine's page cache, look at every token once between
 * them, at every size of the group; so does each machine, and each other file of that name.
 */
#ifndef DATA_TOKEN_SHARE_H
#define DATA_TOKEN_SHARE_H

#include "data/token_store.h"
#include "parallel/comm.h"

/* As token_store_open, the loss mask looked at as well. Collective over `comm`. Errors: those of
 * token_store_open of any rank, on every rank with the same words. Close it either way. */
enum status token_share_open(struct token_store *store, const char *path, struct comm *comm)
    __attribute__((warn_unused_result));

#endif
