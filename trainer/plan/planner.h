/* planner: what the files that work out a plan share. */
#ifndef TRAINER_PLAN_PLANNER_H
#define TRAINER_PLAN_PLANNER_H

#include "trainer/plan/plan.h"

struct planner {
    struct plan *plan; /* borrowed */
    const char *trace; /* file for play_trace, borrowed; NULL: none */
    bool brief, stops; /* plan_brief */
    struct workload load;
    struct work dense, moe, mtp, head, embedding;
    double exchange[EXCHANGES];      /* s of each all-to-all, alone */
    double exchange_busy[EXCHANGES]; /* beside kernels */
    struct stage_memory memory[PLAN_STAGES];
    double kept[PLAN_STAGES]; /* bytes of a stage's activations of one micro-batch */
    double held[PLAN_RANKS];  /* bytes of activations of a rank of the pipeline, at most */
};

/* Whether training lays out such stages. */
bool planner_has_stages(const struct plan *plan);
/* Whether messages of one pass of a pair run beside the other one's kernels. */
bool planner_overlaps(const struct plan *plan);
/* Of a block: the main model's dense and later ones, a prediction module's. */
const struct work *planner_work(const struct planner *p, int64_t block);
/* Plays the schedule: plan->time but the update's part, and held; wants kept. Errors:
 * STATUS_RESOURCE. */
enum status planner_time(struct planner *p) __attribute__((warn_unused_result));

/* Gradients between replicas, the update, weights back: plan->time's part of that, and of the
 * kernels; wants the others of these. */
void planner_update(struct planner *p);

/* plan_memory.c */
/* Weights and gradients of experts, which nothing else divides: no rank of a stage has less than
 * the average of all has. */
size_t planner_least_memory(const struct plan *plan);
/* Memory of the stages, those of the same kind measured once, and kept; wants stages. Errors:
 * STATUS_RESOURCE, STATUS_USAGE. */
enum status planner_measure(struct planner *p) __attribute__((warn_unused_result));
/* Of the stage that is `part` of a rank. */
const struct stage_memory *planner_memory_of(const struct planner *p, int64_t rank, int64_t part);
/* plan->memory of the fullest rank; wants held. Errors: as planner_measure. */
enum status planner_memory(struct planner *p) __attribute__((warn_unused_result));

#endif
