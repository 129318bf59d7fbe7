#include "trainer/model/model.h"

#include <assert.h>
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

/* With integers the f32 gradients of the share stand where nothing is any more once they are
 * decoded: several ranks' sums are in `reduced` then, one rank's stay where they were. */
static void gradients_of_group(struct model *model, struct model_group *group)
{
    struct arena *arena = &model->arena_grads;
    const size_t count = (size_t)group->zero.count, share = (size_t)group->zero.share;
    if (!model->gradients.fixed) {
        group->grads = arena_alloc(arena, count * sizeof *group->grads);
        group->reduced = arena_alloc(arena, share * sizeof *group->reduced);
        return;
    }
    group->sums = arena_alloc(arena, count * sizeof *group->sums);
    group->reduced = arena_alloc(arena, share * sizeof *group->sums);
    group->grads = group->zero.comm->size > 1 ? (float *)(void *)group->sums
                   : group->reduced != NULL   ? group->reduced + share
                                              : NULL;
}

static void group_layout(struct model *model)
{
    size_t params = model->arena_params.used, optimizer = model->arena_optimizer.used,
           grads = model->arena_grads.used;
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        const size_t count = (size_t)group->zero.count, share = (size_t)group->zero.share;
        group->weights = arena_alloc(&model->arena_params, count * dtype_bytes(model->act));
        if (model->act == DTYPE_F32) {
            group->master =
                group->weights == NULL ? NULL : (float *)group->weights + group->zero.first;
        } else {
            group->master = arena_alloc(&model->arena_optimizer, share * sizeof(float));
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

static void activation_layout(struct model *model)
{
    struct arena *arena = &model->arena_activations;
    const struct architecture *arch = &model->arch;
    const int64_t n = model->batch * model->sequence, own = model->batch * model->tp.share,
                  loads = architecture_moe_blocks(arch) * arch->experts;
    const size_t act = dtype_bytes(model->act), stream = (size_t)(own * arch->width) * act;
    size_t used = arena->used, params = model->arena_params.used;
    void **streams[] = {&model->stream, &model->delta, &model->dstream,
                        &model->dwork,  &model->dnorm, &model->final_norm};
    attention_scratch_layout(model, &model->attention, arena);
    context_layout(model, &model->context, arena);
    count(model, MODEL_SCRATCH, arena, &used);
    block_lent_layout(model, arena);
    count(model, MODEL_LENT, arena, &used);
    block_layout(model, arena);
    count(model, MODEL_BLOCKS, arena, &used);
    moe_scratch_layout(&model->moe, arena);
    count(model, MODEL_EXCHANGE, arena, &used);
    mlp_scratch_layout(&model->mlp, &model->linears, n, mlp_widest(arch), arena);
    mtp_layout(model, arena);
    balance_layout(model, &model->balance, arena);
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
        *streams[i] = arena_alloc(arena, stream);
    }
    if (!tp_alone(&model->tp)) {
        model->wide[0] = arena_alloc(arena, (size_t)(n * model->tp.width) * act);
        model->wide[1] = arena_alloc(arena, (size_t)(n * model->tp.width) * sizeof(float));
    }
    tp_layout(&model->tp, arena);
    cp_layout(&model->cp, arena);
    model->final_rstd = arena_alloc(arena, (size_t)own * sizeof(float));
    model->rope = arena_alloc(arena, (size_t)(model->length * arch->rope_dim) * sizeof(float));
    model->load = arena_alloc(arena, (size_t)loads * sizeof(int64_t));
    model->input = (struct batch){.ids = arena_alloc(arena, (size_t)n * sizeof(int32_t)),
                                  .labels = arena_alloc(arena, (size_t)n * sizeof(int32_t)),
                                  .positions = arena_alloc(arena, (size_t)n * sizeof(int32_t)),
                                  .first = arena_alloc(arena, (size_t)n * sizeof(int32_t))};
    model->losses = arena_alloc(arena, sizeof *model->losses);
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
    layout(model);
}

static enum status reserve(struct model *model)
{
    measure(model);
    TRY(arena_reserve(&model->arena_params, "weights"));
    TRY(arena_reserve(&model->arena_grads, "gradients"));
    TRY(arena_reserve(&model->arena_optimizer, "optimizer state"));
    TRY(arena_reserve(&model->arena_activations, "activations"));
    layout(model);
    return STATUS_OK;
}

/* The optimizer's and the experts' view of the parameters on this rank. */
static enum status init_groups(struct model *model, const struct mesh *mesh)
{
    const struct comm *replicas[PARAM_GROUPS] = {[PARAM_DENSE] = &mesh->stage,
                                                 [PARAM_EXPERT] = &mesh->edp,
                                                 [PARAM_TENSOR] = &mesh->replicas};
    const struct params_place place = {.ep_rank = mesh->ep.rank,
                                       .ep_size = mesh->ep.size,
                                       .tp_rank = mesh->tp.rank,
                                       .tp_size = mesh->tp.size};
    TRY(params_init(&model->params, &model->whole,
                    model->config->optimizer.decay == CONFIG_DECAY_ALL, &place));
    for (int g = 0; g < model->params.groups; g++) {
        zero_init(&model->group[g].zero, (struct comm *)replicas[g],
                  zero_padded(model->params.elements[g], replicas[g]->size));
    }
    return STATUS_OK;
}

/* Dispatch plans of the blocks with experts; their bound is one number. */
static enum status init_experts(struct model *model, const struct mesh *mesh)
{
    const struct architecture *arch = &model->arch;
    const int64_t tokens = model->batch * model->tp.share, blocks = architecture_blocks(arch);
    model->moe = (struct moe){.device = model->device,
                              .ops = model->ops,
                              .config = model->config,
                              .arch = arch,
                              .linears = &model->linears,
                              .act = model->act,
                              .tokens = tokens,
                              .sequences = model->batch,
                              .local_experts = arch->experts / mesh->ep.size};
    model->blocks = calloc((size_t)blocks, sizeof *model->blocks);
    if (model->blocks == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld layers", (long long)blocks);
    }
    const struct expert_sizes sizes = {.tokens = tokens,
                                       .top_k = arch->top_k,
                                       .experts = arch->experts,
                                       .padded = model->config->router.dispatch == CONFIG_PADDED,
                                       .by_source = model->gradients.fixed,
                                       .buffer_factor = model->config->router.buffer_factor};
    for (int64_t b = arch->dense_layers; b < blocks; b++) {
        struct expert_plan *plan = &model->blocks[b].moe.plan;
        TRY(expert_plan_init(plan, (struct comm *)&mesh->ep, model->device, model->ops, &sizes));
        model->moe.bound = plan->bound;
        model->moe.sending = plan->sending;
    }
    return STATUS_OK;
}

/* The ranks that divide sequences, and this one's part of them. */
static void init_context(struct model *model, const struct mesh *mesh)
{
    const struct architecture *arch = &model->whole;
    const int64_t grouped = 2 * arch->kv_heads * arch->qk_dim,
                  latent = arch->kv_rank > arch->rope_dim ? arch->kv_rank : arch->rope_dim;
    cp_init(&model->cp, (struct comm *)&mesh->cp, model->device, model->ops, model->length,
            arch->kv_rank > 0 ? latent : grouped);
    model->sequence = cp_tokens(&model->cp, model->length);
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
    architecture_divide(&model->arch, mesh->tp.size);
    model->own = calloc((size_t)(4 * model->batch * model->sequence), sizeof *model->own);
    return model->own != NULL ? STATUS_OK
                              : status_fail(STATUS_RESOURCE, "out of memory for a batch");
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
        .unit = 1,
        .batch = batch,
        .length = sequence};
    architecture_init(&model->whole, config);
    model->whole.mtp_depth = training ? model->whole.mtp_depth : 0;
    init_context(model, mesh);
    TRY(init_tensor(model, mesh));
    TRY(init_groups(model, mesh));
    TRY(gradients_init(&model->gradients, model));
    TRY(linears_init(&model->linears, model));
    if (training) {
        TRY(optimizer_init(model));
    }
    TRY(init_experts(model, mesh));
    return mtp_init(model);
}

