#include "trainer/block.h"

#include <math.h>

struct block_dims {
    int64_t n, width, heads, kv, head_dim, query, row; /* query = H*D; row = (H + 2G)*D */
};

static struct block_dims dims(const struct model *model, int64_t tokens)
{
    const struct config *config = model->config;
    struct block_dims d = {.n = tokens,
                           .width = config->model.hidden_size,
                           .heads = config->model.num_attention_heads,
                           .kv = config->model.num_key_value_heads,
                           .head_dim = config_head_dim(config)};
    d.query = d.heads * d.head_dim;
    d.row = d.query + 2 * d.kv * d.head_dim;
    return d;
}

struct tensor model_weight(const struct model *model, enum param_group group, int64_t offset,
                           int64_t rows, int64_t cols)
{
    char *data = (char *)model->group[group].weights + (size_t)offset * dtype_bytes(model->act);
    return tensor_2d(data, model->act, rows, cols);
}

struct tensor model_grad(const struct model *model, enum param_group group, int64_t offset,
                         int64_t rows, int64_t cols)
{
    return tensor_2d(model->group[group].grads + offset, DTYPE_F32, rows, cols);
}

static struct tensor vector(struct tensor matrix)
{
    return tensor_1d(matrix.data, matrix.dtype, tensor_count(&matrix));
}

static struct tensor act(const struct model *model, void *data, int64_t rows, int64_t cols)
{
    return tensor_2d(data, model->act, rows, cols);
}

static void state_layout(struct model *model, struct block_state *state,
                         const struct moe_state *gate_up, struct arena *arena)
{
    const struct block_dims d = dims(model, model->batch * model->sequence);
    const size_t element = dtype_bytes(model->act), n = (size_t)d.n;
    state->norm1 = arena_alloc(arena, n * (size_t)d.width * element);
    state->qkv = arena_alloc(arena, n * (size_t)d.row * element);
    state->attended = arena_alloc(arena, n * (size_t)d.query * element);
    state->middle = arena_alloc(arena, n * (size_t)d.width * element);
    state->norm2 = arena_alloc(arena, n * (size_t)d.width * element);
    state->rstd1 = arena_alloc(arena, n * sizeof(float));
    state->rstd2 = arena_alloc(arena, n * sizeof(float));
    state->lse = arena_alloc(arena, n * (size_t)d.heads * sizeof(float));
    moe_state_layout(&state->moe, &model->moe, NULL, gate_up, arena);
}

/* Without training, and with recompute: block, all blocks share one state but for the router's part
 * and the stream entering them. */
void block_layout(struct model *model, struct arena *arena)
{
    const int64_t n = model->batch * model->sequence,
                  layers = model->config->model.num_hidden_layers;
    const size_t stream = (size_t)(n * model->config->model.hidden_size) * dtype_bytes(model->act);
    const bool share = !model->training || model->config->train.recompute == CONFIG_RECOMPUTE_BLOCK;
    const struct moe_state *gate_up = NULL;
    for (int64_t l = 0; l < layers; l++) {
        struct block_state *state = &model->blocks[l];
        if (share && l > 0) {
            struct expert_plan own = state->moe.plan;
            *state = model->blocks[0];
            state->moe.plan = own;
            moe_state_layout(&state->moe, &model->moe, &model->blocks[0].moe, NULL, arena);
        } else {
            state_layout(model, state, gate_up, arena);
        }
        if (model->config->train.recompute == CONFIG_RECOMPUTE_EXPERTS) {
            gate_up = &model->blocks[0].moe;
        }
        if (model->training || l == 0) {
            state->input = arena_alloc(arena, stream);
        }
    }
}

