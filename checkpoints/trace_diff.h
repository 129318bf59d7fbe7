/* trace_diff: the first place where two traces (trace_file.h) part.
 *
 * Tensors are matched by step, unit, layer and name, and compared by their hashes: layouts don't
 * matter, and a step of a run is compared without reading its values. Of the first step that
 * differs, the first tensor is the earliest in the order of computation within a unit, in whatever
 * unit, and before what belongs to the whole step (gradients and weights of parameters). Where one
 * file has no more of a step than what it started from, that is compared.
 */
#ifndef CHECKPOINTS_TRACE_DIFF_H
#define CHECKPOINTS_TRACE_DIFF_H

#include "checkpoints/trace_file.h"

enum trace_found {
    TRACE_SAME,
    TRACE_VALUES, /* other bits */
    TRACE_SHAPE,  /* another dtype or shape */
    TRACE_ONLY_A, /* the other file has no such tensor in this step */
    TRACE_ONLY_B
};

struct trace_difference {
    enum trace_found found;
    int64_t steps, first_step, last_step; /* compared: those that both have, up to the first that
                                             differs */
    /* where, unless TRACE_SAME */
    int64_t step, unit, layer;
    char name[TRACE_NAME_BYTES];
    struct trace_record a, b; /* one of them zero where the other alone has it */
    /* of TRACE_VALUES: elements that both files keep, how many of these differ (0: the difference
     * is in what was not kept), the first of them, its values; over those kept, the largest
     * difference and ||a-b|| / ||b|| */
    int64_t compared, different, first;
    double first_a, first_b, most, relative;
    int64_t tensors, tensors_different; /* of that step */
};

/* Errors: those of trace_file.h; STATUS_DATA when the two have no step in common. */
enum status trace_diff(struct trace_difference *difference, const char *a, const char *b)
    __attribute__((warn_unused_result));

#endif
