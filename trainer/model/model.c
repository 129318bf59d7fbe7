#include "trainer/model/model.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "trainer/model/block.h"
#include "trainer/optimizer.h"

/* What `arena` grew by since *before is of this kind. */
static void count(struct model *model, enum model_memory kind, const struct arena *arena,
                  size_t *before)
{
    model->memory[kind] += arena->used - *before;
    *before = arena->used;
}

/* A share of the gradients, and what a part at a time needs. */
static void sharded_gradients(struct model *model, struct model_group *group)
{
    struct arena *arena = &model->arena_grads;
    const size_t share = (size_t)group->zero.share;
    const bool fixed = model->gradients.fixed;
    shards_layout(group, &model->arch, fixed ? sizeof(int64_t) : sizeof(float), arena);
    group->shard = arena_alloc(arena, share * sizeof *group->shard);
    if (fixed) {
        group->shard_sums = arena_alloc(arena, share * sizeof *group->shard_sums);
    }
    if (group->muon.owner != NULL) {
        group->reduced = arena_alloc(arena, share * sizeof *group->reduced);
        group->whole = arena_alloc(arena, (size_t)group->muon.received * sizeof *group->whole);
    }
}

/* With integers the f32 gradients of the share stand where nothing is any more once they are
 * decoded: several ranks' sums are in `reduced` then, one rank's stay where they were. */
static void gradients_of_group(struct model *model, struct model_group *group)
{
    struct arena *arena = &model->arena_grads;
    const size_t count = (size_t)group->zero.count, share = (size_t)group->zero.share;
    const int64_t own = zero_first(&group->zero, 0, group->zero.comm->rank);
    if (group->shards.on) {
        sharded_gradients(model, group);
        return;
    }
    if (!model->gradients.fixed) {
        group->grads = arena_alloc(arena, count * sizeof *group->grads);
        group->reduced = arena_alloc(arena, share * sizeof *group->reduced);
    } else {
        group->sums = arena_alloc(arena, count * sizeof *group->sums);
        group->reduced = arena_alloc(arena, share * sizeof *group->sums);
        group->grads = group->zero.comm->size > 1 ? (float *)(void *)group->sums
                       : group->reduced != NULL   ? group->reduced + share
                                                  : NULL;
    }
    group->shard = group->grads != NULL ? group->grads + own : NULL;
    group->whole = group->grads;
}

static void group_layout(struct model *model)
{
    size_t params = model->arena_params.used, optimizer = model->arena_optimizer.used,
           grads = model->arena_grads.used;
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        const size_t count = (size_t)group->zero.count, share = (size_t)group->zero.share;
        if (group->gathered.on) {
            gathered_layout(group, &model->arch, model->act, &model->arena_params);
        } else {
            group->weights = arena_alloc(&model->arena_params, count * dtype_bytes(model->act));
        }
        if (model->act == DTYPE_F32 && group->zero.parts == 1) {
            const int64_t own = zero_first(&group->zero, 0, group->zero.comm->rank);
            group->master = group->weights == NULL ? NULL : (float *)group->weights + own;
        } else {
            struct arena *arena =
                offload_masters(model, group) ? &model->offload.arena : &model->arena_optimizer;
            group->master = arena_alloc(arena, share * sizeof(float));
        }
        if (model->training) {
            gradients_of_group(model, group);
        }
    }
    count(model, MODEL_MASTERS, &model->arena_optimizer, &optimizer);
    if (model->training) {
        optimizer_layout(model);
    }
    size_t activations = model->arena_activations.used;
    linears_layout(&model->linears, model, &model->arena_params, &model->arena_activations);
    gradients_layout(&model->gradients, model, &model->arena_grads);
    count(model, MODEL_WEIGHTS, &model->arena_params, &params);
    count(model, MODEL_GRADIENTS, &model->arena_grads, &grads);
    count(model, MODEL_MOMENTS, &model->arena_optimizer, &optimizer);
    count(model, MODEL_SCRATCH, &model->arena_activations, &activations);
}

