/* stages: which blocks each pipeline stage has: contiguous ones, so that the dearest rank is as
 * cheap as can be.
 */
#ifndef TRAINER_PLAN_STAGES_H
#define TRAINER_PLAN_STAGES_H

#include "trainer/plan/plan.h"

/* stage[stages] <- blocks of cost[blocks] > 0, of which `layers` are the main model's, whose head
 * is with the last of them; stages <= blocks and PLAN_STAGES. pairs: a rank has
 * stages s and stages - 1 - s, of which there is an even number (DualPipe). Every stage has a
 * block; with pairs the inner ones may have none where blocks are few. */
void stages_divide(struct stage *stage, const double *cost, int64_t blocks, int64_t layers,
                   int64_t stages, bool pairs);
/* stage[stages] <- as cluster.stages says. Errors: STATUS_USAGE: not so many stages, not all
 * blocks. */
enum status stages_listed(struct stage *stage, const struct config_reals *list, int64_t blocks,
                          int64_t layers, int64_t stages) __attribute__((warn_unused_result));

#endif
