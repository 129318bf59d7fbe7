#include "trainer/plan/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/plan/stages.h"
#include "trainer/step.h"

/* Works out one plan. */
struct planner {
    struct plan *plan;
    struct workload load;
    struct work dense, moe, mtp, head, embedding;
    double exchange[EXCHANGES];      /* s of each all-to-all, alone */
    double exchange_busy[EXCHANGES]; /* beside kernels */
    struct stage_memory memory[PIPELINE_MOST];
};

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

/* Parts of stages are 1f1b's, and each has a block. */
static enum status check_parts(const struct plan *plan)
{
    const int64_t parts = plan->config->cluster.virtual_stages,
                  blocks = architecture_blocks(&plan->arch);
    if (plan->pp > 1 && parts > 1 && plan->schedule != CONFIG_PIPELINE_1F1B) {
        return status_fail(
            STATUS_USAGE, "cluster.virtual_stages %lld is of cluster.pipeline 1f1b: use that, or 1",
            (long long)parts);
    }
    return plan->pp == 1 || plan->pp * parts <= blocks
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "parallel.pp %lld x cluster.virtual_stages %lld is more than the "
                             "model's %lld blocks",
                             (long long)plan->pp, (long long)parts, (long long)blocks);
}

static enum status choose_schedule(struct plan *plan)
{
    const struct config *config = plan->config;
    const bool dual = pipeline_fits(CONFIG_PIPELINE_DUALPIPE, plan->pp, plan->micro_batches);
    const int said = config->cluster.pipeline;
    if (said == CONFIG_PIPELINE_DUALPIPE && plan->pp > 1 && !dual) {
        return status_fail(STATUS_USAGE,
                           "cluster.pipeline dualpipe needs an even parallel.pp and an even number "
                           "of micro-batches a rank, at least 2 x %lld, not %lld",
                           (long long)plan->pp, (long long)plan->micro_batches);
    }
    plan->schedule = said != CONFIG_PIPELINE_AUTO                  ? said
                     : dual && config->cluster.virtual_stages == 1 ? CONFIG_PIPELINE_DUALPIPE
                                                                   : CONFIG_PIPELINE_1F1B;
    plan->by_node = config->cluster.exchange == CONFIG_EXCHANGE_AUTO
                        ? plan->pp > 1
                        : config->cluster.exchange == CONFIG_EXCHANGE_BY_NODE;
    return check_parts(plan);
}

static enum status set_layout(struct plan *plan)
{
    const struct config *config = plan->config;
    const int64_t ranks = plan->hardware.ranks;
    plan->ep = config->parallel.ep;
    plan->pp = config->parallel.pp;
    if (plan->pp > PIPELINE_MOST || plan->pp > architecture_blocks(&plan->arch)) {
        return status_fail(
            STATUS_USAGE, "parallel.pp %lld is more than the model's %lld blocks or %d",
            (long long)plan->pp, (long long)architecture_blocks(&plan->arch), PIPELINE_MOST);
    }
    plan->tp = config->parallel.tp;
    if (ranks % (plan->pp * plan->ep) != 0 || ranks % (plan->pp * plan->tp) != 0) {
        return status_fail(STATUS_USAGE,
                           "parallel.pp %lld x ep %lld or x tp %lld does not divide the %lld ranks "
                           "(cluster.nodes %lld x gpus_per_node %lld)",
                           (long long)plan->pp, (long long)plan->ep, (long long)plan->tp,
                           (long long)ranks, (long long)plan->hardware.nodes,
                           (long long)plan->hardware.ranks_per_node);
    }
    plan->dp = ranks / plan->pp / plan->tp;
    plan->edp = ranks / plan->pp / plan->ep;
    TRY(stepper_check(config, plan->dp));
    plan->micro_batches = config->train.global_batch / config->train.micro_batch / plan->dp;
    return choose_schedule(plan);
}

static const struct work *work_of(const struct planner *p, int64_t block)
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
    return whole_work(work_of(p, block)) + head;
}

