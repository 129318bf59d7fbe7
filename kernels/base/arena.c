#include "kernels/base/arena.h"

#include <assert.h>

void *arena_alloc(struct arena *arena, size_t bytes)
{
    const size_t mask = ARENA_ALIGNMENT - 1;
    const size_t offset = arena->used;
    arena->used = (offset + bytes + mask) & ~mask;
    if (arena->base == NULL) {
        return NULL;
    }
    assert(arena->used <= arena->capacity);
    return arena->base + offset;
}

enum status arena_reserve(struct arena *arena, const char *what)
{
    assert(arena->base == NULL && arena->source.alloc != NULL);
    const size_t bytes = arena->used > 0 ? arena->used : ARENA_ALIGNMENT;
    void *base = arena->source.alloc(arena->source.device, bytes);
    if (base == NULL) {
        return status_fail(STATUS_RESOURCE,
                           "cannot reserve %.1f MiB of memory for %s: use more ranks or a smaller "
                           "train.micro_batch",
                           (double)bytes / 1048576.0, what);
    }
    arena->base = base;
    arena->capacity = bytes;
    arena->used = 0;
    return STATUS_OK;
}

void arena_free(struct arena *arena)
{
    if (arena->base != NULL) {
        arena->source.free(arena->source.device, arena->base, arena->capacity);
    }
    *arena = (struct arena){0};
}
