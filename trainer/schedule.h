/* schedule: the learning rate of a step. */
#ifndef TRAINER_SCHEDULE_H
#define TRAINER_SCHEDULE_H

#include "trainer/config.h"

/* Of optimizer step `step` (from 1): linear warm-up to optimizer.lr over warmup_steps, then
 * constant; cosine down to final_lr_ratio * lr at run.steps; or wsd: constant, then linear down to
 * it over the last fifth of the run (Hu et al. 2024). */
double schedule_lr(const struct config *config, int64_t step);

#endif