static struct attention_shape attention_shape(const struct model *model,
                                              const struct block_call *call)
{
    const struct block_dims d = dims(model, call->count * call->sequence);
    return (struct attention_shape){.batch = call->count,
                                    .sequence = call->sequence,
                                    .heads = d.heads,
                                    .kv_heads = d.kv,
                                    .qk_dim = d.head_dim,
                                    .v_dim = d.head_dim,
                                    .q_stride = d.row,
                                    .k_stride = d.row,
                                    .v_stride = d.row,
                                    .o_stride = d.query,
                                    .k_head_stride = d.head_dim,
                                    .v_head_stride = d.head_dim,
                                    .window = model->config->model.sliding_window,
                                    .scale = (float)(1.0 / sqrt((double)d.head_dim)),
                                    .first = model->config->data.mask_documents ? call->batch->first
                                                                                : NULL,
                                    .dtype = model->act};
}

/* The q, k, v parts of a fused row. */
static void *column(const struct model *model, void *data, int64_t col)
{
    return (char *)data + (size_t)col * dtype_bytes(model->act);
}

static struct moe_weights moe_weights(const struct model *model, int64_t layer)
{
    const struct layer_offsets *at = &model->params.layer[layer];
    const struct config *config = model->config;
    return (struct moe_weights){
        .gate = model_weight(model, PARAM_DENSE, at->gate, config->model.num_local_experts,
                             config->model.hidden_size),
        .experts = model_weight(model, PARAM_EXPERT, at->experts, 1, 1).data};
}

static struct moe_weights moe_grads(const struct model *model, int64_t layer)
{
    const struct layer_offsets *at = &model->params.layer[layer];
    const struct config *config = model->config;
    return (struct moe_weights){.gate = model_grad(model, PARAM_DENSE, at->gate,
                                                   config->model.num_local_experts,
                                                   config->model.hidden_size),
                                .experts = model_grad(model, PARAM_EXPERT, at->experts, 1, 1).data};
}

static void attention(struct model *model, int64_t layer, const struct block_call *call)
{
    struct block_state *state = &model->blocks[layer];
    const struct layer_offsets *at = &model->params.layer[layer];
    const struct block_dims d = dims(model, call->count * call->sequence);
    const struct ops *ops = model->ops;
    const struct attention_shape shape = attention_shape(model, call);
    struct tensor qkv = act(model, state->qkv, d.n, d.row);
    ops->linear_forward(model->device, qkv, act(model, state->norm1, d.n, d.width),
                        model_weight(model, PARAM_DENSE, at->qkv, d.row, d.width), false);
    ops->rope(model->device, qkv, call->batch->positions, model->rope, d.heads + d.kv, d.head_dim,
              false);
    ops->attention_forward(model->device, state->attended, state->lse, state->qkv,
                           column(model, state->qkv, d.query), NULL,
                           column(model, state->qkv, d.query + d.kv * d.head_dim), &shape);
}

void block_forward(struct model *model, int64_t layer, const struct block_call *call,
                   struct tensor x, struct tensor delta)
{
    struct block_state *state = &model->blocks[layer];
    const struct layer_offsets *at = &model->params.layer[layer];
    const struct block_dims d = dims(model, call->count * call->sequence);
    const struct ops *ops = model->ops;
    const float eps = (float)model->config->model.rms_norm_eps,
                jitter = (float)model->config->model.router_jitter_noise;
    struct tensor norm1_w = vector(model_weight(model, PARAM_DENSE, at->input_norm, 1, d.width));
    struct tensor norm2_w = vector(model_weight(model, PARAM_DENSE, at->post_norm, 1, d.width));
    struct tensor input = act(model, state->input, d.n, d.width),
                  middle = act(model, state->middle, d.n, d.width);
    struct tensor norm1 = act(model, state->norm1, d.n, d.width),
                  norm2 = act(model, state->norm2, d.n, d.width);
    struct tensor projected = act(model, model->delta, d.n, d.width);

    ops->norm_forward(model->device, norm1, input, state->rstd1, x, delta, norm1_w, eps);
    attention(model, layer, call);
    ops->linear_forward(model->device, projected, act(model, state->attended, d.n, d.query),
                        model_weight(model, PARAM_DENSE, at->o_proj, d.width, d.query), false);
    ops->norm_forward(model->device, norm2, middle, state->rstd2, input, projected, norm2_w, eps);
    if (call->training && jitter > 0) {
        ops->jitter(model->device, norm2, call->jitter_key, 0, jitter);
    }
    const struct moe_weights weights = moe_weights(model, layer);
    moe_forward(&model->moe, &state->moe, &weights, projected, norm2, call->training);
}

