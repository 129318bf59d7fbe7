#include "trainer/step.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/base/rng.h"
#include "parallel/activity.h"
#include "trainer/fault.h"
#include "trainer/optimizer.h"
#include "trainer/schedule.h"
#include "trainer/trace.h"

double step_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Whether the pipeline has a table for a step of `batch` sequences. */
static enum status check_schedule(const struct config *config, int64_t batch, int64_t ranks)
{
    const struct pipeline_shape shape =
        stages_shape(config, config->parallel.schedule, config->parallel.pp,
                     batch / config->train.micro_batch / ranks);
    if (pipeline_fits(&shape) == STATUS_OK) {
        return STATUS_OK;
    }
    char why[256];
    snprintf(why, sizeof why, "%s", status_message());
    return status_fail(STATUS_USAGE,
                       "%s: micro-batches are a batch of %lld (train.global_batch) / "
                       "train.micro_batch %lld / %lld ranks with data of their own",
                       why, (long long)batch, (long long)config->train.micro_batch,
                       (long long)ranks);
}

/* Whether the largest step has passes to put side by side, where these are wanted. */
static enum status check_pairs(const struct config *config, int64_t ranks)
{
    const int64_t micro = config->train.micro_batch,
                  batches = config->train.global_batch / micro / ranks;
    const struct pipeline_shape shape =
        stages_shape(config, config->parallel.schedule, config->parallel.pp, batches);
    if (shape.schedule != PIPELINE_PAIRS || batches > 1) {
        return STATUS_OK;
    }
    return status_fail(STATUS_USAGE,
                       "parallel.overlap on: a rank has one micro-batch a step, beside which "
                       "nothing runs: lower train.micro_batch %lld, or use auto",
                       (long long)micro);
}

enum status stepper_check(const struct config *config, int64_t ranks)
{
    const int64_t micro = config->train.micro_batch, global = config->train.global_batch,
                  start = config->train.batch_ramp.start, by = config->train.batch_ramp.increment;
    if (global % (micro * ranks) != 0) {
        return status_fail(
            STATUS_USAGE,
            "train.global_batch %lld is not a multiple of train.micro_batch %lld x %lld "
            "ranks: change one of them",
            (long long)global, (long long)micro, (long long)ranks);
    }
    for (int64_t batch = start; start > 0 && batch < global; batch += by) {
        if (batch % (micro * ranks) != 0) {
            return status_fail(
                STATUS_USAGE,
                "train.batch_ramp: a batch of %lld (start %lld, increment %lld) is not a multiple "
                "of train.micro_batch %lld x %lld ranks: change one of them",
                (long long)batch, (long long)start, (long long)by, (long long)micro,
                (long long)ranks);
        }
        TRY(check_schedule(config, batch, ranks));
    }
    TRY(check_pairs(config, ranks));
    return check_schedule(config, global, ranks);
}

/* What is added up of a unit: sums of losses, slots kept, and then each block's balance terms. */
enum { SUM_LOSS, SUM_MTP, SUM_KEPT, UNIT_SUMS };

static size_t losses_bytes(const struct stepper *stepper)
{
    const size_t own = (size_t)(stepper->most_units / stepper->model->mesh->dp.size);
    return own * (sizeof *stepper->losses + (size_t)stepper->moe_blocks * sizeof(double));
}