static enum status divide_blocks(struct planner *p)
{
    struct plan *plan = p->plan;
    const int64_t blocks = architecture_blocks(&plan->arch);
    double *cost = malloc((size_t)blocks * sizeof *cost);
    if (cost == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld layers", (long long)blocks);
    }
    for (int64_t b = 0; b < blocks; b++) {
        cost[b] = cost_of(p, b);
    }
    stages_divide(plan->stage, cost, blocks, plan->pp,
                  plan->pp > 1 && plan->schedule == CONFIG_PIPELINE_DUALPIPE);
    free(cost);
    return STATUS_OK;
}

/* --- time --- */

/* Messages of a block's forward or backward that nothing of the same micro-batch runs beside. */
static double exposed(const struct planner *p, const struct work *work, bool backward)
{
    const double *s = p->exchange;
    const double forward =
        fmax(0, s[EXCHANGE_DISPATCH] - work->shared[PHASE_FORWARD]) + s[EXCHANGE_COMBINE];
    if (!backward) {
        return forward;
    }
    const bool again = p->plan->config->train.recompute == CONFIG_RECOMPUTE_BLOCK;
    return fmax(0, s[EXCHANGE_DISPATCH_BACK] - work->shared[PHASE_BACKWARD] -
                       work->shared[PHASE_WEIGHT]) +
           fmax(0, s[EXCHANGE_COMBINE_BACK] - work->up_weight) + (again ? forward : 0);
}

/* One micro-batch on one stage. */
struct stage_time {
    double kernel[PHASES], exposed[2]; /* [backward] */
    double messages[2];                /* [backward], beside kernels */
    double split;                      /* of exposed: those of parallel.tp */
};

static void add_work(struct stage_time *time, const struct work *work)
{
    for (int i = 0; i < PHASES; i++) {
        time->kernel[i] += work_sum(work, (enum phase)i);
    }
}

static struct stage_time time_stage(const struct planner *p, const struct stage *stage)
{
    const struct architecture *arch = &p->plan->arch;
    struct stage_time time = {0};
    for (int64_t b = stage->first; b < stage->first + stage->blocks; b++) {
        const struct work *work = work_of(p, b);
        add_work(&time, work);
        if (b >= arch->layers) {
            add_work(&time, &p->head);
        }
        const double split =
            work_split_messages(&p->load, b < arch->dense_layers ? WORK_DENSE : WORK_MOE);
        time.exposed[0] += split; /* nothing runs beside them */
        time.exposed[1] += split;
        time.split += 2 * split;
        if (b >= arch->dense_layers) {
            time.exposed[0] += exposed(p, work, false);
            time.exposed[1] += exposed(p, work, true);
            time.messages[0] +=
                p->exchange_busy[EXCHANGE_DISPATCH] + p->exchange_busy[EXCHANGE_COMBINE];
            time.messages[1] +=
                p->exchange_busy[EXCHANGE_DISPATCH_BACK] + p->exchange_busy[EXCHANGE_COMBINE_BACK];
        }
    }
    if (stage->embedding) {
        add_work(&time, &p->embedding);
    }
    if (stage->head) {
        add_work(&time, &p->head);
    }
    return time;
}

static double kernels_of(const struct stage_time *time)
{
    return time->kernel[PHASE_FORWARD] + time->kernel[PHASE_BACKWARD] + time->kernel[PHASE_WEIGHT];
}

static void fill_times(const struct planner *p, const struct stage_time *stages,
                       struct pipeline_times *times)
{
    const struct plan *plan = p->plan;
    const struct hardware *hw = &plan->hardware;
    const double stream = p->load.exchange.row_back * (double)p->load.tokens / p->load.split;
    *times = (struct pipeline_times){.stages = plan->pp, .micro_batches = plan->micro_batches};
    times->hop = stream / (hw->network_share * hw->network) + hw->message;
    for (int64_t s = 0; s < plan->pp; s++) {
        const struct stage_time *own = &stages[s], *other = &stages[plan->pp - 1 - s];
        const double kernels = own->kernel[PHASE_FORWARD] + other->kernel[PHASE_BACKWARD] +
                               other->kernel[PHASE_WEIGHT],
                     messages = own->messages[0] + other->messages[1];
        times->forward[s] = own->kernel[PHASE_FORWARD] + own->exposed[0];
        times->backward[s] = own->kernel[PHASE_BACKWARD] + own->exposed[1];
        times->weight[s] = own->kernel[PHASE_WEIGHT];
        times->pair[s] = fmax(kernels, messages) * (messages > 0 ? 1 + hw->imperfect : 1) +
                         (own->split + other->split) / 2;
    }
}