static void attention_backward(struct model *model, int64_t layer, const struct block_call *call)
{
    struct block_state *state = &model->blocks[layer];
    const struct layer_offsets *at = &model->params.layer[layer];
    const struct block_dims d = dims(model, call->count * call->sequence);
    const struct ops *ops = model->ops;
    const struct attention_shape shape = attention_shape(model, call);
    const int64_t k = d.query, v = d.query + d.kv * d.head_dim;
    struct tensor dstream = act(model, model->dstream, d.n, d.width);
    struct tensor attended = act(model, state->attended, d.n, d.query);
    struct tensor dattended = act(model, model->dattended, d.n, d.query);
    struct tensor dqkv = act(model, model->dqkv, d.n, d.row),
                  norm1 = act(model, state->norm1, d.n, d.width);

    ops->linear_backward_weight(model->device,
                                model_grad(model, PARAM_DENSE, at->o_proj, d.width, d.query),
                                dstream, attended);
    ops->linear_backward_input(model->device, dattended, dstream,
                               model_weight(model, PARAM_DENSE, at->o_proj, d.width, d.query),
                               false);
    ops->attention_backward(model->device, model->dqkv, column(model, model->dqkv, k), NULL,
                            column(model, model->dqkv, v), model->dattended, state->attended,
                            state->lse, state->qkv, column(model, state->qkv, k), NULL,
                            column(model, state->qkv, v), &shape);
    ops->rope(model->device, dqkv, call->batch->positions, model->rope, d.heads + d.kv, d.head_dim,
              true);
    ops->linear_backward_weight(
        model->device, model_grad(model, PARAM_DENSE, at->qkv, d.row, d.width), dqkv, norm1);
    ops->linear_backward_input(model->device, act(model, model->dnorm, d.n, d.width), dqkv,
                               model_weight(model, PARAM_DENSE, at->qkv, d.row, d.width), false);
}

void block_backward(struct model *model, int64_t layer, const struct block_call *call,
                    float z_scale)
{
    struct block_state *state = &model->blocks[layer];
    const struct layer_offsets *at = &model->params.layer[layer];
    const struct block_dims d = dims(model, call->count * call->sequence);
    const struct ops *ops = model->ops;
    const float jitter = (float)model->config->model.router_jitter_noise;
    struct tensor dstream = act(model, model->dstream, d.n, d.width),
                  dnorm = act(model, model->dnorm, d.n, d.width);
    const struct moe_weights weights = moe_weights(model, layer), grads = moe_grads(model, layer);

    if (model->config->train.recompute == CONFIG_RECOMPUTE_BLOCK) {
        block_forward(model, layer, call, act(model, state->input, d.n, d.width),
                      (struct tensor){0});
    }
    moe_backward(&model->moe, &state->moe, &weights, &grads, dnorm, dstream,
                 act(model, state->norm2, d.n, d.width), model->aux_dprob, z_scale);
    if (jitter > 0) {
        ops->jitter(model->device, dnorm, call->jitter_key, 0, jitter);
    }
    ops->norm_backward(model->device, dstream,
                       vector(model_grad(model, PARAM_DENSE, at->post_norm, 1, d.width)), dnorm,
                       act(model, state->middle, d.n, d.width), state->rstd2,
                       vector(model_weight(model, PARAM_DENSE, at->post_norm, 1, d.width)));
    attention_backward(model, layer, call);
    ops->norm_backward(model->device, dstream,
                       vector(model_grad(model, PARAM_DENSE, at->input_norm, 1, d.width)), dnorm,
                       act(model, state->input, d.n, d.width), state->rstd1,
                       vector(model_weight(model, PARAM_DENSE, at->input_norm, 1, d.width)));
}