enum status model_init(struct model *model, const struct config *config, const struct mesh *mesh,
                       struct device *device, int64_t batch, int64_t sequence, bool training)
{
    TRY(prepare(model, config, mesh, device, batch, sequence, training));
    TRY(reserve(model));
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
    for (int64_t b = 0; model->blocks != NULL && b < architecture_blocks(&model->arch); b++) {
        expert_plan_free(&model->blocks[b].moe.plan);
    }
    if (model->ops != NULL) {
        model->ops->graph_forget(model->device); /* their keys do not say whose memory they hold */
    }
    free(model->blocks);
    free(model->own);
    mtp_free(model);
    optimizer_free(model);
    linears_free(&model->linears);
    params_free(&model->params);
    arena_free(&model->arena_params);
    arena_free(&model->arena_grads);
    arena_free(&model->arena_optimizer);
    arena_free(&model->arena_activations);
    *model = (struct model){0};
}

void model_publish(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        if (model->act != DTYPE_F32) {
            char *out =
                (char *)group->weights + (size_t)group->zero.first * dtype_bytes(model->act);
            model->ops->cast(model->device, tensor_1d(out, model->act, group->zero.share),
                             tensor_1d(group->master, DTYPE_F32, group->zero.share));
        }
        zero_all_gather(&group->zero, group->weights, model->act);
    }
    linears_publish(&model->linears);
}

