#include "trainer/optimizer.h"

#include <assert.h>
#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "trainer/metrics.h"

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

bool optimizer_takes_muon(const struct param *param)
{
    static const char *const tables[] = {"embed_tokens.weight", "lm_head.weight", ".gate.weight"};
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        if (ends_with(param->name, tables[i])) {
            return false;
        }
    }
    return param->ndim == 2;
}

enum status optimizer_check(const struct config *config)
{
    const struct config_texts *patterns = &config->optimizer.freeze;
    struct architecture arch;
    struct params all; /* of all ranks: experts have their names on one of them only */
    enum status status = STATUS_OK;
    if (patterns->count == 0) {
        return STATUS_OK;
    }
    architecture_init(&arch, config);
    TRY(params_init(&all, &arch, false, &PARAMS_ALL));
    for (int64_t j = 0; j < patterns->count && status == STATUS_OK; j++) {
        int64_t i = 0;
        while (i < all.count && fnmatch(patterns->item[j], all.table[i].name, 0) != 0) {
            i++;
        }
        if (i == all.count) {
            status = status_fail(STATUS_USAGE,
                                 "optimizer.freeze: '%s' matches no parameter: names are like %s, "
                                 "* stands for any text",
                                 patterns->item[j], all.table[all.count - 1].name);
        }
    }
    params_free(&all);
    return status;
}

static bool is_frozen(const struct config *config, const struct param *param)
{
    const struct config_texts *patterns = &config->optimizer.freeze;
    for (int64_t j = 0; j < patterns->count; j++) {
        if (fnmatch(patterns->item[j], param->name, 0) == 0) {
            return true;
        }
    }
    return false;
}

enum status optimizer_init(struct model *model)
{
    for (int64_t i = 0; i < model->params.count; i++) {
        struct param *param = &model->params.table[i];
        param->frozen = is_frozen(model->config, param);
        param->muon = model->config->optimizer.name == CONFIG_MUON && optimizer_takes_muon(param);
    }
    model->pieces = calloc((size_t)model->params.count, sizeof *model->pieces);
    if (model->pieces == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the optimizer's %lld parameters",
                           (long long)model->params.count);
    }
    const struct comm *peers[PARAM_GROUPS] = {
        [PARAM_EXPERT] = &model->mesh->etp, [PARAM_TENSOR] = &model->mesh->tp};
    for (int g = 0; g < model->params.groups; g++) {
        TRY(muon_plan_init(&model->group[g].muon, &model->params, (enum param_group)g,
                           &model->group[g].zero, (struct comm *)(uintptr_t)peers[g]));
    }
    return STATUS_OK;
}

void optimizer_free(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        muon_plan_free(&model->group[g].muon);
    }
    free(model->pieces);
    model->pieces = NULL;
}

static bool has_adamw(const struct params *params, int group)
{
    for (int64_t i = 0; i < params->count; i++) {
        if (params->table[i].group == (enum param_group)group && !params->table[i].muon) {
            return true;
        }
    }
    return false;
}

void optimizer_layout(struct model *model)
{
    struct arena *arena = &model->arena_optimizer,
                 *state = model->offload.on ? &model->offload.arena : arena;
    int64_t scratch = 0;
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        const size_t share = (size_t)group->zero.share, moment = dtype_bytes(model->moments);
        group->moment1 = arena_alloc(state, share * moment);
        group->moment2 = has_adamw(&model->params, g) ? arena_alloc(state, share * moment) : NULL;
        group->ema =
            model->config->optimizer.ema > 0 ? arena_alloc(state, share * sizeof(float)) : NULL;
        scratch = group->muon.scratch > scratch ? group->muon.scratch : scratch;
    }
    offload_layout(model, arena);
    model->norm = arena_alloc(arena, sizeof *model->norm);
    model->muon_scratch = scratch > 0 ? arena_alloc(arena, (size_t)scratch * sizeof(float)) : NULL;
}

void optimizer_words(const struct model *model, struct metrics *metrics)
{
    if (model_host_bytes(model) > 0) {
        metrics_say(metrics, "optimizer.offload: %.0f MiB of the state in host memory per rank",
                    (double)model_host_bytes(model) / 1048576.0);
    }
}

/* A pass over a group's share. */
struct share {
    struct model *model;
    enum param_group group;
    int64_t step;
    const struct adamw *adamw;
    struct offload_walk walk;
};

static void start_part(void *context, const struct offload_part *part)
{
    const struct share *share = context;
    share->model->ops->copy(share->model->device, part->ema, part->master,
                            (size_t)part->count * sizeof *part->ema);
}

void optimizer_start_average(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct share share = {.model = model, .group = (enum param_group)g};
        if (model->group[g].ema != NULL) {
            offload_pass(model, share.group, OFFLOAD_MASTER, OFFLOAD_EMA, start_part, &share);
        }
    }
    offload_wait(model);
}

