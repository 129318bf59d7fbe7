/* pipeline: schedules of micro-batches over pipeline stages, as tables of actions.
 *
 * The model is cut into stages, contiguous slices of its blocks; a micro-batch goes forward through
 * all of them and backward again. Rank r has `parts` stages, and its track says in which order it
 * does what with which micro-batch. Who runs a step walks its own track; who plans one plays all
 * tracks against each other (timeline.h).
 *
 *   1f1b         one forward, one backward (PipeDream-flush); stage r
 *   interleaved  the same, of `parts` thinner stages r, r + P, ... (Narayanan et al. 2021, 2.2)
 *   zero_bubble  ZB-H1 (Qi et al. 2023): gradients of weights are put off into the gaps; stage r
 *   pairs        one rank, one stage: each forward with the backward of the micro-batch before it,
 *                as DualPipe's pairs without its stages
 *   dualpipe     DeepSeek-V3's: micro-batches enter at both ends, every stage is on two ranks:
 *                rank r has stages r (first half of the micro-batches) and P - 1 - r (second half)
 *   dualpipe_v   the same on half the ranks (github.com/deepseek-ai/DualPipe): stages r and
 *                2P - 1 - r, each on one rank; the way turns round at the last rank
 *
 * With equal stages of F forward and B = input + W backward, gaps of a rank are (P-1)(F+B),
 * (P-1)(F+B)/parts, (P-1)(F+B-2W), and of the last two (S/2-1)(F&B+B-3W), S stages, F&B a pair.
 */
#ifndef PARALLEL_PIPELINE_H
#define PARALLEL_PIPELINE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/status.h"

enum pipeline_schedule {
    PIPELINE_1F1B,
    PIPELINE_INTERLEAVED,
    PIPELINE_ZERO_BUBBLE,
    PIPELINE_PAIRS,
    PIPELINE_DUALPIPE,
    PIPELINE_DUALPIPE_V,
    PIPELINE_SCHEDULES
};
extern const char *const pipeline_names[PIPELINE_SCHEDULES];

struct pipeline_shape {
    enum pipeline_schedule schedule;
    int64_t ranks;   /* P; pairs 1 */
    int64_t parts;   /* stages of a rank: interleaved 2 or more, dualpipe, dualpipe_v 2, others 1 */
    int64_t batches; /* micro-batches of a step, of all P ranks together */
};

enum pipeline_kind {
    PIPELINE_FORWARD,
    PIPELINE_BACKWARD, /* both halves: gradients of the input and of the weights */
    PIPELINE_BACKWARD_INPUT,
    PIPELINE_BACKWARD_WEIGHTS,
    PIPELINE_PAIR,   /* a forward, and both halves of backward of another micro-batch, in any order
                        or side by side */
    PIPELINE_SEND,   /* begins; nobody waits for its end */
    PIPELINE_RECEIVE /* waits */
};

/* (part, batch): what is computed, or made what is sent, or will use what is received. */
struct pipeline_action {
    enum pipeline_kind kind;
    int32_t part, batch;
    int32_t back_part, back_batch; /* of PIPELINE_PAIR: what goes backward */
    int32_t peer;                  /* of messages: the other rank */
    bool gradient;                 /* of messages: of activations, not these themselves */
};

struct pipeline_track {
    struct pipeline_action *action; /* [count] owned */
    int64_t count, room;
};

struct pipeline {
    struct pipeline_shape shape;
    struct pipeline_track *track; /* [ranks] owned */
};

/* What a rank must have room for. */
struct pipeline_room {
    int64_t held;    /* most (part, batch) between their forward and their weights' gradients */
    int64_t waiting; /* most messages that have been received and not used yet */
};

/* pipeline_room.c: most micro-batches of each part of rank `rank` between their forward and their
 * weights' gradients: held[parts]. */
void pipeline_held(const struct pipeline *pipeline, int64_t rank, int64_t *held);
/* ... most of them between their gradients of inputs and of weights, where these are apart:
 * off[parts]. */
void pipeline_put_off(const struct pipeline *pipeline, int64_t rank, int64_t *off);
/* Most messages of rank `rank` that are there and not used yet, with those from one of its parts to
 * another, which do not travel. A pair's forward comes first. */
int64_t pipeline_letters(const struct pipeline *pipeline, int64_t rank);
/* The fewest messages that every rank must be able to have under way, sent and not received yet,
 * for the table to come to an end. Who has so many waits for the oldest. The table has passed
 * pipeline_check. Errors: STATUS_RESOURCE. */
enum status pipeline_sending(const struct pipeline *pipeline, int64_t *sending)
    __attribute__((warn_unused_result));

/* Errors: STATUS_USAGE: there is no such table; says why. Local, as everything here. */
enum status pipeline_fits(const struct pipeline_shape *shape) __attribute__((warn_unused_result));
/* The table. Between two ranks messages are received in the order they are sent, so that a
 * transport needs no tags. Errors: those of pipeline_fits; STATUS_RESOURCE. */
enum status pipeline_init(struct pipeline *pipeline, const struct pipeline_shape *shape)
    __attribute__((warn_unused_result));
void pipeline_free(struct pipeline *pipeline); /* accepts a zeroed one */

/* Of the model, all parts of all ranks; a stage of dualpipe, which is on two ranks, counts once. */
int64_t pipeline_stages(const struct pipeline_shape *shape);
int64_t pipeline_stage(const struct pipeline_shape *shape, int64_t rank, int64_t part);
/* Who has `stage` for micro-batch `batch`. */
struct pipeline_place {
    int64_t rank, part;
};
struct pipeline_place pipeline_place(const struct pipeline_shape *shape, int64_t stage,
                                     int64_t batch);

/* pipeline_check.c: whether the table computes everything once, on the rank that has the stage,
 * from what is there by then, and comes to an end; room[ranks] may be NULL. Errors: STATUS_INTERNAL
 * with the first action that is wrong; STATUS_RESOURCE. */
enum status pipeline_check(const struct pipeline *pipeline, struct pipeline_room *room)
    __attribute__((warn_unused_result));

#endif
