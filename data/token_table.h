/* token_table: the bytes of every token id, and the id of some bytes. */
#ifndef DATA_TOKEN_TABLE_H
#define DATA_TOKEN_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/lists.h"

enum { TOKEN_NONE = -1 };

/* A zeroed one is empty. */
struct token_table {
    struct byte_list text; /* all tokens' bytes, in the order they came */
    struct token_span {
        size_t at;
        int32_t bytes; /* < 0: no token has this id */
    } * spans;         /* [size] owned */
    int64_t size;      /* the largest id + 1 */
    int64_t room;
    int32_t *slots; /* [slot_count] owned: ids by hash, TOKEN_NONE where free */
    uint64_t slot_count;
    int64_t used; /* slots taken */
};

/* Local. Errors: STATUS_RESOURCE; STATUS_DATA when the id has other bytes already, the bytes
 * another id, or the id is not in [0, 2^31 - 1). Adding the same pair twice is fine. */
enum status token_table_add(struct token_table *table, int64_t id, const char *text, size_t bytes)
    __attribute__((warn_unused_result));
/* The id of these bytes, or TOKEN_NONE. */
int32_t token_table_find(const struct token_table *table, const char *text, size_t bytes);
/* The bytes of an id, how many in *bytes; NULL when no token has it. */
const char *token_table_text(const struct token_table *table, int64_t id, size_t *bytes);
void token_table_free(struct token_table *table); /* accepts a zeroed one; may be called twice */

#endif