void optimizer_reduce_start(struct model *model, enum param_group g)
{
    struct model_group *group = &model->group[g];
    assert(!group->reducing && !group->shards.on);
    if (model->gradients.fixed) {
        zero_reduce_start(&group->zero, group->sums, group->reduced, DTYPE_I64);
    } else {
        zero_reduce_start(&group->zero, group->grads, group->reduced, DTYPE_F32);
    }
    group->reducing = true;
}

/* What is frozen has no part in the norm. grads, sums: of the share, one of them NULL. */
static void clear_frozen(const struct model *model, const struct model_group *group, float *grads,
                         int64_t *sums)
{
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *param = &model->params.table[i];
        const struct param_piece piece = param_piece(param, &group->zero, group->zero.comm->rank);
        const int64_t count = piece.last - piece.first;
        if (!param->frozen || &model->group[param->group] != group || count <= 0) {
            continue;
        }
        const int64_t at = zero_place(&group->zero, piece.first);
        if (sums != NULL) {
            model->ops->zero(model->device, sums + at, (size_t)count * sizeof *sums);
        } else {
            model->ops->zero(model->device, grads + at, (size_t)count * sizeof *grads);
        }
    }
}

/* In integers: where this rank's share of the reduced sums is. */
static int64_t *share_sums(const struct model_group *group)
{
    return group->shards.on             ? group->shard_sums
           : group->zero.comm->size > 1 ? (int64_t *)(void *)group->reduced
                                        : group->sums;
}

void optimizer_decode(struct model *model, enum param_group g)
{
    const struct model_group *group = &model->group[g];
    if (model->gradients.fixed) {
        gradients_decode(&model->gradients, group->shard, share_sums(group), group->zero.share,
                         model->unit);
    }
}

/* The sum over the replicas of this rank's share; of integers its part of the norm too. */
static void take_share(struct model *model, enum param_group g)
{
    struct model_group *group = &model->group[g];
    const struct zero *zero = &group->zero;
    if (group->shards.on) {
        shards_settle(model, g);
    } else if (!group->reducing) {
        reduction_settle(model, g);
    } else if (model->gradients.fixed) {
        const int64_t *sums = zero_reduce_finish(zero, group->sums, group->reduced);
        assert(sums == share_sums(group));
    } else {
        const float *sums = zero_reduce_finish(zero, group->grads, group->reduced);
        if (zero->comm->size > 1) {
            model->ops->copy(model->device, group->shard, sums, (size_t)zero->share * sizeof *sums);
        }
    }
    if (model->gradients.fixed) {
        clear_frozen(model, group, NULL, share_sums(group));
        gradients_square(&model->gradients, share_sums(group), zero->share);
    } else {
        clear_frozen(model, group, group->shard, NULL);
    }
}

/* One group after the other; experts first, which may be under way. */
static void reduce_groups(struct model *model)
{
    const int groups = model->params.groups;
    for (int i = 0; i < groups; i++) {
        const int g = (PARAM_EXPERT + i) % groups;
        struct model_group *group = &model->group[g];
        if (!group->reducing && !group->shards.on &&
            !reduction_wanted(model, (enum param_group)g)) {
            optimizer_reduce_start(model, (enum param_group)g);
        }
        take_share(model, (enum param_group)g);
        group->reducing = false;
    }
}

double optimizer_reduce(struct model *model)
{
    double sum = 0;
    reduce_groups(model);
    if (model->gradients.fixed) {
        return gradients_norm(&model->gradients, model->mesh->world);
    }
    model->ops->zero(model->device, model->norm, sizeof *model->norm);
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        model->ops->sum_squares(model->device, model->norm, group->shard, group->zero.share);
    }
    model->ops->download(model->device, &sum, model->norm, sizeof sum);
    comm_all_reduce(model->mesh->world, &sum, 1, DTYPE_F64, REDUCE_SUM);
    return sqrt(sum) / model->unit; /* a power of two */
}

struct moments optimizer_moments(const struct model *model, const struct param *param,
                                 int64_t first, int64_t step)
{
    const uint64_t family = rng_key(model->config->run.seed, "moments");
    /* no two elements of a divided matrix have the same number; whole ones keep theirs */
    const int64_t part =
        param->first[0] * param->shape[1] + param->first[1] * param->shape[0] - param->offset;
    return (struct moments){.dtype = model->moments,
                            .key = rng_subkey(rng_key(family, param->name), (uint64_t)step),
                            .first = (uint64_t)(first + part)};
}

void *optimizer_moment(const struct model *model, void *moments, int64_t at)
{
    return (char *)moments + (size_t)at * dtype_bytes(model->moments);
}