/* Of one micro-batch: the slowest stage's. */
static void note_units(struct plan *plan, const struct pipeline_times *times)
{
    for (int64_t s = 0; s < times->stages; s++) {
        plan->time.forward = fmax(plan->time.forward, times->forward[s]);
        plan->time.backward = fmax(plan->time.backward, times->backward[s]);
        plan->time.weight = fmax(plan->time.weight, times->weight[s]);
        plan->time.pair = fmax(plan->time.pair, times->pair[s]);
    }
}

/* Stages cut into v parts, taken in turn: gaps are a v-th, and rank r keeps as many parts more as
 * it is ahead (Narayanan et al. 2021). */
static void interleave(const struct plan *plan, struct pipeline_result *result)
{
    const int64_t parts =
        plan->schedule == CONFIG_PIPELINE_1F1B ? plan->config->cluster.virtual_stages : 1;
    const double gone = result->idle * (1 - 1 / (double)parts);
    result->seconds -= gone;
    result->idle -= gone;
    for (int64_t r = 0; r < plan->pp && parts > 1; r++) {
        result->held[r] += (plan->pp - 1 + parts - 1) / parts;
    }
}

/* Plays a schedule; of very many micro-batches the first ones, which tell what each more takes. */
static enum status play(struct pipeline_result *result, const struct pipeline_times *times,
                        int schedule)
{
    enum { MOST = 2048 };
    struct pipeline_times some = *times;
    struct pipeline_result half;
    if (times->micro_batches <= MOST) {
        return pipeline_play(result, times, schedule);
    }
    some.micro_batches = MOST / 2;
    TRY(pipeline_play(&half, &some, schedule));
    some.micro_batches = MOST;
    TRY(pipeline_play(result, &some, schedule));
    result->seconds += (result->seconds - half.seconds) * (double)(times->micro_batches - MOST) /
                       (double)(MOST / 2);
    return STATUS_OK;
}

static enum status time_batches(struct planner *p, struct pipeline_result *result)
{
    struct plan *plan = p->plan;
    struct stage_time stages[PIPELINE_MOST];
    struct pipeline_times times;
    double most = 0;
    const bool dual = plan->schedule == CONFIG_PIPELINE_DUALPIPE;
    for (int64_t s = 0; s < plan->pp; s++) {
        stages[s] = time_stage(p, &plan->stage[s]);
    }
    fill_times(p, stages, &times);
    note_units(plan, &times);
    if (plan->pp == 1) {
        *result = (struct pipeline_result){
            .seconds = (double)plan->micro_batches *
                       (times.forward[0] + times.backward[0] + times.weight[0]),
            .held[0] = 1};
    } else {
        TRY(play(result, &times, plan->schedule));
        interleave(plan, result);
    }
    for (int64_t s = 0; s < plan->pp; s++) {
        const double own = kernels_of(&stages[s]), other = kernels_of(&stages[plan->pp - 1 - s]);
        most = fmax(most, (dual && plan->pp > 1 ? (own + other) / 2 : own));
    }
    plan->time.kernels = (double)plan->micro_batches * most;
    plan->time.bubble = result->idle;
    plan->time.exposed = fmax(0, result->seconds - result->idle - plan->time.kernels);
    plan->time.step = result->seconds;
    return STATUS_OK;
}

