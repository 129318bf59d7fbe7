#include "trainer/plan/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/plan/planner.h"
#include "trainer/step.h"

static __attribute__((format(printf, 2, 3))) void warn(struct plan *plan, const char *format, ...)
{
    if (plan->warnings == PLAN_WARNINGS) {
        return;
    }
    va_list args;
    va_start(args, format);
    vsnprintf(plan->warning[plan->warnings++], PLAN_TEXT, format, args);
    va_end(args);
}

/* --- layout --- */

bool planner_has_stages(const struct plan *plan)
{
    return plan->pp == 1 || plan->shape.schedule != PIPELINE_DUALPIPE;
}

/* Whether its table has pairs, and experts exchange. */
static bool has_pairs(const struct plan *plan)
{
    return plan->shape.schedule >= PIPELINE_PAIRS && plan->ep * plan->etp > 1;
}

bool planner_overlaps(const struct plan *plan)
{
    const struct config *config = plan->config;
    return plan->shape.schedule != PIPELINE_DUALPIPE_V ||
           (config->parallel.overlap != CONFIG_OVERLAP_OFF && config->parallel.zero < 3 &&
            (config->parallel.overlap == CONFIG_OVERLAP_ON || !hardware_stages(config)));
}

static bool is_dual(const struct plan *plan)
{
    return plan->pp > 1 && (plan->shape.schedule == PIPELINE_DUALPIPE ||
                            plan->shape.schedule == PIPELINE_DUALPIPE_V);
}

static struct pipeline_shape shape_of(const struct plan *plan, int pipeline)
{
    return stages_shape(plan->config, pipeline, plan->pp, plan->micro_batches);
}

/* Every stage has a block; parts of stages are 1f1b's. */
static enum status check_stages(const struct plan *plan)
{
    const int64_t parts = plan->config->parallel.virtual_stages,
                  blocks = architecture_blocks(&plan->arch), stages = pipeline_stages(&plan->shape);
    if (plan->pp > 1 && parts > 1 && plan->shape.schedule != PIPELINE_INTERLEAVED) {
        return status_fail(
            STATUS_USAGE,
            "parallel.virtual_stages %lld is of parallel.schedule 1f1b: use that, or 1",
            (long long)parts);
    }
    if (stages > blocks && parts > 1) {
        return status_fail(STATUS_USAGE,
                           "parallel.pp %lld x parallel.virtual_stages %lld is more than the "
                           "model's %lld blocks",
                           (long long)plan->pp, (long long)parts, (long long)blocks);
    }
    return stages <= blocks && stages <= PLAN_STAGES
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "parallel.pp %lld makes %lld stages, more than the model's %lld "
                             "blocks or %d",
                             (long long)plan->pp, (long long)stages, (long long)blocks,
                             PLAN_STAGES);
}

static enum status choose_schedule(struct plan *plan)
{
    const struct config *config = plan->config;
    plan->shape = shape_of(plan, config->parallel.schedule);
    TRY(pipeline_fits(&plan->shape));
    plan->by_node = config->cluster.exchange == CONFIG_EXCHANGE_AUTO
                        ? plan->pp > 1
                        : config->cluster.exchange == CONFIG_EXCHANGE_BY_NODE;
    return check_stages(plan);
}

static enum status set_layout(struct plan *plan)
{
    const struct config *config = plan->config;
    const int64_t ranks = plan->hardware.ranks;
    plan->ep = config->parallel.ep;
    plan->etp = config->parallel.etp;
    plan->pp = config->parallel.pp;
    if (plan->pp > PLAN_RANKS || plan->pp > architecture_blocks(&plan->arch)) {
        return status_fail(
            STATUS_USAGE, "parallel.pp %lld is more than the model's %lld blocks or %d",
            (long long)plan->pp, (long long)architecture_blocks(&plan->arch), PLAN_RANKS);
    }
    plan->tp = config->parallel.tp;
    plan->cp = config->parallel.cp;
    plan->zero = config->parallel.zero;
    if (ranks % (plan->pp * plan->ep * plan->etp) != 0 ||
        ranks % (plan->pp * plan->cp * plan->tp) != 0) {
        return status_fail(STATUS_USAGE,
                           "parallel.pp %lld x ep %lld x etp %lld or x cp %lld x tp %lld does not "
                           "divide the %lld ranks (cluster.nodes %lld x gpus_per_node %lld)",
                           (long long)plan->pp, (long long)plan->ep, (long long)plan->etp,
                           (long long)plan->cp, (long long)plan->tp, (long long)ranks,
                           (long long)plan->hardware.nodes,
                           (long long)plan->hardware.ranks_per_node);
    }
    plan->dp = ranks / plan->pp / plan->tp / plan->cp;
    plan->edp = ranks / plan->pp / plan->ep / plan->etp;
    TRY(stepper_check(config, plan->dp));
    plan->micro_batches = config->train.global_batch / config->train.micro_batch / plan->dp;
    return choose_schedule(plan);
}