void *optimizer_out(const struct model *model, const struct model_group *group, int64_t first)
{
    return model->act == DTYPE_F32 ? NULL
           : group->gathered.on
               ? (char *)group->gathered.kept +
                     (size_t)zero_place(&group->zero, first) * dtype_bytes(model->act)
               : (char *)group->weights + (size_t)first * dtype_bytes(model->act);
}

/* What a parameter has in a part of the share. */
static struct adamw_piece piece_of(const struct share *share, const struct param *param,
                                   const struct offload_part *part,
                                   const struct offload_piece *piece)
{
    const struct model *model = share->model;
    const struct model_group *group = &model->group[share->group];
    const bool fixed = model->gradients.fixed;
    const int64_t at = piece->at - part->first;
    const struct moments moments = optimizer_moments(model, param, piece->first, share->step);
    return (struct adamw_piece){
        .param = part->master + at,
        .m = optimizer_moment(model, part->moment1, at),
        .v = optimizer_moment(model, part->moment2, at),
        .out = optimizer_out(model, group, piece->first),
        .grad = fixed ? NULL : group->shard + piece->at,
        .sum = fixed ? share_sums(group) + piece->at : NULL,
        .count = piece->count,
        .weight_decay = param->decay ? (float)model->config->optimizer.weight_decay : 0.0F,
        .key = moments.key,
        .first = moments.first};
}

/* Of the whole part: what is frozen stays its own average, what was frozen at a resume becomes it.
 */
static void average_part(void *context, const struct offload_part *part)
{
    const struct share *share = context;
    share->model->ops->ema(share->model->device, part->ema, part->master, part->count,
                           share->model->config->optimizer.ema);
}

static void adamw_part(void *context, const struct offload_part *part)
{
    struct share *share = context;
    struct model *model = share->model;
    const struct param *param = NULL;
    struct offload_piece piece;
    int64_t pieces = 0;
    while ((param = offload_next(model, share->group, part, &share->walk, &piece)) != NULL) {
        if (!param->frozen && !param->muon) {
            model->pieces[pieces++] = piece_of(share, param, part, &piece);
        }
    }
    model->ops->adamw(model->device, model->pieces, pieces, *share->adamw);
    if (model->act == DTYPE_F32) {
        model_publish_part(model, share->group, part);
    }
    if (part->ema != NULL) {
        average_part(share, part);
    }
}

/* Whether anything of a group is AdamW's to change. */
static bool adapts(const struct model *model, enum param_group g)
{
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *param = &model->params.table[i];
        if (param->group == g && !param->muon && !param->frozen) {
            return true;
        }
    }
    return false;
}

/* AdamW, Muon, the average of what both leave, which is AdamW's business where there is no Muon,
 * and weights to all. */
static void update(struct share *share, const struct muon *muon)
{
    struct model *model = share->model;
    const struct model_group *group = &model->group[share->group];
    const bool adamw = adapts(model, share->group);
    const unsigned all = OFFLOAD_MASTER | OFFLOAD_MOMENT1 | OFFLOAD_MOMENT2,
                   average = group->ema != NULL ? OFFLOAD_EMA : 0,
                   beside = group->muon.owner == NULL ? average : 0;
    if (adamw) {
        offload_pass(model, share->group, all | beside, all | beside, adamw_part, share);
    }
    muon_step(model, share->group, muon, share->step);
    if (average != 0 && !(adamw && beside != 0)) {
        offload_pass(model, share->group, OFFLOAD_MASTER | average, average, average_part, share);
    }
    model_gather(model, share->group, true);
}

void optimizer_step(struct model *model, double norm, double lr, int64_t step)
{
    const struct config *config = model->config;
    const double clip = config->optimizer.clip_norm;
    const double clipped = clip > 0 ? fmin(1.0, clip / (norm + 1e-6)) : 1.0,
                 scale = clipped / model->unit;
    const struct adamw adamw = {.lr = (float)lr,
                                .beta1 = (float)config->optimizer.beta1,
                                .beta2 = (float)config->optimizer.beta2,
                                .eps = (float)config->optimizer.eps,
                                .grad_scale = (float)scale,
                                .step = step,
                                .moments = model->moments,
                                .quantum = gradients_quantum(model->unit)};
    const struct muon muon = {.lr = (float)lr,
                              .momentum = (float)config->optimizer.momentum,
                              .weight_decay = (float)config->optimizer.weight_decay,
                              .grad_scale = (float)scale};
    gathered_forget(model);
    for (int g = 0; g < model->params.groups; g++) {
        struct share share = {
            .model = model, .group = (enum param_group)g, .step = step, .adamw = &adamw};
        update(&share, &muon);
    }
    linears_publish(model);
}
