/* spans: what a rank did from when to when, kept in memory for a trace (trainer/profile.h).
 *
 * A fixed number of records; what comes when they are full is counted and lost. Any thread may add
 * one. Where nothing is recorded the pointer to it is NULL, and each call costs a branch.
 */
#ifndef PARALLEL_SPANS_H
#define PARALLEL_SPANS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/status.h"

/* Threads of a rank, and messages under way beside them. */
enum span_lane { SPAN_TRAINING, SPAN_WRITER, SPAN_WIRE, SPAN_LANES };
/* Messages: on SPAN_WIRE from their start until their end was seen, on SPAN_TRAINING whole, where
 * it waits for them. Of those on SPAN_WIRE also the calls that start them and move them on
 * (SPAN_CALL), and that wait for their end (SPAN_WAIT). */
enum span_kind { SPAN_PHASE, SPAN_OPERATION, SPAN_MESSAGE, SPAN_CALL, SPAN_WAIT };
/* Messages that are under way at once have rows of their own; what is more shares the last. */
enum { SPAN_ROWS = 32 };

struct span {
    const char *name;         /* borrowed: a literal */
    const char *group;        /* of messages: "ep"; borrowed; else NULL */
    int64_t begin_ns, end_ns; /* spans_clock */
    int64_t bytes;            /* of messages: that this rank sends */
    int64_t layer;            /* -1: none */
    int64_t step;
    int32_t ranks; /* of the group */
    int32_t peer;  /* of a message between two ranks: the other one in the group; else -1 */
    uint8_t lane, kind, row; /* enum span_lane, span_kind; of SPAN_WIRE: below SPAN_ROWS */
};

struct spans {
    _Atomic int64_t count; /* asked for, more than room: the rest is lost */
    int64_t room;
    struct span *span; /* [room] owned */
    _Atomic int64_t step;
};

/* Local. Errors: STATUS_RESOURCE. */
enum status spans_init(struct spans *spans, int64_t room) __attribute__((warn_unused_result));
void spans_free(struct spans *spans); /* accepts a zeroed one */

/* Nanoseconds of a monotonic clock. */
int64_t spans_clock(void);
/* Now, for spans_add; 0 where nothing is recorded. */
static inline int64_t spans_begin(const struct spans *spans)
{
    return spans != NULL ? spans_clock() : 0;
}
/* Keeps a span; its step is the current one. Local, from any thread; spans may be NULL. */
void spans_add(struct spans *spans, struct span span);

#endif