const struct work *planner_work(const struct planner *p, int64_t block)
{
    const struct architecture *arch = &p->plan->arch;
    return block < arch->dense_layers ? &p->dense : block < arch->layers ? &p->moe : &p->mtp;
}

static double whole_work(const struct work *work)
{
    return work_sum(work, PHASE_FORWARD) + work_sum(work, PHASE_BACKWARD) +
           work_sum(work, PHASE_WEIGHT);
}

static double cost_of(const struct planner *p, int64_t block)
{
    const struct architecture *arch = &p->plan->arch;
    const double head = block >= arch->layers - 1 ? whole_work(&p->head) : 0; /* last, and MTP's */
    return whole_work(planner_work(p, block)) + head;
}

/* By cost. Of schedules that have two stages on a rank either these are alike together, or every
 * stage is: whichever plays faster. */
static enum status balance_stages(struct planner *p)
{
    struct plan *plan = p->plan;
    const int64_t blocks = architecture_blocks(&plan->arch), stages = pipeline_stages(&plan->shape);
    double seconds[2] = {0}, *cost = malloc((size_t)blocks * sizeof *cost);
    enum status status =
        cost != NULL
            ? STATUS_OK
            : status_fail(STATUS_RESOURCE, "out of memory for %lld layers", (long long)blocks);
    for (int64_t b = 0; b < blocks && cost != NULL; b++) {
        cost[b] = cost_of(p, b);
    }
    for (int pairs = 0; pairs < 2 && is_dual(plan) && status == STATUS_OK; pairs++) {
        stages_divide(plan->stage, cost, blocks, plan->arch.layers, stages, pairs);
        status = planner_time(p);
        seconds[pairs] = plan->time.step;
    }
    if (status == STATUS_OK) {
        stages_divide(plan->stage, cost, blocks, plan->arch.layers, stages,
                      seconds[1] < seconds[0]);
    }
    free(cost);
    return status;
}

/* As training does it, where it has the schedule. */
static enum status divide_blocks(struct planner *p)
{
    const struct plan *plan = p->plan;
    const struct config_reals *listed = &plan->config->parallel.stages;
    if (plan->pp > 1 && planner_has_stages(plan)) {
        return stages_of(p->plan->stage, plan->config, &plan->arch, &plan->shape);
    }
    return listed->count > 0
               ? stages_listed(p->plan->stage, listed, architecture_blocks(&p->plan->arch),
                               p->plan->arch.layers, pipeline_stages(&p->plan->shape))
               : balance_stages(p);
}

/* Average rank, all micro-batches: kernels by family. */
static void sum_kernels(struct planner *p)
{
    struct plan *plan = p->plan;
    const double each = (double)plan->micro_batches / (double)plan->pp;
    for (int64_t b = 0; b < architecture_blocks(&plan->arch); b++) {
        const struct work *parts[] = {planner_work(p, b), b >= plan->arch.layers ? &p->head : NULL,
                                      b == 0 ? &p->embedding : NULL,
                                      b == plan->arch.layers - 1 ? &p->head : NULL};
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            for (int k = 0; k < KERNELS && parts[i] != NULL; k++) {
                plan->kernel_s[k] +=
                    each * (parts[i]->s[PHASE_FORWARD][k] + parts[i]->s[PHASE_BACKWARD][k] +
                            parts[i]->s[PHASE_WEIGHT][k]);
            }
        }
    }
}

/* --- the rest --- */

static enum status count_parameters(struct plan *plan)
{
    struct params params;
    /* the shortest table: counts are of the whole model */
    const struct params_place place = {
        .ep_size = (int)plan->arch.experts, .etp_size = 1, .tp_size = 1};
    const enum status status = params_init(&params, &plan->arch, false, &place);
    plan->total = params.total;
    plan->active = params.active;
    plan->mtp = params.mtp;
    params_free(&params);
    return status;
}

