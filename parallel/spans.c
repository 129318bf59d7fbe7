#define _POSIX_C_SOURCE 200809L
#include "parallel/spans.h"

#include <stdlib.h>
#include <time.h>

enum status spans_init(struct spans *spans, int64_t room)
{
    *spans = (struct spans){.room = room, .span = calloc((size_t)room, sizeof *spans->span)};
    return spans->span != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for %lld spans", (long long)room);
}

void spans_free(struct spans *spans)
{
    free(spans->span);
    *spans = (struct spans){0};
}

int64_t spans_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void spans_add(struct spans *spans, struct span span)
{
    if (spans == NULL) {
        return;
    }
    const int64_t at = atomic_fetch_add(&spans->count, 1);
    if (at < spans->room) {
        span.step = spans->step;
        spans->span[at] = span;
    }
}