/* What lanes share, of the one that is laid out. */
struct lane_lent {
    struct moe moe;
    struct mlp_scratch mlp;
};

/* What a lane has for itself (lane.h); lent: NULL: the first. */
static void lane_layout(struct model *model, const struct lane_lent *lent)
{
    struct arena *arena = &model->arena_activations;
    const struct architecture *arch = &model->arch;
    const int64_t n = model->batch * model->sequence, own = model->batch * model->tp.share;
    const size_t act = dtype_bytes(model->act), ids = (size_t)n * sizeof(int32_t);
    size_t used = arena->used;
    block_lent_layout(model, arena);
    count(model, MODEL_LENT, arena, &used);
    moe_scratch_layout(&model->moe, lent != NULL ? &lent->moe : NULL, arena);
    count(model, MODEL_EXCHANGE, arena, &used);
    mlp_scratch_layout(&model->mlp, &model->linears, n, mlp_widest(arch),
                       lent != NULL ? &lent->mlp : NULL, arena);
    model->delta = arena_alloc(arena, (size_t)(own * arch->width) * act);
    model->input = (struct batch){.ids = arena_alloc(arena, ids),
                                  .labels = arena_alloc(arena, ids),
                                  .positions = arena_alloc(arena, ids),
                                  .first = arena_alloc(arena, ids)};
    if (lane_heads(model, model->lanes.current)) {
        model->stream = arena_alloc(arena, (size_t)(own * arch->width) * act);
        model->final_norm = arena_alloc(arena, (size_t)(own * arch->width) * act);
        model->final_rstd = arena_alloc(arena, (size_t)own * sizeof(float));
    }
    count(model, MODEL_SCRATCH, arena, &used);
}

static void activation_layout(struct model *model)
{
    struct arena *arena = &model->arena_activations;
    const struct architecture *arch = &model->arch;
    const int64_t own = model->batch * model->tp.share,
                  loads = architecture_moe_blocks(arch) * arch->experts;
    const size_t stream = (size_t)(own * arch->width) * dtype_bytes(model->act);
    struct lane_lent lent;
    for (int64_t lane = model->lanes.count - 1; lane >= 0; lane--) { /* the first stays */
        lane_use(model, lane);
        lane_layout(model, lane < model->lanes.count - 1 ? &lent : NULL);
        lent = (struct lane_lent){model->moe, model->mlp};
    }
    size_t used = arena->used, params = model->arena_params.used;
    attention_scratch_layout(model, &model->attention, arena);
    context_layout(model, &model->context, arena);
    count(model, MODEL_SCRATCH, arena, &used);
    block_layout(model, arena);
    deferred_layout(&model->pipe.deferred, model, arena);
    count(model, MODEL_BLOCKS, arena, &used);
    mtp_layout(model, arena);
    balance_layout(model, &model->balance, arena);
    model->dstream = arena_alloc(arena, stream);
    model->dnorm = arena_alloc(arena, stream);
    if (model->slice.heads) {
        model->dwork = arena_alloc(arena, stream);
    }
    pipe_layout(model, arena);
    if (!tp_alone(&model->tp)) {
        const size_t wide = (size_t)(model->batch * model->sequence * model->tp.width);
        model->wide[0] = arena_alloc(arena, wide * dtype_bytes(model->act));
        model->wide[1] = arena_alloc(arena, wide * sizeof(float));
    }
    tp_layout(&model->tp, arena);
    vocab_layout(model, arena);
    model->rope = arena_alloc(arena, (size_t)(model->length * arch->rope_dim) * sizeof(float));
    model->load = arena_alloc(arena, (size_t)loads * sizeof(int64_t));
    struct model_losses *losses = arena_alloc(arena, sizeof *losses);
    double *aux = arena_alloc(arena, (size_t)architecture_moe_blocks(arch) * sizeof *aux);
    lanes_losses(model, losses, aux);
    model->logits = arena_alloc(arena, (size_t)arch->vocab * sizeof(float));
    if (arch->has_bias) {
        model->router_bias = arena_alloc(&model->arena_params, (size_t)loads * sizeof(float));
    }
    count(model, MODEL_SCRATCH, arena, &used);
    count(model, MODEL_WEIGHTS, &model->arena_params, &params);
}