enum status stepper_init(struct stepper *stepper, struct model *model,
                         const struct mixture *mixture)
{
    const struct config *config = model->config;
    const int64_t micro = config->train.micro_batch, global = config->train.global_batch;
    const int64_t ranks = model->mesh->dp.size;
    const size_t loads = (size_t)(architecture_moe_blocks(&model->arch) * model->arch.experts);
    *stepper = (struct stepper){.model = model,
                                .most_units = global / micro,
                                .moe_blocks = architecture_moe_blocks(&model->arch)};
    TRY(stepper_check(config, ranks));
    stepper->units = stepper->most_units;
    stepper->own = stepper->units / ranks;
    TRY(feed_open(&stepper->feed, mixture, micro, config->train.sequence_length,
                  model->mesh->dp.rank, ranks, stepper->own));
    const size_t sums = (size_t)(UNIT_SUMS + stepper->moe_blocks);
    stepper->scale = calloc((size_t)stepper->own, sizeof *stepper->scale);
    stepper->own_losses = calloc(1, losses_bytes(stepper));
    stepper->own_sums = calloc((size_t)stepper->own * sums, sizeof *stepper->own_sums);
    stepper->unit_sums = calloc((size_t)stepper->units * sums, sizeof *stepper->unit_sums);
    stepper->expert_load = calloc((size_t)stepper->moe_blocks, sizeof *stepper->expert_load);
    stepper->load = calloc(loads, sizeof *stepper->load);
    stepper->bias = calloc(loads, sizeof *stepper->bias);
    stepper->losses = model->ops->memory_alloc(model->device, losses_bytes(stepper));
    if (stepper->scale == NULL || stepper->own_losses == NULL || stepper->own_sums == NULL ||
        stepper->unit_sums == NULL || stepper->expert_load == NULL || stepper->load == NULL ||
        stepper->bias == NULL || stepper->losses == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld sequences a step",
                           (long long)global);
    }
    stepper->aux = (double *)(void *)(stepper->losses + stepper->own);
    return STATUS_OK;
}

void stepper_free(struct stepper *stepper)
{
    feed_close(&stepper->feed);
    free(stepper->scale);
    free(stepper->own_losses);
    free(stepper->own_sums);
    free(stepper->unit_sums);
    free(stepper->expert_load);
    free(stepper->load);
    free(stepper->bias);
    if (stepper->losses != NULL) {
        stepper->model->ops->memory_free(stepper->model->device, stepper->losses,
                                         losses_bytes(stepper));
    }
    *stepper = (struct stepper){0};
}

/* Collective. Unit u of a step belongs to rank u % ranks. *labels: those of the global batch that
 * count; the next step's batches are begun. */
static enum status load_batches(struct stepper *stepper, int64_t position, int64_t batch,
                                int64_t *labels, double *waited)
{
    const struct config *config = stepper->model->config;
    const struct comm *dp = &stepper->model->mesh->dp;
    const int64_t next = position + batch, size = schedule_batch(config, next);
    const double start = step_clock();
    const enum status status =
        feed_take(&stepper->feed, position, stepper->own, &stepper->batches, labels);
    *waited = step_clock() - start;
    TRY(comm_agree(stepper->model->mesh->world, status, NULL));
    if (next <= stepper->feed.mixture->end - size) {
        feed_prepare(&stepper->feed, next, size / config->train.micro_batch / dp->size);
    }
    comm_all_reduce((struct comm *)dp, labels, 1, DTYPE_I64, REDUCE_SUM);
    return STATUS_OK;
}

/* What a step adds up of its units. */
struct unit_total {
    double loss, mtp, aux, kept;
};

/* What this rank's stages have of its units, on the host; of all stages: each has some of a unit's
 * numbers, and 0 for the others'. */
static void sum_stages(struct stepper *stepper, int64_t width)
{
    const struct model *model = stepper->model;
    const int64_t most = stepper->most_units / model->mesh->dp.size;
    const double *aux = (const double *)(const void *)(stepper->own_losses + most);
    model->ops->download(model->device, stepper->own_losses, stepper->losses,
                         losses_bytes(stepper));
    for (int64_t i = 0; i < stepper->own; i++) {
        double *sum = stepper->own_sums + i * width;
        sum[SUM_LOSS] = stepper->own_losses[i].loss;
        sum[SUM_MTP] = stepper->own_losses[i].mtp;
        sum[SUM_KEPT] = (double)stepper->own_losses[i].kept;
        memcpy(sum + UNIT_SUMS, aux + i * stepper->moe_blocks,
               (size_t)stepper->moe_blocks * sizeof *aux);
    }
    if (!slice_whole(&model->slice)) {
        comm_all_reduce((struct comm *)&model->mesh->pp, stepper->own_sums, stepper->own * width,
                        DTYPE_F64, REDUCE_SUM);
    }
}

/* Of all ranks' units the sum, in unit order and, of a unit, in the order of the blocks, so that
 * layouts agree bit for bit. */
