#include "trainer/model.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "kernels/rope_table.h"
#include "trainer/block.h"
#include "trainer/optimizer.h"

static void group_layout(struct model *model)
{
    for (int g = 0; g < PARAM_GROUPS; g++) {
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
            group->grads = arena_alloc(&model->arena_grads, count * sizeof(float));
            group->reduced = arena_alloc(&model->arena_grads, share * sizeof(float));
        }
    }
    if (model->training) {
        optimizer_layout(model);
    }
}

static void activation_layout(struct model *model)
{
    struct arena *arena = &model->arena_activations;
    const struct config *config = model->config;
    const int64_t n = model->batch * model->sequence, head_dim = config_head_dim(config);
    const int64_t experts = config->model.num_local_experts,
                  query = config->model.num_attention_heads * head_dim;
    const size_t element = dtype_bytes(model->act);
    const size_t stream = (size_t)(n * config->model.hidden_size) * element;
    const int64_t row = query + 2 * config->model.num_key_value_heads * head_dim;
    block_layout(model, arena);
    moe_scratch_layout(&model->moe, model->blocks[0].moe.plan.bound, arena);
    void **streams[] = {&model->stream, &model->delta, &model->dstream,
                        &model->dwork,  &model->dnorm, &model->final_norm};
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
        *streams[i] = arena_alloc(arena, stream);
    }
    model->dqkv = arena_alloc(arena, (size_t)(n * row) * element);
    model->dattended = arena_alloc(arena, (size_t)(n * query) * element);
    model->final_rstd = arena_alloc(arena, (size_t)n * sizeof(float));
    model->rope = arena_alloc(arena, (size_t)(model->sequence * head_dim) * sizeof(float));
    model->aux_dprob = arena_alloc(arena, (size_t)experts * sizeof(float));
    model->prob_sums = arena_alloc(arena, (size_t)experts * sizeof(double));
    model->layer_prob = arena_alloc(arena, (size_t)experts * sizeof(double));
    model->load =
        arena_alloc(arena, (size_t)(config->model.num_hidden_layers * experts) * sizeof(int64_t));
}

static enum status reserve(struct model *model)
{
    group_layout(model);
    activation_layout(model);
    TRY(arena_reserve(&model->arena_params, "weights"));
    TRY(arena_reserve(&model->arena_grads, "gradients"));
    TRY(arena_reserve(&model->arena_optimizer, "optimizer state"));
    TRY(arena_reserve(&model->arena_activations, "activations"));
    group_layout(model);
    activation_layout(model);
    return STATUS_OK;
}

enum status model_init(struct model *model, const struct config *config, const struct mesh *mesh,
                       struct device *device, int64_t batch, int64_t sequence, bool training)
{
    *model = (struct model){
        .config = config,
        .mesh = mesh,
        .device = device,
        .ops = device_ops(device),
        .act = config->train.precision == CONFIG_FP32 ? DTYPE_F32 : DTYPE_BF16,
        .moments = config->optimizer.moments == CONFIG_MOMENTS_FP32 ? DTYPE_F32 : DTYPE_BF16,
        .training = training,
        .batch = batch,
        .sequence = sequence};
    struct comm *replicas[PARAM_GROUPS] = {(struct comm *)&mesh->dp, (struct comm *)&mesh->edp};
    TRY(params_init(&model->params, config, mesh->ep.rank, mesh->ep.size));
    for (int g = 0; g < PARAM_GROUPS; g++) {
        zero_init(&model->group[g].zero, replicas[g],
                  zero_padded(model->params.elements[g], replicas[g]->size));
    }
    if (training) {
        TRY(optimizer_init(model));
    }
    model->moe = (struct moe){.device = device,
                              .ops = model->ops,
                              .config = config,
                              .act = model->act,
                              .tokens = batch * sequence,
                              .local_experts = config->model.num_local_experts / mesh->ep.size,
                              .expert_stride = model->params.expert_stride,
                              .down_offset = model->params.down_offset};
    model->blocks = calloc((size_t)config->model.num_hidden_layers, sizeof *model->blocks);
    if (model->blocks == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld layers",
                           (long long)config->model.num_hidden_layers);
    }
    for (int64_t l = 0; l < config->model.num_hidden_layers; l++) {
        TRY(expert_plan_init(&model->blocks[l].moe.plan, (struct comm *)&mesh->ep,
                             batch * sequence * config->model.num_experts_per_tok,
                             config->model.num_local_experts, config->router.buffer_factor));
    }
    TRY(reserve(model));
    rope_table(model->rope, sequence, config_head_dim(config), config->model.rope_theta);
    return STATUS_OK;
}