/* Moments as before the first step. */
static void zero_moments(struct model *model)
{
    for (int g = 0; g < model->params.groups && model->training; g++) {
        const struct model_group *group = &model->group[g];
        const size_t bytes = (size_t)group->zero.share * dtype_bytes(model->moments);
        model->ops->zero(model->device, group->moment1, bytes);
        if (group->moment2 != NULL) {
            model->ops->zero(model->device, group->moment2, bytes);
        }
    }
}

void model_initialize(struct model *model)
{
    zero_moments(model);
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *param = &model->params.table[i];
        const struct model_group *group = &model->group[param->group];
        const int64_t begin = group->zero.first, end = begin + group->zero.share;
        const int64_t first = param->offset > begin ? param->offset : begin;
        const int64_t last =
            param->offset + param->count < end ? param->offset + param->count : end;
        const uint64_t key = rng_key(model->config->run.seed, param->name);
        if (first >= last) {
            continue;
        }
        float *out = group->master + (first - begin);
        if (param->ones) {
            model->ops->fill(model->device, out, last - first, 1.0F);
            continue;
        }
        for (int64_t at = first - param->offset, end_at = last - param->offset; at < end_at;) {
            const struct param_run run = param_run(param, at, end_at);
            model->ops->init_normal(model->device, out, key, (uint64_t)run.whole, run.count,
                                    (float)model->config->model.initializer_range);
            out += run.count;
            at += run.count;
        }
    }
    model_publish(model);
}

void model_zero_grads(struct model *model)
{
    const int64_t loads = architecture_moe_blocks(&model->arch) * model->arch.experts;
    for (int g = 0; g < model->params.groups && model->training; g++) {
        const struct model_group *group = &model->group[g];
        const size_t count = (size_t)group->zero.count;
        if (model->gradients.fixed) {
            model->ops->zero(model->device, group->sums, count * sizeof *group->sums);
        } else {
            model->ops->zero(model->device, group->grads, count * sizeof *group->grads);
        }
    }
    gradients_begin(&model->gradients, model->unit);
    model->ops->zero(model->device, model->load, (size_t)loads * sizeof(int64_t));
    linears_count_anew(&model->linears);
}

static struct tensor stream(const struct model *model, void *data, int64_t tokens)
{
    return model_act(model, data, tokens, model->arch.width);
}

static struct tensor embedding(const struct model *model)
{
    return model_weight(model, PARAM_DENSE, model->params.embed, model->arch.vocab,
                        model->arch.width);
}

static struct tensor head(const struct model *model)
{
    return model_weight(model, PARAM_DENSE, model->params.head, model->arch.vocab,
                        model->arch.width);
}

void model_count_block(struct model *model, int64_t block, int64_t tokens)
{
    const struct moe_state *state = &model->blocks[block].moe;
    const int64_t experts = model->arch.experts, rows = tokens / state->row_tokens;
    const int64_t slots = tokens * model->arch.top_k;
    model->result.slots += slots;
    model->result.extra_rounds += state->plan.rounds - 1;
    model->ops->router_count(model->device,
                             model->load + (block - model->arch.dense_layers) * experts,
                             state->counts.routed, rows, experts);
    model->ops->router_count(model->device, &model->losses->kept, state->plan.sorted + experts, 1,
                             1);
}

