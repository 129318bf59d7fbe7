/* plan: what a run will need and take on a cluster, before it runs: memory, messages, kernels, step
 * time, cost. docs/plan.md says how each figure is made, and how far published runs agree.
 */
#ifndef TRAINER_PLAN_PLAN_H
#define TRAINER_PLAN_PLAN_H

#include "parallel/pipeline.h"
#include "trainer/plan/memory.h"
#include "trainer/plan/work.h"

enum { PLAN_WARNINGS = 12, PLAN_TEXT = 320 };
enum { PLAN_RANKS = 64, PLAN_STAGES = STAGES_MOST }; /* of a pipeline, at most */

/* s of a step, on the rank that is done last */
struct plan_times {
    double step;
    double kernels; /* of forward and backward, all micro-batches */
    double exposed; /* messages that nothing runs beside, and what overlap costs */
    double bubble;  /* waiting for other stages */
    double reduce;  /* gradients and weights between replicas */
    double optimizer;
    double forward, backward, weight, pair; /* of one micro-batch, the slowest stage's; */
    struct work_ring ring; /* likewise: keys of parallel.cp, of whose messages exposed has a part */
};

struct plan {
    const struct config *config; /* borrowed */
    struct hardware hardware;
    struct architecture arch;
    /* layout */
    int64_t ep, etp, pp, tp, cp, dp, edp, zero;
    int64_t micro_batches; /* of a rank, a step */
    struct pipeline_shape shape;
    bool by_node;
    struct stage stage[PLAN_STAGES]; /* [pipeline_stages(&shape)] */
    double held_batches; /* most micro-batches whose activations a rank keeps, 1 for each that goes
                            through as many stages as a rank has of pp ranks' one each */
    /* model */
    int64_t total, active, mtp; /* parameters; mtp: of total, in prediction modules */
    int64_t held;               /* parameters of a rank, the fullest */
    double flops_per_token, flops_per_token_mtp; /* without, with prediction modules */
    double flops_per_token_whole;                /* without them, attention not halved */
    /* outcome */
    struct plan_memory memory;
    struct exchange_shape exchange;
    double exchange_s[EXCHANGES]; /* one all-to-all alone */
    double kernel_s[KERNELS];     /* s of a step, of all stages' average rank */
    struct plan_times time;
    double tokens_per_step, tokens_per_s; /* of all ranks */
    double mfu, mfu_mtp, mfu_whole;       /* by the FLOPs above, of the bf16 peak */
    double checkpoint_bytes, save_s;
    bool fits; /* memory */
    char warning[PLAN_WARNINGS][PLAN_TEXT];
    int warnings;
};

/* Errors: STATUS_USAGE for a layout that cannot be, STATUS_RESOURCE. A layout that does not fit is
 * no error. */
enum status plan_make(struct plan *plan, const struct config *config,
                      const struct hardware *hardware) __attribute__((warn_unused_result));
/* The same, faster: on GPUs without plan->memory.staging, and, where it `stops`, with nothing but
 * the layout and, in memory.all, experts' weights and gradients if these alone do not fit. */
enum status plan_brief(struct plan *plan, const struct config *config,
                       const struct hardware *hardware, bool stops)
    __attribute__((warn_unused_result));
/* The same, and its step as a Chrome trace (play_trace.h), of very many micro-batches the first
 * ones; path NULL: none. Errors: STATUS_IO too. */
enum status plan_trace(struct plan *plan, const struct config *config,
                       const struct hardware *hardware, const char *path)
    __attribute__((warn_unused_result));

/* Whether this version trains the layout. */
bool plan_trains(const struct plan *plan);

/* Of a budget of tokens. */
double plan_gpu_hours(const struct plan *plan, double tokens);

/* plan_print.c. price: of a GPU-hour, 0: not told; tokens: the budget. */
struct comparison; /* compare.h */
void plan_print_text(const struct plan *plan, const struct comparison *comparison, double tokens,
                     double price);
void plan_print_json(const struct plan *plan, const struct comparison *comparison, double tokens,
                     double price);

#endif