static struct unit_total sum_units(struct stepper *stepper)
{
    struct comm *dp = (struct comm *)&stepper->model->mesh->dp;
    const int64_t width = UNIT_SUMS + stepper->moe_blocks;
    struct unit_total sum = {0};
    sum_stages(stepper, width);
    comm_all_gather(dp, stepper->unit_sums, stepper->own_sums,
                    (size_t)(stepper->own * width) * sizeof *stepper->own_sums);
    for (int64_t unit = 0; unit < stepper->units; unit++) {
        const double *one =
            &stepper->unit_sums[((unit % dp->size) * stepper->own + unit / dp->size) * width];
        double aux = 0;
        for (int64_t m = 0; m < stepper->moe_blocks; m++) {
            aux += one[UNIT_SUMS + m];
        }
        sum.loss += one[SUM_LOSS];
        sum.mtp += one[SUM_MTP];
        sum.aux += aux;
        sum.kept += one[SUM_KEPT];
    }
    return sum;
}

/* Tokens per expert of the whole global batch, in integers, and how uneven they are. */
static void expert_load(struct stepper *stepper)
{
    struct model *model = stepper->model;
    const int64_t experts = model->arch.experts, loads = stepper->moe_blocks * experts;
    model->ops->download(model->device, stepper->load, model->load,
                         (size_t)loads * sizeof *stepper->load);
    comm_all_reduce(model->mesh->world, stepper->load, loads, DTYPE_I64, REDUCE_SUM);
    for (int64_t m = 0; m < stepper->moe_blocks; m++) {
        int64_t most = 0, sum = 0;
        for (int64_t e = 0; e < experts; e++) {
            const int64_t count = stepper->load[m * experts + e];
            most = count > most ? count : most;
            sum += count;
        }
        stepper->expert_load[m] = sum > 0 ? (double)most * (double)experts / (double)sum : 0;
    }
}

static bool is_late(const struct config *config, int64_t step, double fraction)
{
    return (double)step > fraction * (double)config->run.steps;
}

static double mtp_weight(const struct config *config, int64_t step)
{
    const bool late = config->train.mtp_loss_weight_switch >= 0 &&
                      is_late(config, step, config->train.mtp_loss_weight_switch);
    return late ? config->train.mtp_loss_weight_late : config->train.mtp_loss_weight;
}

/* The least power of two that is at least `labels`; without FP8 1. */
static double gradient_unit(const struct model *model, int64_t labels)
{
    double unit = 1;
    while (model->config->train.precision == CONFIG_FP8 && unit < (double)labels) {
        unit *= 2;
    }
    return unit;
}

/* What became of numbers on their way to codes, on all ranks. */
static void sum_counters(const struct model *model, struct fp8_counters *sum)
{
    enum { COUNTS = 4 };
    int64_t counts[LINEAR_KINDS][COUNTS];
    int32_t amax[LINEAR_KINDS];
    struct comm *world = model->mesh->world;
    if (model->linears.counters == NULL) {
        return;
    }
    model->ops->download(model->device, sum, model->linears.counters, LINEAR_KINDS * sizeof *sum);
    for (int k = 0; k < LINEAR_KINDS; k++) {
        const uint64_t own[COUNTS] = {sum[k].values, sum[k].underflows, sum[k].saturated,
                                      sum[k].bad_tiles};
        for (int i = 0; i < COUNTS; i++) {
            counts[k][i] = (int64_t)own[i];
        }
        amax[k] = (int32_t)sum[k].amax;
    }
    comm_all_reduce(world, counts, LINEAR_KINDS * COUNTS, DTYPE_I64, REDUCE_SUM);
    comm_all_reduce(world, amax, LINEAR_KINDS, DTYPE_I32, REDUCE_MAX);
    for (int k = 0; k < LINEAR_KINDS; k++) {
        sum[k] = (struct fp8_counters){.values = (uint64_t)counts[k][0],
                                       .underflows = (uint64_t)counts[k][1],
                                       .saturated = (uint64_t)counts[k][2],
                                       .bad_tiles = (uint64_t)counts[k][3],
                                       .amax = (uint32_t)amax[k]};
    }
}

