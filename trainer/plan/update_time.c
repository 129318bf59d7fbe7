#include <math.h>

#include "trainer/plan/planner.h"

/* s of messages between replicas. */
struct dense_time {
    double once;   /* behind the last micro-batch */
    double blocks; /* in all micro-batches, a block at a time, beside another's kernels if they can,
                      but for: */
    double last;   /* those beside the last one's backward alone */
};

/* Parts of a group of parameters on a rank of the pipeline (reduction.h). */
static int64_t count_parts(const struct plan *plan, int64_t rank, enum param_group group)
{
    const int64_t last = pipeline_stages(&plan->shape) - 1;
    const bool apart =
        plan->arch.mtp_depth > 0 && /* a group of its own, which two stages share */
        pipeline_place(&plan->shape, 0, 0).rank != pipeline_place(&plan->shape, last, 0).rank;
    int64_t parts = 0;
    for (int64_t i = 0; i < plan->shape.parts; i++) {
        const struct stage *stage = &plan->stage[pipeline_stage(&plan->shape, rank, i)];
        const int64_t end = stage->first + stage->blocks, dense = plan->arch.dense_layers,
                      first = stage->first > dense ? stage->first : dense;
        parts += group != PARAM_EXPERT
                     ? stage->blocks + (stage->embedding && !apart) + 2 * stage->head
                 : first < end ? end - first
                               : 0;
    }
    return parts;
}

/* What a group's messages are of: elements of a rank, bytes of one's gradient and weight, ranks
 * that hold the same, so far apart. */
struct replicated {
    enum param_group group;
    double count, sum, act;
    int64_t ranks, stride;
};

static double time_between(const struct planner *p, const struct replicated *of, double bytes)
{
    return exchange_reduce_seconds(&p->plan->hardware, bytes * of->count, of->ranks, of->stride);
}

/* Whole gradients to their owners, weights back: both once a step; gradients a block at a time,
 * each to one rank, beside the last micro-batch's backward where training does so (reduction.h). */
static void time_whole(const struct planner *p, int64_t rank, const struct replicated *of,
                       struct dense_time *time)
{
    const struct plan *plan = p->plan;
    const struct hardware *hw = &plan->hardware;
    const int64_t parts = count_parts(plan, rank, of->group);
    if (of->count == 0) {
        return;
    }
    if (hw->cpu || plan->config->run.comm == CONFIG_COMM_MPI || /* staged */
        !reduction_of_gpu(plan->config, of->group, of->ranks, plan->ep * plan->etp, parts)) {
        time->once += time_between(p, of, of->sum + of->act);
        return;
    }
    const double start = 2 * hw->message, all = (double)of->ranks / (double)(of->ranks - 1);
    time->last +=
        (time_between(p, of, of->sum) - start) * all + (double)(parts + of->ranks) * hw->message;
    time->once += time_between(p, of, of->act);
}

/* The same of dense ones; where they are sharded, gradients go a part at a time, of every
 * micro-batch, and so, forward and backward, weights where these are; in FP8 once more behind the
 * update (linears_publish). */
static void time_dense(const struct planner *p, int64_t rank, const struct replicated *of,
                       struct dense_time *time)
{
    const struct plan *plan = p->plan;
    const struct hardware *hw = &plan->hardware;
    /* A divided backward closes a block twice; all are, where some of dualpipe_v's are. */
    const double closes = plan->pp > 1 && (plan->shape.schedule == PIPELINE_ZERO_BUBBLE ||
                                           plan->shape.schedule == PIPELINE_DUALPIPE_V)
                              ? 2
                              : 1;
    if (plan->zero == 1 || of->count == 0 || of->ranks == 1) {
        time_whole(p, rank, of, time);
        return;
    }
    const double parts = (double)(architecture_blocks(&plan->arch) / plan->pp + 2),
                 again = (parts - 1) * hw->message, micro = (double)plan->micro_batches,
                 weights = time_between(p, of, of->act) + again;
    time->once += plan->zero < 3 || p->load.fp8 ? weights : 0;
    time->blocks += micro * closes * (time_between(p, of, of->sum) + again) +
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
static double exposed_messages(const struct plan *plan, const struct dense_time *time)
{
    const struct plan_times *unit = &plan->time;
    const double back = unit->backward + unit->weight, kernels = kernels_beside(plan),
                 last = kernels * back / (unit->forward + back) / (double)plan->micro_batches,
                 hidden_last = fmin(time->last, last),
                 hidden = hidden_last + fmin(time->blocks, kernels - hidden_last);
    return time->once + time->blocks + time->last - hidden + plan->hardware.imperfect * hidden;
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
        const struct replicated dense_ones = {PARAM_DENSE, count[PARAM_DENSE], sum,
                                              act,         copies * plan->tp,  1},
                                divided = {PARAM_TENSOR, count[PARAM_TENSOR], sum, act, copies,
                                           plan->tp},
                                experts = {PARAM_EXPERT, count[PARAM_EXPERT], sum,
                                           act,          plan->edp,           plan->ep * plan->etp};
        time_dense(p, r, &dense_ones, &replicas);
        time_dense(p, r, &divided, &replicas);
        time_whole(p, r, &experts, &replicas);
        const double reduce = turns + exposed_messages(plan, &replicas),
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
