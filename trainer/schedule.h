/* schedule: the learning rate of a step, and its global batch. Pure functions of the config and of
 * where the run stands: the same on every layout and after every resume.
 *
 * Rate: linear warm-up to optimizer.lr over warmup_steps; behind it constant; cosine down to
 * final_lr_ratio * lr at run.steps; or wsd (Hu et al. 2024): constant until decay_start, then
 * linear or half a cosine down to final_lr_ratio * lr at decay_end, and constant again. Each
 * milestone that lies behind multiplies the rate of any kind by milestone_factor; multistep is
 * constant with milestones. DeepSeek-V2 is multistep; DeepSeek-V3 is wsd with a cosine between two
 * fractions and one milestone near the end.
 *
 * Global batch: train.global_batch, or while train.batch_ramp lasts Megatron's rule: from `start`
 * up by `increment`, every size below global_batch for the same number of the first `tokens`
 * tokens.
 */
#ifndef TRAINER_SCHEDULE_H
#define TRAINER_SCHEDULE_H

#include "trainer/config/config.h"

/* Learning rate of optimizer step `step`, from 1. */
double schedule_lr(const struct config *config, int64_t step);

/* Sequences of the step that starts at sample position `position`. */
int64_t schedule_batch(const struct config *config, int64_t position);
/* Where `steps` steps from `position` lead to: the sum of their batches, without walking them. */
int64_t schedule_position(const struct config *config, int64_t position, int64_t steps);

#endif
