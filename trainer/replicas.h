/* replicas: whether ranks that hold the same weights hold the same bits.
 *
 * Dense weights and router biases are the same on every rank, a rank's experts on the ranks of its
 * edp group, what tp divides on those with the same tp rank. Masters and moments have one owner
 * each (ZeRO-1) and no copies. Every weight's copies are written anew by the gather behind each
 * update, so what is found is what went wrong since: in the gather itself, in the memory it went
 * to, or in the biases, which every rank updates alike by itself. Cost: each rank reads its weights
 * once, and three small collectives.
 */
#ifndef TRAINER_REPLICAS_H
#define TRAINER_REPLICAS_H

#include "trainer/fault.h"
#include "trainer/model/model.h"

struct replicas {
    struct model *model; /* borrowed */
    int64_t equal;       /* the last step after which they were */
};

/* Collective over the world, behind step `step`. Errors, agreed: STATUS_DIVERGED names the tensor,
 * the first coordinate, both values, the ranks and their hosts; STATUS_RESOURCE. */
enum status replicas_check(struct replicas *replicas, int64_t step)
    __attribute__((warn_unused_result));
/* Local, a drill: one bit of this rank's copy. Of a weight that another rank of the group owns,
 * where there is one, or of the first router's bias (nothing, where routers have none). */
void replicas_flip(struct model *model, enum fault_flip flip);

#endif