static void forward(struct model *model, const struct block_call *call)
{
    const int64_t n = block_tokens(model, call);
    struct tensor x = stream(model, model->blocks[0].input, n), delta = {0};
    assert(n <= model->moe.tokens && call->sequence <= model->sequence);
    model->result = (struct model_result){0};
    model->ops->embedding_forward(model->device, x, call->batch->ids, embedding(model));
    for (int64_t l = 0; l < model->arch.layers; l++) {
        comm_at_layer(model->mesh->world, l);
        block_forward(model, l, call, x, delta);
        x = stream(model, model->blocks[l].middle, n);
        delta = stream(model, model->delta, n);
        if (l >= model->arch.dense_layers) {
            model_count_block(model, l, n);
        }
    }
    comm_at_layer(model->mesh->world, -1);
    model->ops->norm_forward(model->device, stream(model, model->final_norm, n),
                             stream(model, model->stream, n), model->final_rstd, x, delta,
                             model_vector(model, model->params.final_norm, model->arch.width),
                             model->arch.norm_eps);
    if (call->training) {
        probe_tell(model->probe, -1, PROBE_FINAL_NORM, stream(model, model->final_norm, n));
    }
}

float model_z_scale(const struct model *model, int64_t tokens, const struct model_scale *scale)
{
    return (float)(model->arch.balance.z * scale->unit / (double)tokens);
}

static void backward(struct model *model, const struct block_call *call,
                     const struct model_scale *scale)
{
    const int64_t n = block_tokens(model, call), width = model->arch.width;
    struct tensor dstream = stream(model, model->dstream, n);
    probe_tell(model->probe, -1, PROBE_OUTPUT_GRADIENT, stream(model, model->dwork, n));
    model->ops->zero(model->device, model->dstream, tensor_bytes(&dstream));
    model->ops->norm_backward(
        model->device, dstream, model_vector_grad(model, model->params.final_norm, width),
        stream(model, model->dwork, n), stream(model, model->stream, n), model->final_rstd,
        model_vector(model, model->params.final_norm, width));
    model_add_grad(model, PARAM_DENSE, model->params.final_norm, width);
    for (int64_t l = model->arch.layers - 1; l >= 0; l--) {
        comm_at_layer(model->mesh->world, l);
        block_backward(model, l, call, model_z_scale(model, call->count * call->length, scale));
        /* no layer below has experts, and none has ranks of tp or cp that exchange rows */
        if (l == model->arch.dense_layers && scale->last && tp_alone(&model->tp) &&
            cp_alone(&model->cp)) {
            optimizer_reduce_start(model, PARAM_EXPERT);
        }
    }
    comm_at_layer(model->mesh->world, -1);
    model->ops->embedding_backward(
        model->device,
        model_grad(model, PARAM_DENSE, model->params.embed, model->arch.vocab, width),
        call->batch->ids, dstream);
    model_add_grad(model, PARAM_DENSE, model->params.embed, model->arch.vocab * width);
}

void model_own_tokens(const struct model *model, int32_t *to, const int32_t *from, int64_t count,
                      int64_t sequence)
{
    const int64_t part = cp_tokens(&model->cp, sequence), own = tp_tokens(&model->tp, part),
                  first = tp_first(&model->tp);
    cp_own_tokens(&model->cp, to, from, count, sequence);
    for (int64_t s = 0; s < count; s++) {
        memmove(to + s * own, to + s * part + first, (size_t)own * sizeof *to);
    }
}

/* The batch on the device: ids and labels of this rank's tokens, the rest of all of its rank of cp.
 */
static void take_batch(struct model *model, const struct batch *batch, int64_t count,
                       int64_t sequence)
{
    const int64_t tokens = count * cp_tokens(&model->cp, sequence),
                  own = tokens / model->tp.comm->size;
    const struct {
        int32_t *to;
        const int32_t *from;
        bool all;
    } arrays[] = {{model->input.ids, batch->ids, false},
                  {model->input.labels, batch->labels, false},
                  {model->input.positions, batch->positions, true},
                  {model->input.first, batch->first, true}};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        int32_t *host = model->own + (int64_t)i * tokens;
        if (arrays[i].from == NULL) {
            continue;
        }
        if (arrays[i].all) {
            cp_own_tokens(&model->cp, host, arrays[i].from, count, sequence);
        } else {
            model_own_tokens(model, host, arrays[i].from, count, sequence);
        }
        model->ops->upload(model->device, arrays[i].to, host,
                           (size_t)(arrays[i].all ? tokens : own) * sizeof *host);
    }
}

