/* lists: growing arrays of bytes and of token ids.
 *
 * A zeroed one is empty. They grow by doubling; what a thread uses for one document after another
 * stops allocating soon.
 */
#ifndef DATA_LISTS_H
#define DATA_LISTS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/status.h"

struct byte_list {
    char *data; /* owned; a NUL follows the bytes once something was added */
    size_t count, room;
};

struct id_list {
    uint32_t *data; /* owned */
    size_t count, room;
};

/* Local. Room for `more` beyond `count`. Errors: STATUS_RESOURCE with the size. */
enum status byte_list_reserve(struct byte_list *list, size_t more)
    __attribute__((warn_unused_result));
enum status id_list_reserve(struct id_list *list, size_t more) __attribute__((warn_unused_result));

/* Local. Appends a copy. Errors: STATUS_RESOURCE. */
enum status byte_list_add(struct byte_list *list, const void *data, size_t bytes)
    __attribute__((warn_unused_result));
enum status id_list_add(struct id_list *list, uint32_t id) __attribute__((warn_unused_result));

/* Both accept a zeroed list and may be called twice. */
void byte_list_free(struct byte_list *list);
void id_list_free(struct id_list *list);

#endif
