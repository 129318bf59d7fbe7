/* stages: which blocks each pipeline stage has: contiguous ones, so that the dearest rank is as
 * cheap as can be.
 */
#ifndef TRAINER_PLAN_STAGES_H
#define TRAINER_PLAN_STAGES_H

#include "trainer/plan/memory.h"
#include "trainer/plan/pipeline.h"

/* stage[pp] <- blocks of cost[blocks] > 0; pp <= blocks. pairs: a rank has stages s and pp - 1 - s,
 * pp even (DualPipe). Every stage has a block; with pairs the inner ones may have none where blocks
 * are few. */
void stages_divide(struct stage *stage, const double *cost, int64_t blocks, int64_t pp, bool pairs);

#endif