struct arena model_arena(const struct model *model)
{
    return (struct arena){.source = {.device = model->device,
                                     .alloc = model->ops->memory_alloc,
                                     .free = model->ops->memory_free}};
}

static void layout(struct model *model)
{
    memset(model->memory, 0, sizeof model->memory);
    group_layout(model);
    activation_layout(model);
}

static void measure(struct model *model)
{
    model->arena_params = model->arena_grads = model->arena_optimizer = model->arena_activations =
        model_arena(model);
    model->offload.arena = offload_arena(model);
    layout(model);
}

static enum status reserve(struct model *model)
{
    measure(model);
    TRY(arena_reserve(&model->arena_params, "weights"));
    TRY(arena_reserve(&model->arena_grads, "gradients"));
    TRY(arena_reserve(&model->arena_optimizer, "optimizer state"));
    TRY(arena_reserve(&model->arena_activations, "activations"));
    if (model->offload.on) {
        TRY(arena_reserve(&model->offload.arena, "optimizer state of the host"));
    }
    layout(model);
    return STATUS_OK;
}

/* The optimizer's and the experts' view of the parameters on this rank. */
static enum status init_groups(struct model *model, const struct mesh *mesh)
{
    const struct comm *replicas[PARAM_GROUPS] = {[PARAM_DENSE] = &mesh->stage,
                                                 [PARAM_EXPERT] = &mesh->edp,
                                                 [PARAM_TENSOR] = &mesh->replicas,
                                                 [PARAM_EMBED] = &mesh->ends};
    struct params_place place = {.ep_rank = mesh->ep.rank,
                                 .ep_size = mesh->ep.size,
                                 .etp_rank = mesh->etp.rank,
                                 .etp_size = mesh->etp.size,
                                 .tp_rank = mesh->tp.rank,
                                 .tp_size = mesh->tp.size,
                                 .slice = &model->slice};
    for (int g = 0; g < PARAM_GROUPS; g++) {
        const bool on =
            model->training && shards_wanted(model->config, (enum param_group)g, replicas[g]->size);
        model->group[g].shards.on = on;
        model->group[g].gathered.on =
            on && gathered_wanted(model->config, (enum param_group)g, replicas[g]->size);
        place.unit[g] = on ? zero_padded(1, replicas[g]->size) : 0;
    }
    TRY(params_init(&model->params, &model->whole,
                    model->config->optimizer.decay == CONFIG_DECAY_ALL, &place));
    for (int g = 0; g < model->params.groups; g++) {
        const int64_t all = 0;
        const bool on = model->group[g].shards.on;
        TRY(zero_init(&model->group[g].zero, (struct comm *)replicas[g],
                      on ? model->params.begin[g] : &all, on ? model->params.parts : 1,
                      model->params.elements[g]));
    }
    return STATUS_OK;
}

