/* timeline: what a step takes, by playing a pipeline's table against costs of its stages.
 *
 * Every rank does its track's actions one after the other; a receive waits until the message is
 * there, `hop` after it was sent; sending itself takes no time of the rank. The tracks are those
 * that a run walks.
 */
#ifndef PARALLEL_TIMELINE_H
#define PARALLEL_TIMELINE_H

#include "parallel/pipeline.h"

/* Of one micro-batch, [stages], borrowed. */
struct timeline_costs {
    const double *forward, *input, *weights; /* s; the two halves of backward */
    const double *pair; /* s: forward of the stage with both halves of backward of the rank's other
                           stage; NULL: one after the other */
    const double *kept; /* what a stage keeps from forward to its weights' gradients, any unit;
                           NULL: 1 each */
    double hop;         /* s from a rank to another */
};

struct timeline_span {
    double start, end; /* s from the step's begin */
};

struct timeline {
    double seconds;              /* until the last rank is done */
    double idle;                 /* of the busiest rank */
    double *busy;                /* [ranks] owned: s */
    double *kept;                /* [ranks] owned: most at a time, in the unit of costs.kept */
    struct timeline_span **span; /* [ranks][actions of the rank] owned; of messages: at once, or
                                    the wait */
    int64_t ranks;
};

/* The table must be one that pipeline_check accepts. Local. Errors: STATUS_RESOURCE. */
enum status timeline_play(struct timeline *timeline, const struct pipeline *pipeline,
                          const struct timeline_costs *costs) __attribute__((warn_unused_result));
void timeline_free(struct timeline *timeline); /* accepts a zeroed one */

#endif