void model_free(struct model *model)
{
    for (int64_t l = 0; model->blocks != NULL && l < model->config->model.num_hidden_layers; l++) {
        expert_plan_free(&model->blocks[l].moe.plan);
    }
    free(model->blocks);
    optimizer_free(model);
    params_free(&model->params);
    arena_free(&model->arena_params);
    arena_free(&model->arena_grads);
    arena_free(&model->arena_optimizer);
    arena_free(&model->arena_activations);
    *model = (struct model){0};
}

void model_publish(struct model *model)
{
    for (int g = 0; g < PARAM_GROUPS; g++) {
        struct model_group *group = &model->group[g];
        if (model->act != DTYPE_F32) {
            char *out =
                (char *)group->weights + (size_t)group->zero.first * dtype_bytes(model->act);
            model->ops->cast(model->device, tensor_1d(out, model->act, group->zero.share),
                             tensor_1d(group->master, DTYPE_F32, group->zero.share));
        }
        zero_all_gather(&group->zero, group->weights, model->act);
    }
}

void model_initialize(struct model *model)
{
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
            for (int64_t j = 0; j < last - first; j++) {
                out[j] = 1.0F;
            }
        } else {
            model->ops->init_normal(model->device, out, key, (uint64_t)(first - param->offset),
                                    last - first, (float)model->config->model.initializer_range);
        }
    }
    model_publish(model);
}

void model_zero_grads(struct model *model)
{
    const struct config *config = model->config;
    for (int g = 0; g < PARAM_GROUPS && model->training; g++) {
        memset(model->group[g].grads, 0, (size_t)model->group[g].zero.count * sizeof(float));
    }
    memset(model->load, 0,
           (size_t)(config->model.num_hidden_layers * config->model.num_local_experts) *
               sizeof(int64_t));
}

static struct tensor stream(const struct model *model, void *data, int64_t tokens)
{
    return tensor_2d(data, model->act, tokens, model->config->model.hidden_size);
}

static struct tensor norm_weight(const struct model *model, bool grad)
{
    const int64_t width = model->config->model.hidden_size;
    struct tensor w = grad ? model_grad(model, PARAM_DENSE, model->params.final_norm, 1, width)
                           : model_weight(model, PARAM_DENSE, model->params.final_norm, 1, width);
    return tensor_1d(w.data, w.dtype, width);
}

static void forward(struct model *model, struct block_call *call, uint64_t jitter_key)
{
    const struct config *config = model->config;
    const int64_t n = call->count * call->sequence, experts = config->model.num_local_experts;
    struct tensor x = stream(model, model->stream, n), delta = {0};
    assert(n <= model->moe.tokens && call->sequence <= model->sequence);
    model->result = (struct model_result){0};
    model->ops->embedding_forward(model->device, x, call->batch->ids,
                                  model_weight(model, PARAM_DENSE, model->params.embed,
                                               config->model.vocab_size,
                                               config->model.hidden_size));
    for (int64_t l = 0; l < config->model.num_hidden_layers; l++) {
        struct block_state *state = &model->blocks[l];
        if (l == 0) { /* the stream is stored where backward looks for it */
            memcpy(state->input, x.data, tensor_bytes(&x));
            x = stream(model, state->input, n);
        }
        call->jitter_key = jitter_key + (uint64_t)l;
        block_forward(model, l, call, x, delta);
        x = stream(model, state->middle, n);
        delta = stream(model, model->delta, n);
        model->result.dropped += state->moe.dropped;
        model->result.slots += n * config->model.num_experts_per_tok;
        model->result.extra_rounds += state->moe.plan.rounds - 1;
        for (int64_t e = 0; e < experts; e++) {
            model->load[l * experts + e] += state->moe.count[e];
        }
    }
    model->ops->norm_forward(model->device, stream(model, model->final_norm, n),
                             stream(model, model->stream, n), model->final_rstd, x, delta,
                             norm_weight(model, false), (float)config->model.rms_norm_eps);
}

static void backward(struct model *model, struct block_call *call, const struct model_scale *scale)
{
    const struct config *config = model->config;
    const int64_t n = call->count * call->sequence;
    struct tensor dstream = stream(model, model->dstream, n);
    const float z_scale = (float)(config->router.z_loss_coef * scale->unit / (double)n);
    memset(model->dstream, 0, tensor_bytes(&dstream));
    model->ops->norm_backward(model->device, dstream, norm_weight(model, true),
                              stream(model, model->dwork, n), stream(model, model->stream, n),
                              model->final_rstd, norm_weight(model, false));
    for (int64_t l = config->model.num_hidden_layers - 1; l >= 0; l--) {
        call->jitter_key = scale->jitter_key + (uint64_t)l;
        block_backward(model, l, call, z_scale);
    }
    model->ops->embedding_backward(model->device,
                                   model_grad(model, PARAM_DENSE, model->params.embed,
                                              config->model.vocab_size, config->model.hidden_size),
                                   call->batch->ids, dstream);
}