/* Dispatch plans of the blocks with experts; their bound is one number. */
static void init_experts(struct model *model, const struct mesh *mesh)
{
    const struct architecture *arch = &model->arch;
    const int64_t tokens = model->batch * model->tp.share, slices = mesh->etp.size;
    model->moe = (struct moe){.device = model->device,
                              .ops = model->ops,
                              .config = model->config,
                              .arch = arch,
                              .linears = &model->linears,
                              .act = model->act,
                              .tokens = tokens,
                              .sequences = model->batch,
                              .local_experts = arch->experts / mesh->ep.size,
                              .apart = nodes_apart(&mesh->nodes),
                              .slices = slices,
                              .choices = arch->top_k * slices,
                              .capacity = {.device = model->device,
                                           .ops = model->ops,
                                           .tp = &model->tp,
                                           .cp = &model->cp,
                                           .factor = model->config->router.capacity_factor,
                                           .top_k = arch->top_k,
                                           .experts = arch->experts,
                                           .groups = arch->capacity_groups,
                                           .tokens = model->batch * model->length,
                                           .part = model->batch * model->sequence}};
    const struct expert_sizes sizes = {.tokens = tokens,
                                       .top_k = arch->top_k * slices,
                                       .experts = arch->experts * slices,
                                       .slices = slices,
                                       .padded = model->config->router.dispatch == CONFIG_PADDED,
                                       .by_source = model->gradients.fixed,
                                       .beside = lanes_wanted(model),
                                       .buffer_factor = model->config->router.buffer_factor,
                                       .nodes = (struct nodes *)&mesh->nodes};
    for (int64_t s = 0; s < model->slots; s++) {
        const struct stage *part = &model->slice.part[model->slot[s].part];
        for (int64_t b = part->first; b < part->first + part->blocks; b++) {
            if (b >= arch->dense_layers) {
                struct expert_plan *plan = &model->slot[s].blocks[b].moe.plan;
                expert_plan_init(plan, (struct comm *)&mesh->experts, model->device, model->ops,
                                 &sizes);
                model->moe.bound = plan->bound;
                model->moe.sending = plan->sending;
            }
        }
    }
}

static enum status reserve_experts(struct model *model)
{
    for (int64_t i = 0; i < model->slots * architecture_blocks(&model->arch); i++) {
        struct expert_plan *plan = &model->states[i].moe.plan;
        if (plan->ep != NULL) {
            TRY(expert_plan_reserve(plan));
        }
    }
    return STATUS_OK;
}

/* The ranks that divide sequences, and this one's part of them. */
static void init_context(struct model *model, const struct mesh *mesh)
{
    cp_init(&model->cp, (struct comm *)&mesh->cp, model->device, model->ops, model->length);
    model->sequence = cp_tokens(&model->cp, model->length);
}

/* What this rank of the pipeline has, for the largest step. */
static enum status init_slice(struct model *model, const struct mesh *mesh)
{
    const struct config *config = model->config;
    const int64_t stages = mesh->pp.size > 1 ? mesh->pp.size : 1,
                  ways = mesh->dp.size > 1 ? mesh->dp.size : 1,
                  batches = config->train.global_batch / config->train.micro_batch / ways;
    struct pipeline_shape shape = stages_shape(config, config->parallel.schedule, stages, batches);
    if (!model->training && shape.schedule == PIPELINE_PAIRS) { /* there is no backward */
        shape.schedule = PIPELINE_1F1B;
    }
    TRY(slice_init(&model->slice, config, &model->whole, &shape, mesh->pp.rank));
    return pipe_init(model);
}

enum status model_own_batch(struct model *model)
{
    model->own = calloc((size_t)(4 * model->batch * model->sequence), sizeof *model->own);
    return model->own != NULL ? STATUS_OK
                              : status_fail(STATUS_RESOURCE, "out of memory for a batch");
}

/* The ranks that divide sequences and matrices, and this one's part of the architecture. */
static enum status init_tensor(struct model *model, const struct mesh *mesh)
{
    const struct architecture *arch = &model->whole;
    const int64_t ranks[] = {arch->q_rank, arch->kv_rank, arch->rope_dim};
    int64_t width = arch->width;
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        width = ranks[i] > width ? ranks[i] : width;
    }
    tp_init(&model->tp, (struct comm *)&mesh->tp, model->device, model->ops, model->sequence,
            width);
    model->arch = model->whole;
    architecture_divide(&model->arch, mesh->tp.size, mesh->etp.size);
    return model_own_batch(model);
}

static enum status upload_rope(struct model *model)
{
    const struct architecture *arch = &model->arch;
    const size_t bytes = (size_t)(model->length * arch->rope_dim) * sizeof(float);
    float *table = malloc(bytes);
    if (table == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the rotary table of %lld positions",
                           (long long)model->length);
    }
    rope_table(table, model->length, arch->rope_dim, arch->rope_theta, &arch->yarn);
    model->ops->upload(model->device, model->rope, table, bytes);
    free(table);
    return STATUS_OK;
}

