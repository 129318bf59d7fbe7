/* hidden: how much of a rank's communication passed beside its computing, from what it kept of it
 * (parallel/spans.h).
 *
 * A message is under way on a rank from when the last of its ranks has come to it - has begun the
 * operation, or, of two, the one has sent and the other asked for it - until this rank has seen its
 * end; and while this rank is in a call that starts it or moves it on. What passes of that outside
 * of all calls that communicate is hidden, beside computing; the rest is exposed. A wait for a rank
 * that has not come yet (the bubble of a pipeline, a slower rank, one with more rows) is neither:
 * it is idle. Two messages at once are under way once. So idle + exposed is all time in calls, and
 * exposed + hidden all time in which something was under way.
 *
 * When the last rank has come, the ranks tell each other: a group's operations have the same order
 * on all of its ranks, messages from one rank to another arrive in the order they were sent.
 */
#ifndef TRAINER_HIDDEN_H
#define TRAINER_HIDDEN_H

#include "parallel/mesh.h"
#include "parallel/spans.h"

struct hidden {
    bool known;    /* false: of some operation a rank has kept nothing */
    double hidden; /* ms of this rank's, all three */
    double exposed, idle;
};

/* [begin, end) of a clock, ns; nothing where end <= begin. */
struct hidden_span {
    int64_t begin, end;
};
/* Local. The three times, of spans in which something was under way, and of this rank's calls;
 * sorts both. */
struct hidden hidden_times(struct hidden_span *way, int64_t ways, struct hidden_span *call,
                           int64_t calls);

/* Collective over the mesh's world. Of the spans that every rank has kept since the same moment, in
 * which nothing was under way. offset_ns: this rank's clock less rank 0's. letters: only messages
 * between two ranks, as those between stages. Errors, agreed: STATUS_RESOURCE. */
enum status hidden_measure(struct hidden *hidden, struct mesh *mesh, const struct spans *spans,
                           int64_t offset_ns, bool letters) __attribute__((warn_unused_result));

#endif