static void count_flops(struct plan *plan)
{
    struct architecture plain = plan->arch;
    const int64_t t = plan->config->train.sequence_length;
    plain.mtp_depth = 0;
    plan->flops_per_token_mtp = architecture_flops_per_token(&plan->arch, t);
    plan->flops_per_token = architecture_flops_per_token(&plain, t);
    /* a sequence of 2n has, on average, n visible keys */
    const int64_t visible = plain.window > 0 && plain.window < t ? plain.window : t;
    plain.window = 0;
    plan->flops_per_token_whole = architecture_flops_per_token(&plain, 2 * visible);
}

static void finish_rates(struct plan *plan)
{
    const struct config *config = plan->config;
    const double act = config->train.precision == CONFIG_FP32 ? 4 : 2,
                 moment = config->optimizer.moments == CONFIG_MOMENTS_BF16 ? 2 : 4,
                 peak = plan->hardware.peak_bf16 * (double)plan->hardware.ranks;
    plan->tokens_per_step =
        (double)config->train.global_batch * (double)config->train.sequence_length;
    plan->tokens_per_s = plan->tokens_per_step / plan->time.step;
    plan->mfu = plan->tokens_per_s * plan->flops_per_token / peak;
    plan->mfu_mtp = plan->tokens_per_s * plan->flops_per_token_mtp / peak;
    plan->mfu_whole = plan->tokens_per_s * plan->flops_per_token_whole / peak;
    plan->checkpoint_bytes =
        (double)(plan->total + plan->mtp) *
        (act + (act < 4 ? 4 : 0) + 2 * moment + (config->optimizer.ema > 0 ? 4 : 0));
    plan->save_s = plan->checkpoint_bytes / (plan->hardware.disk * (double)plan->hardware.nodes);
}

static void warn_exchange(struct plan *plan)
{
    const struct exchange_shape *x = &plan->exchange;
    const int64_t nodes = exchange_nodes(x);
    if (nodes <= 1) {
        return;
    }
    if (x->groups <= 1) {
        warn(plan,
             "ep %lld spans %lld nodes and routing is not limited to groups: a token's %lld "
             "experts "
             "lie on %.1f nodes on average",
             (long long)plan->ep, (long long)nodes, (long long)x->top_k, exchange_spread(x, nodes));
    } else if (x->groups != nodes) {
        warn(plan,
             "model.n_group %lld is not the %lld nodes of an ep group: a token reaches %.1f nodes "
             "on average, however many groups topk_group %lld leaves it",
             (long long)x->groups, (long long)nodes, exchange_spread(x, nodes),
             (long long)x->top_groups);
    }
    warn(plan,
         plan->by_node ? "ep %lld spans %lld nodes: planned as if what comes back were added up in "
                         "each node on the way; training sends it by slot (cluster.exchange direct)"
         : exchange_relays(x) ? "ep %lld spans %lld nodes: tokens go over the network once to each "
                                "node, what comes back by slot"
                              : "ep %lld spans %lld nodes: training sends a token once to each "
                                "rank, not once to each node",
         (long long)plan->ep, (long long)nodes);
}

enum { PLAN_WHY = 300 };

static int device_of(const struct plan *plan)
{
    return plan->hardware.cpu ? CONFIG_DEVICE_CPU : CONFIG_DEVICE_CUDA;
}

/* why: the first reason that it does not. */
static bool trains(const struct plan *plan, char *why, size_t bytes)
{
    const bool wished = plan->config->parallel.node_dispatch == CONFIG_NODE_DISPATCH_HIERARCHICAL;
    if (wished && !plan->exchange.apart) {
        snprintf(
            why, bytes,
            "parallel.node_dispatch hierarchical: a group of ep ranks is not of whole nodes of "
            "at least 2 ranks each, on at least 2 nodes");
        return false;
    }
    return config_trains(plan->config, device_of(plan), why, bytes);
}

bool plan_trains(const struct plan *plan)
{
    char why[PLAN_WHY];
    return trains(plan, why, sizeof why);
}