/* Everything but the arenas. */
static enum status prepare(struct model *model, const struct config *config,
                           const struct mesh *mesh, struct device *device, int64_t batch,
                           int64_t sequence, bool training)
{
    *model = (struct model){
        .config = config,
        .mesh = mesh,
        .device = device,
        .ops = device_ops(device),
        .act = config->train.precision == CONFIG_FP32 ? DTYPE_F32 : DTYPE_BF16,
        .moments = config->optimizer.moments == CONFIG_MOMENTS_FP32 ? DTYPE_F32 : DTYPE_BF16,
        .training = training,
        .offload = {.on = training && config->optimizer.offload},
        .unit = 1,
        .batch = batch,
        .length = sequence};
    architecture_init(&model->whole, config);
    model->whole.mtp_depth = training ? model->whole.mtp_depth : 0;
    init_context(model, mesh);
    TRY(init_tensor(model, mesh));
    TRY(context_check(model));
    TRY(init_slice(model, mesh));
    TRY(init_groups(model, mesh));
    TRY(gradients_init(&model->gradients, model));
    TRY(linears_init(&model->linears, model));
    if (training) {
        TRY(optimizer_init(model));
        TRY(reduction_init(model));
    }
    init_experts(model, mesh);
    TRY(mtp_init(model));
    return lanes_init(model);
}

enum status model_init(struct model *model, const struct config *config, const struct mesh *mesh,
                       struct device *device, int64_t batch, int64_t sequence, bool training)
{
    TRY(prepare(model, config, mesh, device, batch, sequence, training));
    TRY(reserve(model));
    TRY(reserve_experts(model));
    TRY(reduction_reserve(model));
    TRY(lanes_open(model));
    return upload_rope(model);
}

enum status model_measure(struct model *model, const struct config *config, const struct mesh *mesh,
                          struct device *device, int64_t batch, int64_t sequence, bool training)
{
    TRY(prepare(model, config, mesh, device, batch, sequence, training));
    measure(model);
    return STATUS_OK;
}

void model_free(struct model *model)
{
    for (int64_t i = 0;
         model->states != NULL && i < model->slots * architecture_blocks(&model->arch); i++) {
        expert_plan_free(&model->states[i].moe.plan);
    }
    if (model->ops != NULL) {
        model->ops->graph_forget(model->device); /* their keys do not say whose memory they hold */
    }
    lanes_free(model);
    pipe_free(model);
    free(model->own);
    mtp_free(model);
    optimizer_free(model);
    linears_free(&model->linears);
    reduction_free(model);
    for (int g = 0; g < PARAM_GROUPS; g++) {
        zero_free(&model->group[g].zero);
    }
    params_free(&model->params);
    arena_free(&model->arena_params);
    arena_free(&model->arena_grads);
    arena_free(&model->arena_optimizer);
    arena_free(&model->offload.arena);
    arena_free(&model->arena_activations);
    *model = (struct model){0};
}

void model_publish_part(struct model *model, enum param_group g, const struct offload_part *part)
{
    const struct model_group *group = &model->group[g];
    const size_t width = dtype_bytes(model->act);
    const bool kept = group->gathered.on && model->act == DTYPE_F32; /* the masters are */
    for (int64_t p = 0; p < group->zero.parts && !kept; p++) {
        const struct zero_part *own = &group->zero.part[p];
        const int64_t from = own->at > part->first ? own->at : part->first,
                      end = own->at + own->share, stop = part->first + part->count,
                      count = (end < stop ? end : stop) - from,
                      first = zero_first(&group->zero, p, group->zero.comm->rank) + from - own->at;
        char *out = group->gathered.on ? (char *)group->gathered.kept + (size_t)from * width
                                       : (char *)group->weights + (size_t)first * width;
        float *master = part->master + (from - part->first);
        if (count > 0 && (const void *)out != (const void *)master) {
            model->ops->cast(model->device, tensor_1d(out, model->act, count),
                             tensor_1d(master, DTYPE_F32, count));
        }
    }
}

struct publishing {
    struct model *model;
    enum param_group group;
};

