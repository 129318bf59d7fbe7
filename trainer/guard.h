/* guard: whether a step's update is made, judged from its loss and gradient norm before anything
 * changes.
 *
 * Both are the same bits on every rank, so all ranks decide alike and nothing is exchanged. A value
 * is a spike when it lies more than guard.spike_factor deviations above the median of the last
 * guard.spike_window updates (of half of them, before there are more): a deviation is 1.4826 times
 * the median distance from the median, which is sigma of normal noise, but at least 2 % of the
 * median for the loss and 10 % for the gradient norm. Values that were no good are not kept.
 *
 * skip: the step counts (its batch is consumed, the schedule goes on), but weights, moments,
 * running average, router biases and the optimizer's count of updates stay. rollback: the newest
 * checkpoint that was due by checkpoint.every_steps is loaded, or the run starts anew where there
 * is none; the batches between it and the step, this one included, are passed over. guard.tries
 * skips in a row, or rollbacks with fewer than spike_window steps gained between them, are made;
 * one more ends the run. What decides lies in the checkpoint: a resumed run decides the same.
 */
#ifndef TRAINER_GUARD_H
#define TRAINER_GUARD_H

#include <jansson.h>

#include "kernels/base/status.h"
#include "trainer/config/config.h"

enum guard_verdict { GUARD_UPDATE, GUARD_SKIP, GUARD_ROLLBACK, GUARD_STOP };

struct guard_state {
    int64_t skipped;          /* steps without an update, of those that led to these weights */
    int64_t skips;            /* of them, the last ones in a row */
    int64_t passed;           /* batches passed over, as steps */
    int64_t rollbacks;        /* of the run */
    int64_t returns, trouble; /* of them, those that count against guard.tries; step of the last */
    int64_t count;            /* of updates in the window, oldest first */
    double loss[CONFIG_MOST_WINDOW], norm[CONFIG_MOST_WINDOW];
};

struct guard {
    const struct config *config; /* borrowed */
    struct guard_state *state;   /* borrowed */
    char why[256];               /* of the last verdict but GUARD_UPDATE: "loss 9.1 is ..." */
};

/* Local, the same on every rank. Takes note of the verdict in state, but of GUARD_ROLLBACK, for
 * which see guard_went_back. why: what is not finite; NULL: nothing. guard NULL: what is not
 * finite stops. GUARD_STOP leaves status_message(). */
enum guard_verdict guard_judge(struct guard *guard, int64_t step, double loss, double norm,
                               const char *why);
/* now: the state of the checkpoint of `step`, or zero; was: the one that judged step `trouble`. */
void guard_went_back(struct guard_state *now, const struct guard_state *was, int64_t trouble,
                     int64_t step);
/* Above this a value is a spike; count > 0. */
double guard_limit(const double *value, int64_t count, double factor, double least);

/* A new object, the caller's; NULL: out of memory. */
json_t *guard_write(const struct guard_state *state);
/* From what guard_write made; NULL: nothing happened yet. False: malformed. */
bool guard_read(const json_t *json, struct guard_state *state);

#endif