/* Average rank, all micro-batches: kernels by family. */
static void sum_kernels(struct planner *p)
{
    struct plan *plan = p->plan;
    const double each = (double)plan->micro_batches / (double)plan->pp;
    for (int64_t b = 0; b < architecture_blocks(&plan->arch); b++) {
        const struct work *parts[] = {work_of(p, b), b >= plan->arch.layers ? &p->head : NULL,
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
    plan->kernel_s[KERNEL_OPTIMIZER] += plan->time.optimizer;
}

/* Gradients to their owners, the update, weights back to all: of the slowest rank. */
static void time_update(struct planner *p)
{
    struct plan *plan = p->plan;
    const bool dual = plan->schedule == CONFIG_PIPELINE_DUALPIPE && plan->pp > 1;
    const double act = plan->config->train.precision == CONFIG_FP32 ? 4 : 2;
    for (int64_t s = 0; s < plan->pp; s++) {
        const struct stage_memory *own = &p->memory[s], *other = &p->memory[plan->pp - 1 - s];
        double count[PARAM_GROUPS];
        for (int g = 0; g < PARAM_GROUPS; g++) {
            count[g] = (double)own->elements[g] + (dual ? (double)other->elements[g] : 0);
        }
        const double bytes = 4 + act, /* gradients there, weights back */
            reduce = exchange_reduce_seconds(&plan->hardware, bytes * count[PARAM_DENSE],
                                             plan->dp * plan->tp, 1) +
                     exchange_reduce_seconds(&plan->hardware, bytes * count[PARAM_TENSOR], plan->dp,
                                             plan->tp) +
                     exchange_reduce_seconds(&plan->hardware, bytes * count[PARAM_EXPERT],
                                             plan->edp, plan->ep),
                     share = count[PARAM_DENSE] / (double)(plan->dp * plan->tp) +
                             count[PARAM_TENSOR] / (double)plan->dp +
                             count[PARAM_EXPERT] / (double)plan->edp,
                     update = work_optimizer(
                         &p->load, count[PARAM_DENSE] + count[PARAM_TENSOR] + count[PARAM_EXPERT],
                         share);
        if (reduce + update > plan->time.reduce + plan->time.optimizer) {
            plan->time.reduce = reduce;
            plan->time.optimizer = update;
        }
    }
    plan->time.step += plan->time.reduce + plan->time.optimizer;
}

/* --- memory --- */

/* Stages of the same kind are measured once. */
static enum status measure(struct planner *p)
{
    const struct plan *plan = p->plan;
    for (int64_t s = 0; s < plan->pp; s++) {
        const struct stage *own = &plan->stage[s], *last = s > 0 ? own - 1 : own;
        const bool middle = s > 1 && !own->head && own->blocks == last->blocks &&
                            last->first >= plan->arch.dense_layers &&
                            own->first + own->blocks <= plan->arch.layers;
        if (middle) {
            p->memory[s] = p->memory[s - 1];
        } else {
            TRY(memory_of_stage(&p->memory[s], plan->config, own, plan->hardware.device,
                                plan->dp * plan->tp, plan->ep));
        }
    }
    return STATUS_OK;
}

/* Parameters of a stage on a rank. */
static int64_t held_by(const struct stage_memory *stage)
{
    return stage->elements[PARAM_DENSE] + stage->elements[PARAM_TENSOR] +
           stage->elements[PARAM_EXPERT];
}

/* The fullest rank: its stages' states, and what is kept of every micro-batch under way. */
static enum status fill_memory(struct planner *p, const struct pipeline_result *result)
{
    struct plan *plan = p->plan;
    const bool dual = plan->schedule == CONFIG_PIPELINE_DUALPIPE && plan->pp > 1;
    for (int64_t r = 0; r < plan->pp; r++) {
        const struct stage_memory *own = &p->memory[r], *other = &p->memory[plan->pp - 1 - r];
        struct plan_memory memory = {.stage = r};
        for (int k = 0; k < MODEL_MEMORIES; k++) {
            const bool state = k <= MODEL_MOMENTS;
            const size_t second = dual ? other->kind[k] : 0;
            memory.kind[k] = k == MODEL_BLOCKS ? own->kind[k] * (size_t)result->held[r] +
                                                     second * (size_t)result->held_2[r]
                             : state                 ? own->kind[k] + second
                             : own->kind[k] > second ? own->kind[k]
                                                     : second;
            memory.arenas += memory.kind[k];
        }
        if (memory.arenas > plan->memory.arenas) {
            plan->memory = memory;
            plan->held = held_by(own) + (dual ? held_by(other) : 0);
        }
    }
    struct plan_memory *most = &plan->memory;
    const struct stage_memory *fullest = &p->memory[most->stage];
    size_t untouched = 0;
    most->outside =
        memory_outside(plan->config, &plan->hardware, &plan->arch, fullest, plan->dp, plan->ep);
    most->all = most->arenas + most->outside;
    if (plan->hardware.cpu && plan->pp * plan->tp == 1) {
        TRY(memory_untouched(&untouched, plan->config, &plan->stage[0], fullest,
                             plan->hardware.device, plan->dp, plan->ep));
    }
    most->peak = most->all - untouched;
    plan->fits = (double)most->all <= plan->hardware.memory;
    return STATUS_OK;
}

/* --- the rest --- */

static enum status count_parameters(struct plan *plan)
{
    struct params params;
    const struct params_place place = {.ep_size = (int)plan->ep, .tp_size = 1};
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
        warn(
            plan,
            "ep %lld spans %lld nodes and routing is not limited to groups: a token's %lld experts "
            "lie on %.1f nodes on average",
            (long long)plan->ep, (long long)nodes, (long long)x->top_k, exchange_spread(x, nodes));
    } else if (x->groups != nodes) {
        warn(plan,
             "model.n_group %lld is not the %lld nodes of an ep group: a token reaches %.1f nodes "
             "on average, however many groups topk_group %lld leaves it",
             (long long)x->groups, (long long)nodes, exchange_spread(x, nodes),
             (long long)x->top_groups);
    }
    if (!plan->by_node) {
        warn(plan,
             "ep %lld spans %lld nodes: training sends a token once to each rank, not once to "
             "each node",
             (long long)plan->ep, (long long)nodes);
    }
}

static void warn_all(struct plan *plan)
{
    const struct config *config = plan->config;
    if (!plan->fits) {
        warn(plan, "does not fit: %.1f GB a rank, %s has %.1f GB", (double)plan->memory.all / 1e9,
             plan->hardware.name, plan->hardware.memory / 1e9);
    }
    if (plan->pp > 1) {
        warn(plan, "parallel.pp %lld: planned only, this version trains with 1",
             (long long)plan->pp);
    }
    if (plan->tp > 1 && config->train.precision == CONFIG_FP8) {
        warn(plan, "parallel.tp %lld with fp8: planned only, this version trains it with bf16",
             (long long)plan->tp);
    }
    if (plan->tp > plan->hardware.ranks_per_node) {
        warn(plan,
             "parallel.tp %lld is more than a node's %lld ranks: every layer waits for the "
             "network",
             (long long)plan->tp, (long long)plan->hardware.ranks_per_node);
    }
    warn_exchange(plan);
    if (plan->ep > 1 && config->router.dispatch == CONFIG_EXACT) {
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
    const bool beside = plan->pp > 1 && plan->schedule == CONFIG_PIPELINE_DUALPIPE && plan->ep > 1;
    p->load.own = beside ? hw->own : 1;
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
    struct pipeline_result result;
    TRY(set_layout(plan));
    prepare(p);
    TRY(divide_blocks(p));
    TRY(time_batches(p, &result));
    TRY(measure(p));
    TRY(fill_memory(p, &result));
    time_update(p);
    TRY(count_parameters(plan));
    sum_kernels(p);
    count_flops(plan);
    finish_rates(plan);
    warn_all(plan);
    return STATUS_OK;
}

enum status plan_make(struct plan *plan, const struct config *config,
                      const struct hardware *hardware)
{
    struct planner *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a plan");
    }
    *plan = (struct plan){.config = config, .hardware = *hardware};
    architecture_init(&plan->arch, config);
    p->plan = plan;
    const enum status status = work_out(p);
    free(p);
    return status;
}

double plan_gpu_hours(const struct plan *plan, double tokens)
{
    return tokens / plan->tokens_per_s * (double)plan->hardware.ranks / 3600;
}