static void warn_all(struct plan *plan)
{
    const struct config *config = plan->config;
    char why[PLAN_WHY];
    if (!trains(plan, why, sizeof why)) {
        warn(plan, "does not train: %s", why);
    }
    if (!plan->fits) {
        warn(plan, "does not fit: %.1f GB a rank, %s has %.1f GB", (double)plan->memory.all / 1e9,
             plan->hardware.name, plan->hardware.memory / 1e9);
    }
    if (plan->pp > 1 && planner_has_stages(plan) && !plan->hardware.cpu) {
        warn(plan,
             "parallel.pp %lld on GPUs: messages between stages go through the host in this "
             "version: slower than planned here",
             (long long)plan->pp);
    }
    if (has_pairs(plan) && plan->shape.schedule != PIPELINE_DUALPIPE && planner_overlaps(plan) &&
        (plan->hardware.cpu || config->run.comm == CONFIG_COMM_MPI)) {
        warn(plan,
             "parallel.overlap: planned as if messages between experts ran beside the other half "
             "of a pair; %s waits for most of them",
             plan->hardware.cpu ? "MPI on CPUs" : "run.comm mpi");
    }
    if (plan->tp > plan->hardware.ranks_per_node) {
        warn(plan,
             "parallel.tp %lld is more than a node's %lld ranks: every layer waits for the "
             "network",
             (long long)plan->tp, (long long)plan->hardware.ranks_per_node);
    }
    warn_exchange(plan);
    if (plan->ep * plan->etp > 1 && config->router.dispatch == CONFIG_EXACT) {
        warn(plan,
             "experts: a rank that is sent more than %.3g times its fair share of rows takes more "
             "rounds (router.buffer_factor); memory holds either way",
             config->router.buffer_factor);
    }
    if (plan->time.bubble > 0.15 * plan->time.step) {
        warn(plan, "%.0f %% of a step is waiting between stages: more micro-batches than %lld help",
             100 * plan->time.bubble / plan->time.step, (long long)plan->micro_batches);
    }
    if (config->checkpoint.every_steps > 0 &&
        plan->save_s > 0.1 * plan->time.step * (double)config->checkpoint.every_steps) {
        warn(plan, "a save takes %.0f s, steps between two %.0f s", plan->save_s,
             plan->time.step * (double)config->checkpoint.every_steps);
    }
}

static void prepare(struct planner *p)
{
    struct plan *plan = p->plan;
    const struct hardware *hw = &plan->hardware;
    workload_init(&p->load, plan->config, hw, plan->by_node);
    p->load.own = has_pairs(plan) ? hw->own : 1;
    plan->exchange = p->load.exchange;
    p->dense = work_block(&p->load, WORK_DENSE);
    p->moe = work_block(&p->load, WORK_MOE);
    p->mtp = work_block(&p->load, WORK_MTP);
    p->head = work_head(&p->load);
    p->embedding = work_embedding(&p->load);
    for (int i = 0; i < EXCHANGES; i++) {
        p->exchange[i] = exchange_seconds(hw, &plan->exchange, (enum exchange_kind)i, false);
        p->exchange_busy[i] = exchange_seconds(hw, &plan->exchange, (enum exchange_kind)i, true);
        plan->exchange_s[i] = p->exchange[i];
    }
}

static enum status work_out(struct planner *p)
{
    struct plan *plan = p->plan;
    TRY(set_layout(plan));
    plan->memory.all = planner_least_memory(plan);
    if (p->stops && (double)plan->memory.all > plan->hardware.memory) {
        return STATUS_OK;
    }
    prepare(p);
    TRY(divide_blocks(p));
    TRY(planner_measure(p));
    TRY(planner_time(p));
    TRY(planner_memory(p));
    sum_kernels(p);
    planner_update(p);
    TRY(count_parameters(plan));
    count_flops(plan);
    finish_rates(plan);
    warn_all(plan);
    return STATUS_OK;
}

static enum status make(struct plan *plan, const struct config *config,
                        const struct hardware *hardware, struct planner how)
{
    struct planner *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a plan");
    }
    *plan = (struct plan){.config = config, .hardware = *hardware};
    architecture_init(&plan->arch, config);
    *p = how;
    p->plan = plan;
    const enum status status = work_out(p);
    free(p);
    return status;
}

enum status plan_trace(struct plan *plan, const struct config *config,
                       const struct hardware *hardware, const char *path)
{
    return make(plan, config, hardware, (struct planner){.trace = path});
}

enum status plan_make(struct plan *plan, const struct config *config,
                      const struct hardware *hardware)
{
    return make(plan, config, hardware, (struct planner){0});
}

enum status plan_brief(struct plan *plan, const struct config *config,
                       const struct hardware *hardware, bool stops)
{
    return make(plan, config, hardware, (struct planner){.brief = true, .stops = stops});
}

double plan_gpu_hours(const struct plan *plan, double tokens)
{
    return tokens / plan->tokens_per_s * (double)plan->hardware.ranks / 3600;
}
