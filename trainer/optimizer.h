/* optimizer: from summed gradients to new weights: reduce, norm, clip, AdamW on this rank's share,
 * gather. */
#ifndef TRAINER_OPTIMIZER_H
#define TRAINER_OPTIMIZER_H

#include "trainer/model.h"

/* Collective over the mesh. Sums gradients over the replicas; this rank's share of each group holds
 * the sum. Returns the global L2 norm, every parameter counted once (not finite when any gradient
 * is not). */
double optimizer_reduce(struct model *model);
/* Collective. One AdamW step at learning rate lr, gradients clipped to optimizer.clip_norm by
 * min(1, c / (norm + 1e-6)); weights are gathered. step from 1. */
void optimizer_step(struct model *model, double norm, double lr, int64_t step);

#endif