/* What is not finite, in words; false: nothing. */
static bool not_finite(const struct step_result *result, char *why, size_t bytes)
{
    const struct fp8_counters *fp8 = result->fp8;
    const bool tiles = fp8[LINEAR_ACTIVATIONS].bad_tiles + fp8[LINEAR_GRADIENTS].bad_tiles +
                           fp8[LINEAR_WEIGHTS].bad_tiles >
                       0;
    if (tiles) {
        snprintf(why, bytes,
                 "loss %g, gradient norm %g: FP8 tiles with NaN or infinity: %llu of activations, "
                 "%llu of gradients, %llu of weights (train.precision bf16 has more range)",
                 result->loss, result->grad_norm,
                 (unsigned long long)fp8[LINEAR_ACTIVATIONS].bad_tiles,
                 (unsigned long long)fp8[LINEAR_GRADIENTS].bad_tiles,
                 (unsigned long long)fp8[LINEAR_WEIGHTS].bad_tiles);
    } else {
        snprintf(why, bytes, "loss %g, gradient norm %g: not finite", result->loss,
                 result->grad_norm);
    }
    const bool gradients = result->saturated + result->bad_gradients > 0;
    if (gradients && !tiles) {
        snprintf(why, bytes,
                 "loss %g: %lld elements of gradients are NaN or infinity, %lld too large for "
                 "run.deterministic layout",
                 result->loss, (long long)result->bad_gradients, (long long)result->saturated);
    }
    return tiles || gradients || !isfinite(result->loss) || !isfinite(result->grad_norm);
}

static enum guard_verdict judge(struct stepper *stepper, int64_t step,
                                const struct step_result *result)
{
    char why[256];
    const bool bad = not_finite(result, why, sizeof why);
    return guard_judge(stepper->guard, step, result->loss, result->grad_norm, bad ? why : NULL);
}

/* The clock, and how long this rank has waited in communication until then; s. */
struct mark {
    double at, waited, exchanged;
};

static struct mark mark_now(const struct model *model)
{
    const struct comm_activity *activity = model->mesh->world->activity;
    struct mark mark = {.at = step_clock()};
    if (activity != NULL) {
        mark.waited = 1e-9 * (double)activity->waited_ns;
        mark.exchanged = 1e-9 * (double)activity->exchanged_ns;
    }
    return mark;
}

static void fill_scales(struct stepper *stepper, int64_t step, int64_t labels, double fault)
{
    const struct model *model = stepper->model;
    const struct config *config = model->config;
    const struct comm *dp = &model->mesh->dp;
    for (int64_t i = 0; i < stepper->own; i++) {
        const uint64_t unit = (uint64_t)(i * dp->size + dp->rank);
        const uint64_t number = (uint64_t)step * (uint64_t)stepper->most_units + unit;
        stepper->scale[i] = (struct model_scale){
            .loss = labels > 0 ? fault * model->unit / (double)labels : 0.0,
            .unit = model->unit / (double)stepper->units,
            .mtp_weight = mtp_weight(config, step),
            .jitter_key = rng_subkey(rng_key(config->run.seed, "router_jitter"), number),
            .last = i == stepper->own - 1};
    }
}

/* One micro-batch behind the other. */
static void run_units(struct stepper *stepper, struct model_result *result)
{
    struct model *model = stepper->model;
    const struct config *config = model->config;
    const struct comm *dp = &model->mesh->dp;
    const size_t aux = (size_t)stepper->moe_blocks * sizeof *stepper->aux;
    for (int64_t i = 0; i < stepper->own; i++) {
        model_run(model, &stepper->batches[i], config->train.micro_batch,
                  config->train.sequence_length, &stepper->scale[i]);
        model->ops->copy(model->device, &stepper->losses[i], model->losses, sizeof *model->losses);
        model->ops->copy(model->device, &stepper->aux[i * stepper->moe_blocks], model->aux, aux);
        result->slots += model->result.slots;
        result->extra_rounds += model->result.extra_rounds;
        trace_unit(stepper->trace, i * dp->size + dp->rank);
    }
}

