#include "data/document_set.h"

#include <stdlib.h>

/* The slot that holds the hash, or the free one where it belongs. */
static struct hash128 *place_of(const struct document_set *set, struct hash128 hash)
{
    const uint64_t mask = (uint64_t)set->room - 1;
    uint64_t i = hash.low & mask;
    while ((set->slot[i].low != 0 || set->slot[i].high != 0) &&
           (set->slot[i].low != hash.low || set->slot[i].high != hash.high)) {
        i = (i + 1) & mask;
    }
    return &set->slot[i];
}

static enum status grow(struct document_set *set)
{
    struct document_set larger = {.room = set->room > 0 ? 2 * set->room : 1024,
                                  .count = set->count};
    larger.slot = calloc((size_t)larger.room, sizeof *larger.slot);
    if (larger.slot == NULL) {
        return status_fail(STATUS_RESOURCE,
                           "out of memory for the hashes of %lld documents: prepare parts, or "
                           "without --dedup",
                           (long long)set->count);
    }
    for (int64_t i = 0; i < set->room; i++) {
        if (set->slot[i].low != 0 || set->slot[i].high != 0) {
            *place_of(&larger, set->slot[i]) = set->slot[i];
        }
    }
    free(set->slot);
    *set = larger;
    return STATUS_OK;
}

enum status document_set_add(struct document_set *set, struct hash128 hash, bool *added)
{
    if (4 * (set->count + 1) > 3 * set->room) {
        TRY(grow(set));
    }
    hash.high += hash.low == 0 && hash.high == 0; /* zero marks a free slot */
    struct hash128 *place = place_of(set, hash);
    *added = place->low != hash.low || place->high != hash.high;
    *place = hash;
    set->count += *added;
    return STATUS_OK;
}

void document_set_free(struct document_set *set)
{
    free(set->slot);
    *set = (struct document_set){0};
}