/* Mixtral's load-balancing loss over all layers at once (models of Switch/Mixtral: E sum_e f_e P_e,
 * f from counts), plus z-loss. Leaves d loss / d prob, times `unit`, in aux_dprob. Statistics are
 * of this micro-batch. */
static void balance(struct model *model, int64_t tokens, double unit)
{
    const struct config *config = model->config;
    const int64_t experts = config->model.num_local_experts,
                  layers = config->model.num_hidden_layers;
    const double rows = (double)(layers * tokens), coef = config_batch_loss_coef(config);
    double loss = 0, z = 0;
    memset(model->prob_sums, 0, (size_t)experts * sizeof(double));
    for (int64_t l = 0; l < layers; l++) {
        const struct moe_state *state = &model->blocks[l].moe;
        model->ops->column_sums(model->device, model->layer_prob, state->prob, tokens, experts);
        z += model->ops->sum_squares(model->device, state->lse, tokens);
        for (int64_t e = 0; e < experts; e++) {
            model->prob_sums[e] += model->layer_prob[e];
        }
    }
    for (int64_t e = 0; e < experts; e++) {
        int64_t count = 0;
        for (int64_t l = 0; l < layers; l++) {
            count += model->blocks[l].moe.count[e];
        }
        const double fraction = (double)count / rows;
        loss += (double)experts * fraction * model->prob_sums[e] / rows;
        model->aux_dprob[e] = (float)(coef * (double)experts * fraction / rows * unit);
    }
    model->result.aux_loss = coef * loss + config->router.z_loss_coef * z / (double)tokens;
}

void model_run(struct model *model, const struct batch *batch, int64_t count, int64_t sequence,
               const struct model_scale *scale)
{
    const struct config *config = model->config;
    const int64_t n = count * sequence, vocab = config->model.vocab_size,
                  width = config->model.hidden_size;
    struct block_call call = {
        .batch = batch, .count = count, .sequence = sequence, .training = scale != NULL};
    struct tensor dx = {0}, dw = {0};
    forward(model, &call, scale != NULL ? scale->jitter_key : 0);
    if (scale != NULL) {
        assert(model->training);
        dx = stream(model, model->dwork, n);
        dw = model_grad(model, PARAM_DENSE, model->params.head, vocab, width);
        balance(model, n, scale->unit);
    }
    model->result.loss_sum = model->ops->cross_entropy(
        model->device, dx, dw, stream(model, model->final_norm, n),
        model_weight(model, PARAM_DENSE, model->params.head, vocab, width), batch->labels,
        scale != NULL ? (float)scale->loss : 0.0F);
    if (scale != NULL) {
        backward(model, &call, scale);
    }
}

void model_logits(struct model *model, const struct batch *batch, int64_t count, int64_t sequence,
                  int64_t token, float *logits)
{
    const int64_t vocab = model->config->model.vocab_size, width = model->config->model.hidden_size;
    struct block_call call = {.batch = batch, .count = count, .sequence = sequence};
    forward(model, &call, 0);
    struct tensor normed = stream(model, model->final_norm, count * sequence);
    model->ops->linear_forward(
        model->device, tensor_2d(logits, DTYPE_F32, 1, vocab), tensor_rows(&normed, token, 1),
        model_weight(model, PARAM_DENSE, model->params.head, vocab, width), false);
}

size_t model_bytes(const struct model *model)
{
    return model->arena_params.capacity + model->arena_grads.capacity +
           model->arena_optimizer.capacity + model->arena_activations.capacity;
}

double model_flops_per_token(const struct config *config)
{
    const double width = (double)config->model.hidden_size,
                 head_dim = (double)config_head_dim(config);
    const double heads = (double)config->model.num_attention_heads,
                 kv = (double)config->model.num_key_value_heads;
    const double projections = (2 * heads + 2 * kv) * head_dim * width;
    const double experts = (double)config->model.num_experts_per_tok * 3 *
                               (double)config->model.intermediate_size * width +
                           (double)config->model.num_local_experts * width;
    const double attention =
        heads * head_dim * (double)config->train.sequence_length; /* causal: half of 2T */
    const double layers = (double)config->model.num_hidden_layers;
    return 6 * (layers * (projections + experts + attention) +
                (double)config->model.vocab_size * width);
}