static enum status run_pipeline(struct stepper *stepper, struct model_result *result)
{
    const struct config *config = stepper->model->config;
    const struct pipe_step step = {.batches = stepper->batches,
                                   .scale = stepper->scale,
                                   .count = stepper->own,
                                   .sequences = config->train.micro_batch,
                                   .sequence = config->train.sequence_length,
                                   .losses = stepper->losses,
                                   .aux = stepper->aux};
    return pipe_run(stepper->model, &step, result);
}

static enum status forward_backward(struct stepper *stepper, int64_t step, int64_t labels,
                                    struct step_result *result)
{
    struct model *model = stepper->model;
    const struct config *config = model->config;
    const int64_t passed = stepper->guard != NULL ? stepper->guard->state->passed : 0;
    const int rank = model->mesh->world->rank;
    const double fault = fault_gradient(config->debug.fault, step + passed, rank);
    const struct mark began = mark_now(model);
    struct model_result counted = {0};
    fill_scales(stepper, step, labels, fault);
    if (slice_scheduled(&model->slice)) {
        TRY(run_pipeline(stepper, &counted));
    } else {
        run_units(stepper, &counted);
    }
    const struct mark ended = mark_now(model);
    fault_slow(config->debug.fault, step, rank,
               ended.at - began.at - (ended.waited - began.waited));
    const struct unit_total sums = sum_units(stepper);
    int64_t counters[2] = {counted.slots, counted.extra_rounds};
    comm_all_reduce(model->mesh->world, counters, 2, DTYPE_I64, REDUCE_SUM);
    const double counted_labels = labels > 0 ? (double)labels : 1.0;
    const int64_t depth = model->arch.mtp_depth;
    result->loss = sums.loss / counted_labels;
    result->aux_loss = sums.aux / (double)stepper->units;
    result->mtp_loss = depth > 0 ? sums.mtp / counted_labels / (double)depth : (double)NAN;
    result->dropped_fraction =
        counters[0] > 0 ? ((double)counters[0] - sums.kept) / (double)counters[0] : 0;
    result->extra_rounds = counters[1];
    return STATUS_OK;
}

/* Waits for the update. */
static void count_bad_weights(struct model *model, struct step_result *result)
{
    struct fp8_counters weights = {0};
    if (model->linears.counters == NULL) {
        model->ops->synchronize(model->device);
        return;
    }
    model->ops->download(model->device, &weights, model->linears.counters + LINEAR_WEIGHTS,
                         sizeof weights);
    result->bad_weights = (int64_t)weights.bad_tiles;
}

enum status stepper_updated(int64_t step, const struct step_result *result)
{
    return result->bad_weights == 0
               ? STATUS_OK
               : status_fail(STATUS_DIVERGED,
                             "step %lld: loss %g, gradient norm %g: its update made %lld FP8 tiles "
                             "of weights with NaN or infinity: nothing of it is saved; resume from "
                             "the last checkpoint with a lower optimizer.lr",
                             (long long)step, result->loss, result->grad_norm,
                             (long long)result->bad_weights);
}

/* Times between the marks of a step: begin, loaded, computed, reduced, held, end. */
enum { MARK_BEGIN, MARK_LOADED, MARK_COMPUTED, MARK_REDUCED, MARK_HELD, MARK_END, MARKS };

