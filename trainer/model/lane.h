/* lane: two passes of a model side by side: a forward of one micro-batch and the backward of
 * another, each going on while rows of the other are on their way to experts or back (DualPipe,
 * DeepSeek-V3 section 3.2.1), of two stages of a rank or, without stages, of the whole model.
 *
 * Each pass is a fiber that stops (fiber_yield) where it has begun an exchange with the experts, as
 * often in every block, whatever is exchanged: ranks of other groups than the experts' see the same
 * order of operations too. What a pass has on its way from one stop to the next (streams, hidden
 * rows of shared experts, rows of exchanges, what blocks lend, the batch) is there twice, once in
 * each lane; the fields of struct model are those of the lane that runs. Everything else is there
 * once: what backward alone uses, for one backward runs at a time, and what no pass holds across a
 * stop, as the insides of attention.
 *
 * A part of a pipeline's rank has a lane of its own: a pair's passes are of two parts. Without
 * stages each of two slots has one.
 */
#ifndef TRAINER_LANE_H
#define TRAINER_LANE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/fiber.h"

struct model;
struct model_losses;

enum { LANES = 2 };

struct lanes {
    int64_t count, current; /* count 1: passes run one behind the other */
    void *kept[LANES];      /* owned: the fields of struct model of a lane that does not run */
    struct fiber fiber[LANES];
    int64_t layer[LANES]; /* that a pass computes, for who watches */
};

/* Local. Whether a model of this config on this mesh has two lanes. After the slice and the groups
 * of parameters are known. */
bool lanes_wanted(const struct model *model);
/* Local. Host memory of two lanes, where they are wanted. After everything else but the arenas is
 * there. Errors: STATUS_RESOURCE. */
enum status lanes_init(struct model *model) __attribute__((warn_unused_result));
/* Local. The stacks they run on: of a model that is not measured only. Errors: STATUS_RESOURCE. */
enum status lanes_open(struct model *model) __attribute__((warn_unused_result));
void lanes_free(struct model *model); /* accepts a zeroed one */

/* Local. Of a slot (model.h). */
int64_t lane_of(const struct model *model, int64_t slot);
/* Local. Whether passes of this lane go through the final norm. */
bool lane_heads(const struct model *model, int64_t lane);
/* Local. What runs next is of this lane. */
void lane_use(struct model *model, int64_t lane);
/* Local. model->losses and model->aux of all lanes; lane 0 is used then. */
void lanes_losses(struct model *model, struct model_losses *losses, double *aux);

/* A pass, and the lane it runs in. */
struct lane_pass {
    void (*run)(void *arg);
    void *arg;
    int64_t lane;
};
/* Both passes side by side, of two lanes; the first starts. Returns when `first` has ended, in its
 * lane; lanes_finish goes on with the other, and returns in that one's. */
void lanes_start(struct model *model, const struct lane_pass *first,
                 const struct lane_pass *second);
void lanes_finish(struct model *model, const struct lane_pass *second);

#endif