/* What every rank of tp and cp has of its own tokens alone. */
static void sum_losses(struct model *model)
{
    block_sum(model, &model->losses->loss, 1, DTYPE_F64);
    block_sum(model, &model->losses->mtp, 1, DTYPE_F64);
    block_sum(model, &model->losses->kept, 1, DTYPE_I64);
}

void model_run(struct model *model, const struct batch *batch, int64_t count, int64_t sequence,
               const struct model_scale *scale)
{
    const int64_t width = model->arch.width;
    const struct block_call call = {.batch = &model->input,
                                    .count = count,
                                    .sequence = cp_tokens(&model->cp, sequence),
                                    .length = sequence,
                                    .training = scale != NULL,
                                    .jitter_key = scale != NULL ? scale->jitter_key : 0};
    struct tensor dx = {0}, dw = {0};
    const int64_t n = block_tokens(model, &call);
    assert((tp_alone(&model->tp) && cp_alone(&model->cp)) || sequence == model->length);
    take_batch(model, batch, count, sequence);
    if (scale != NULL) {
        probe_tell(model->probe, -1, PROBE_IDS, tensor_1d(model->input.ids, DTYPE_I32, n));
        probe_tell(model->probe, -1, PROBE_LABELS, tensor_1d(model->input.labels, DTYPE_I32, n));
    }
    model->ops->zero(model->device, model->losses, sizeof *model->losses);
    forward(model, &call);
    if (scale != NULL) {
        assert(model->training);
        dx = stream(model, model->dwork, n);
        dw = model_grad(model, PARAM_DENSE, model->params.head, model->arch.vocab, width);
    }
    const int64_t began = comm_span_begin(model->mesh->world);
    model->ops->cross_entropy(model->device, &model->losses->loss, dx, dw,
                              stream(model, model->final_norm, n), head(model), model->input.labels,
                              scale != NULL ? (float)scale->loss : 0.0F);
    comm_span_end(model->mesh->world, "head and loss", began);
    if (scale != NULL) {
        model_add_grad(model, PARAM_DENSE, model->params.head, model->arch.vocab * width);
        probe_tell(model->probe, -1, PROBE_LOSS, tensor_1d(&model->losses->loss, DTYPE_F64, 1));
        mtp_forward(model, &model->losses->mtp, batch, count, sequence, scale);
        balance_losses(model, &model->losses->aux, count, sequence, scale->unit);
        mtp_backward(model, count, sequence, scale);
        backward(model, &call, scale);
    }
    sum_losses(model);
}

struct model_losses model_read_losses(const struct model *model)
{
    struct model_losses losses;
    model->ops->download(model->device, &losses, model->losses, sizeof losses);
    return losses;
}

void model_forward(struct model *model, const struct block_call *call, int64_t first, int64_t rows,
                   float *logits)
{
    assert(tp_alone(&model->tp) && cp_alone(&model->cp));
    forward(model, call);
    struct tensor normed = stream(model, model->final_norm, call->count * call->sequence);
    model->ops->linear_forward(model->device, tensor_2d(logits, DTYPE_F32, rows, model->arch.vocab),
                               tensor_rows(&normed, first, rows), head(model), false);
}

void model_logits(struct model *model, const struct batch *batch, int64_t count, int64_t sequence,
                  int64_t token, float *logits)
{
    const struct block_call call = {.batch = &model->input, .count = count, .sequence = sequence};
    take_batch(model, batch, count, sequence);
    model_forward(model, &call, token, 1, model->logits);
    model->ops->download(model->device, logits, model->logits,
                         (size_t)model->arch.vocab * sizeof *logits);
}

size_t model_bytes(const struct model *model)
{
    return model->arena_params.capacity + model->arena_grads.capacity +
           model->arena_optimizer.capacity + model->arena_activations.capacity;
}