static void publish_visit(void *context, const struct offload_part *part)
{
    const struct publishing *p = context;
    model_publish_part(p->model, p->group, part);
}

void model_gather(struct model *model, enum param_group g, bool rounded)
{
    struct model_group *group = &model->group[g];
    struct publishing publishing = {model, g};
    if (!rounded) {
        offload_pass(model, g, OFFLOAD_MASTER, 0, publish_visit, &publishing);
    }
    if (!group->gathered.on) {
        zero_all_gather(&group->zero, group->weights, model->act);
    }
}

void model_publish(struct model *model)
{
    gathered_forget(model);
    for (int g = 0; g < model->params.groups; g++) {
        model_gather(model, (enum param_group)g, false);
    }
    linears_publish(model);
    offload_wait(model);
}

/* Moments as before the first step. */
static void zero_moments(struct model *model)
{
    for (int g = 0; g < model->params.groups && model->training; g++) {
        const struct model_group *group = &model->group[g];
        const size_t bytes = (size_t)group->zero.share * dtype_bytes(model->moments);
        void *const moments[] = {group->moment1, group->moment2};
        for (int m = 0; m < 2; m++) {
            if (moments[m] != NULL && model->offload.on) {
                memset(moments[m], 0, bytes);
            } else if (moments[m] != NULL) {
                model->ops->zero(model->device, moments[m], bytes);
            }
        }
    }
}

struct fresh {
    struct model *model;
    enum param_group group;
    struct offload_walk walk;
};

/* Masters of a part, as a fresh run has them. */
static void initialize_part(void *context, const struct offload_part *part)
{
    struct fresh *fresh = context;
    struct model *model = fresh->model;
    const struct param *param = NULL;
    struct offload_piece piece;
    while ((param = offload_next(model, fresh->group, part, &fresh->walk, &piece)) != NULL) {
        const uint64_t key = rng_key(model->config->run.seed, param->name);
        float *out = part->master + (piece.at - part->first);
        if (param->ones) {
            model->ops->fill(model->device, out, piece.count, 1.0F);
            continue;
        }
        const int64_t first = piece.first - param->offset, end = first + piece.count;
        for (int64_t at = first; at < end;) {
            const struct param_run run = param_run(param, at, end);
            model->ops->init_normal(model->device, out, key, (uint64_t)run.whole, run.count,
                                    (float)model->config->model.initializer_range);
            out += run.count;
            at += run.count;
        }
    }
}

void model_initialize(struct model *model)
{
    offload_wait(model);
    zero_moments(model);
    for (int g = 0; g < model->params.groups; g++) {
        struct fresh fresh = {.model = model, .group = (enum param_group)g};
        offload_pass(model, fresh.group, OFFLOAD_MASTER, OFFLOAD_MASTER, initialize_part, &fresh);
    }
    model_publish(model);
}

void model_clear_grads(struct model *model, bool renew)
{
    const bool overwrite = renew && linears_may_overwrite(model);
    const int64_t loads = architecture_moe_blocks(&model->arch) * model->arch.experts;
    linears_cleared(&model->linears, overwrite);
    for (int g = 0; g < model->params.groups && model->training; g++) {
        const struct model_group *group = &model->group[g];
        const size_t count = (size_t)group->zero.count;
        if (group->shards.on || (overwrite && g == PARAM_EXPERT)) {
            continue;
        }
        if (model->gradients.fixed) {
            model->ops->zero(model->device, group->sums, count * sizeof *group->sums);
        } else {
            model->ops->zero(model->device, group->grads, count * sizeof *group->grads);
        }
    }
    shards_clear(model);
    reduction_clear(model);
    gradients_begin(&model->gradients, model->unit);
    model->ops->zero(model->device, model->load, (size_t)loads * sizeof(int64_t));
    linears_count_anew(&model->linears);
}

size_t model_bytes(const struct model *model)
{
    return model->arena_params.capacity + model->arena_grads.capacity +
           model->arena_optimizer.capacity + model->arena_activations.capacity;
}

size_t model_host_bytes(const struct model *model)
{
    return model->offload.arena.capacity;
}