static void account(const struct model *model, const struct mark mark[MARKS], double data_wait,
                    struct step_result *result)
{
    static const struct {
        const char *name;
        int work; /* -1: none */
    } phases[MARKS] = {[MARK_LOADED] = {"data", WORK_DATA},
                       [MARK_COMPUTED] = {"forward and backward", WORK_FORWARD_BACKWARD},
                       [MARK_REDUCED] = {"reduce", WORK_REDUCE},
                       [MARK_HELD] = {"hold for a save", -1},
                       [MARK_END] = {"optimizer", WORK_OPTIMIZER}};
    const struct comm_activity *activity = model->mesh->world->activity;
    double ms[MARKS] = {0};
    for (int m = 1; m < MARKS; m++) {
        const struct mark *from = &mark[m - 1], *to = &mark[m];
        ms[m] = 1e3 * (to->at - from->at);
        if (phases[m].work >= 0) {
            result->own_ms[phases[m].work] = ms[m] - 1e3 * (to->waited - from->waited);
        }
        if (activity != NULL) {
            spans_add(activity->spans, (struct span){.name = phases[m].name,
                                                     .begin_ns = (int64_t)(1e9 * from->at),
                                                     .end_ns = (int64_t)(1e9 * to->at),
                                                     .layer = -1,
                                                     .kind = SPAN_PHASE});
        }
    }
    result->phase_ms = (struct phase_ms){
        .data = ms[MARK_LOADED] - 1e3 * data_wait,
        .data_wait = 1e3 * data_wait,
        .forward_backward = ms[MARK_COMPUTED],
        .exchange = strcmp(comm_wire_name(&model->mesh->experts), "nccl") == 0
                        ? (double)NAN
                        : 1e3 * (mark[MARK_COMPUTED].exchanged - mark[MARK_LOADED].exchanged),
        .reduce = ms[MARK_REDUCED],
        .optimizer = ms[MARK_END],
        .save = ms[MARK_HELD]};
    result->step_ms = 1e3 * (mark[MARK_END].at - mark[MARK_BEGIN].at);
}

static void update(struct stepper *stepper, int64_t step, struct step_result *result)
{
    struct model *model = stepper->model;
    const int64_t skipped = stepper->guard != NULL ? stepper->guard->state->skipped : 0;
    optimizer_step(model, result->grad_norm, result->lr, step - skipped);
    if (model->arch.has_bias &&
        !is_late(model->config, step, model->config->router.bias_update_until)) {
        balance_update_bias(model, stepper->load, stepper->bias, model->arch.balance.bias_speed);
    }
    count_bad_weights(model, result); /* or the next step would be charged for this one */
}

/* The guard's message is the one that counts, also where the trace finds no room. */
static enum status stop_traced(struct stepper *stepper)
{
    char message[1024];
    snprintf(message, sizeof message, "%s", status_message());
    const enum status traced = trace_weights(stepper->trace);
    (void)traced;
    return status_lines(STATUS_DIVERGED, message);
}

enum status stepper_step(struct stepper *stepper, int64_t step, int64_t position,
                         struct step_result *result)
{
    struct model *model = stepper->model;
    const struct config *config = model->config;
    const int64_t batch = schedule_batch(config, position);
    struct mark mark[MARKS] = {[MARK_BEGIN] = mark_now(model)};
    *result = (struct step_result){.sequences = batch,
                                   .tokens = batch * config->train.sequence_length,
                                   .lr = schedule_lr(config, step)};
    stepper->units = batch / config->train.micro_batch;
    stepper->own = stepper->units / model->mesh->dp.size;
    TRY(trace_begin(stepper->trace, step));
    double waited = 0;
    int64_t labels = 0;
    TRY(load_batches(stepper, position, batch, &labels, &waited));
    mark[MARK_LOADED] = mark_now(model);
    model->unit = result->unit = gradient_unit(model, labels);
    model_clear_grads(model, true);
    TRY(forward_backward(stepper, step, labels, result));
    mark[MARK_COMPUTED] = mark_now(model);
    result->grad_norm = optimizer_reduce(model);
    result->saturated = model->gradients.saturated;
    result->bad_gradients = model->gradients.bad;
    expert_load(stepper);
    sum_counters(model, result->fp8);
    TRY(trace_gradients(stepper->trace));
    mark[MARK_REDUCED] = mark_now(model);
    result->verdict = judge(stepper, step, result);
    if (result->verdict == GUARD_STOP) { /* what led there is what a trace is for */
        return stop_traced(stepper);
    }
    if (result->verdict == GUARD_UPDATE && stepper->hold != NULL) {
        stepper->hold(stepper->hold_context);
    }
    mark[MARK_HELD] = mark_now(model);
    if (result->verdict == GUARD_UPDATE) {
        update(stepper, step, result);
    }
    mark[MARK_END] = mark_now(model);
    TRY(trace_weights(stepper->trace));
    account(model, mark, waited, result);
    return STATUS_OK;
}
