/* arena: one reservation per lifetime, measured before it is made.
 *
 * A layout function runs twice over the same arena: first measuring (base == NULL, arena_alloc
 * returns NULL and only counts), then, after arena_reserve, handing out addresses. Size and
 * addresses cannot disagree. The memory is a device's: whoever measures says whose.
 */
#ifndef KERNELS_BASE_ARENA_H
#define KERNELS_BASE_ARENA_H

#include <stddef.h>

#include "kernels/base/status.h"

enum { ARENA_ALIGNMENT = 256 };

struct device;

/* Where arenas take their memory: zero filled, 256-byte aligned; NULL where there is not so much.
 */
struct arena_source {
    struct device *device; /* borrowed */
    void *(*alloc)(struct device *, size_t bytes);
    void (*free)(struct device *, void *data, size_t bytes);
};

struct arena {
    struct arena_source source;
    char *base;      /* owned; NULL while measuring */
    size_t used;     /* bytes handed out (or counted) so far */
    size_t capacity; /* bytes reserved; 0 while measuring */
};

/* Next `bytes` of the arena, 256-byte aligned; NULL while measuring. Running past the reservation
 * is a bug. */
void *arena_alloc(struct arena *arena, size_t bytes);

/* Reserves what was measured from arena->source, zero filled, and rewinds `used` to 0. Errors:
 * STATUS_RESOURCE with the size. */
enum status arena_reserve(struct arena *arena, const char *what)
    __attribute__((warn_unused_result));

/* Releases the reservation. Accepts a zeroed arena; may be called twice. */
void arena_free(struct arena *arena);

#endif
