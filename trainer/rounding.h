/* rounding: whether two runs in one precision compute the same, where their sums are rounded in
 * different places: judged by how far that precision takes one of them from the same step in fp32.
 *
 * Of a tensor, rounding alone moves each run away from fp32 by about as much, and independently: so
 * the two are about sqrt(2) times as far from each other. Twice is allowed, and the largest
 * relative error of one rounding. A choice of experts that falls the other way moves a token from
 * one expert to another; so experts of a layer are judged together, and by the rounding of the
 * layer or, where that is more, of all layers, of which a small one may have no such choice.
 */
#ifndef TRAINER_ROUNDING_H
#define TRAINER_ROUNDING_H

#include <stdbool.h>

#include "kernels/base/status.h"

enum { ROUNDING_NAME = 256 };

/* Tensors that are judged together, or of all layers: squares of 2-norms. */
struct rounding_pool {
    char name[ROUNDING_NAME]; /* numbers of experts, and of layers, as * */
    double exact;             /* of the step in fp32 */
    double alone;             /* of what rounding changes of it */
    double apart;             /* of what the two differ by */
    int of_layers;            /* index of the pool of all layers; its own: none */
};

struct rounding {
    struct rounding_pool *pool; /* [count] owned */
    int count, room;
    double unit;         /* largest relative error of one rounding in the precision */
    double exact, alone; /* as in a pool, of all gradients (moment1/) */
};

/* own, exact: checkpoints of one step on one rank, in the precision and in fp32; all that both
 * have in f32 is measured, masters against fp32's weights. Errors: those of checkpoint_open and
 * checkpoint_read, STATUS_RESOURCE. */
enum status rounding_init(struct rounding *rounding, const char *own, const char *exact,
                          double unit) __attribute__((warn_unused_result));
void rounding_free(struct rounding *rounding); /* accepts a zeroed one */

/* distance: ||a - b|| of a tensor of own's, by its name there. False: it was not measured. */
bool rounding_add(struct rounding *rounding, const char *name, double distance);

/* What rounding changed of a number that is `exact` in fp32; relative. */
double rounding_of(double own, double exact);
/* What it changes of the norm of all gradients where it is independent of them: half the square of
 * what it changes of them; twice that. */
double rounding_of_norm(const struct rounding *rounding);
/* What is allowed of a number that rounding changed by so much: one sample, which may lie near
 * fp32's by chance, so four units at least; relative. */
double rounding_allowed(const struct rounding *rounding, double alone);

/* Of a pool, relative to the step in fp32. */
struct rounding_verdict {
    const char *name; /* borrowed; NULL: nothing differs */
    double difference, allowed;
};
/* The pool, of those whose names begin so, or (`others`) don't, that differs most for what it may.
 */
struct rounding_verdict rounding_worst(const struct rounding *rounding, const char *prefix,
                                       bool others);

#endif
