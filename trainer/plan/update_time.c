#include <math.h>

#include "trainer/plan/planner.h"

/* s of messages between replicas. */
struct dense_time {
    double once; /* behind the last micro-batch */
    double
        blocks; /* in all micro-batches, a block at a time, beside another's kernels if they can */
};

/* Gradients of `count` dense elements of a rank to their owners, weights back: both once a step,
 * or, where they are sharded, gradients of a part at a time, of every micro-batch, and so, forward
 * and backward, weights where these are; in FP8 once more behind the update (linears_publish). */
static void time_dense(const struct planner *p, double count, double sum, double act, int64_t ranks,
                       int64_t stride, struct dense_time *time)
{
    const struct plan *plan = p->plan;
    const struct hardware *hw = &plan->hardware;
    /* A divided backward closes a block twice; all are, where some of dualpipe_v's are. */
    const double closes = plan->pp > 1 && (plan->shape.schedule == PIPELINE_ZERO_BUBBLE ||
                                           plan->shape.schedule == PIPELINE_DUALPIPE_V)
                              ? 2
                              : 1;
    if (plan->zero == 1 || count == 0 || ranks == 1) {
        time->once += exchange_reduce_seconds(hw, (sum + act) * count, ranks, stride);
        return;
    }
    const double parts = (double)(architecture_blocks(&plan->arch) / plan->pp + 2),
                 again = (parts - 1) * hw->message, micro = (double)plan->micro_batches,
                 weights = exchange_reduce_seconds(hw, act * count, ranks, stride) + again;
    time->once += plan->zero < 3 || p->load.fp8 ? weights : 0;
    time->blocks +=
        micro * closes * (exchange_reduce_seconds(hw, sum * count, ranks, stride) + again) +
        (plan->zero < 3 ? 0 : 2 * micro * weights);
}

/* s of a step's kernels beside which a GPU sends other blocks' gradients and weights: where tokens
 * travel to experts not those around that exchange; none where ranks exchange inside attention,
 * which then waits. The first block and the last have nothing to run beside. */
static double kernels_beside(const struct plan *plan)
{
    static const enum kernel own[] = {KERNEL_DENSE,          KERNEL_DENSE_WEIGHT, KERNEL_ATTENTION,
                                      KERNEL_ATTENTION_BACK, KERNEL_NORM,         KERNEL_ROTARY},
                             experts[] = {KERNEL_EXPERTS, KERNEL_EXPERTS_WEIGHT, KERNEL_SWIGLU};
    const double blocks = (double)architecture_blocks(&plan->arch) / (double)plan->pp;
    double sum = 0;
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) {
        sum += plan->kernel_s[own[i]];
    }
    for (size_t i = 0; i < sizeof experts / sizeof experts[0] && plan->ep * plan->etp == 1; i++) {
        sum += plan->kernel_s[experts[i]];
    }
    return plan->hardware.cpu || plan->tp * plan->cp > 1 ? 0 : sum * fmax(blocks - 1, 0) / blocks;
}

/* What is left of them beside kernels. */
static double exposed_dense(const struct plan *plan, const struct dense_time *time)
{
    const double hidden = fmin(time->blocks, kernels_beside(plan));
    return time->once + time->blocks - hidden + plan->hardware.imperfect * hidden;
}

/* Codes of weights that are gathered, forward and backward of every micro-batch: of `count`
 * elements of a rank. */
static double time_codes(const struct planner *p, const double *count)
{
    const struct plan *plan = p->plan;
    const int64_t copies = plan->dp * plan->cp;
    const double gathered =
        (copies * plan->tp > 1 ? count[PARAM_DENSE] : 0) + (copies > 1 ? count[PARAM_TENSOR] : 0);
    return plan->zero < 3 ? 0 : 2 * (double)plan->micro_batches * work_codes(&p->load, gathered);
}

/* Muon's work and messages of a rank of the pipeline, its stages' one after the other. */
static void time_muon(const struct planner *p, int64_t rank, double *work, double *messages)
{
    const struct plan *plan = p->plan;
    const int64_t copies = plan->dp * plan->cp;
    const struct muon_ranks ranks[PARAM_GROUPS] = {
        [PARAM_DENSE] = {copies * plan->tp, 1, 1},
        [PARAM_TENSOR] = {copies, plan->tp, plan->tp},
        [PARAM_EXPERT] = {plan->edp, plan->ep * plan->etp, plan->etp},
        [PARAM_EMBED] = {copies, plan->tp, 1},
    };
    for (int64_t part = 0; part < plan->shape.parts; part++) {
        for (int g = 0; g < PARAM_GROUPS; g++) {
            const struct muon_load *load = &planner_memory_of(p, rank, part)->muon[g];
            *work += work_muon(&p->load, load);
            *messages += work_muon_messages(&p->load, load, &ranks[g]);
        }
    }
}

/* Gradients to their owners, the update, weights back to all: of the slowest rank. */
void planner_update(struct planner *p)
{
    struct plan *plan = p->plan;
    const double act = plan->config->train.precision == CONFIG_FP32 ? 4 : 2;
    const int64_t copies = plan->dp * plan->cp; /* of what tp divides */
    for (int64_t r = 0; r < plan->pp; r++) {
        double count[PARAM_GROUPS] = {0}, host = 0;
        for (int64_t part = 0; part < plan->shape.parts; part++) {
            const struct stage_memory *own = planner_memory_of(p, r, part);
            for (int g = 0; g < PARAM_GROUPS; g++) {
                count[g] += (double)own->elements[g];
            }
            host += (double)own->host;
        }
        const double sum = p->load.layout ? 8 : 4; /* gradients there, weights back */
        struct dense_time replicas = {0};
        double muon = 0, turns = 0;
        time_muon(p, r, &muon, &turns);
        time_dense(p, count[PARAM_DENSE], sum, act, copies * plan->tp, 1, &replicas);
        time_dense(p, count[PARAM_TENSOR], sum, act, copies, plan->tp, &replicas);
        const double reduce =
                         turns + exposed_dense(plan, &replicas) +
                         exchange_reduce_seconds(&plan->hardware, (sum + act) * count[PARAM_EXPERT],
                                                 plan->edp, plan->ep * plan->etp),
                     dense = count[PARAM_DENSE] / (double)(copies * plan->tp) +
                             count[PARAM_TENSOR] / (double)copies,
                     share = dense + count[PARAM_EXPERT] / (double)plan->edp,
                     update = muon +
                              work_optimizer(&p->load,
                                             count[PARAM_DENSE] + count[PARAM_TENSOR] +
                                                 count[PARAM_EXPERT],
                                             share, work_offloaded(&p->load, host, dense, share)) +
                              time_codes(p, count);
        if (reduce + update > plan->time.reduce + plan->time.optimizer) {
            plan->time.reduce = reduce;
            plan->time.optimizer = update;
        }
    }
    plan->time.step += plan->time.reduce + plan->time.optimizer;
    plan->kernel_s[KERNEL_OPTIMIZER] += plan->time.optimizer;
}
