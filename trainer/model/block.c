#include "trainer/model/block.h"

#include <string.h>

#include "trainer/model/balance.h"

struct tensor model_act(const struct model *model, void *data, int64_t rows, int64_t cols)
{
    return tensor_2d(data, model->act, rows, cols);
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

struct tensor model_vector(const struct model *model, int64_t offset, int64_t width)
{
    return tensor_1d(model_weight(model, PARAM_DENSE, offset, 1, width).data, model->act, width);
}

struct tensor model_vector_grad(const struct model *model, int64_t offset, int64_t width)
{
    return tensor_1d(model->group[PARAM_DENSE].grads + offset, DTYPE_F32, width);
}

static bool has_experts(const struct model *model, int64_t block)
{
    return block >= model->arch.dense_layers;
}

/* Inner width of the MLP that every token visits: 0: there is none. */
static int64_t mlp_width(const struct model *model, int64_t block)
{
    return has_experts(model, block) ? model->arch.shared_width : model->arch.dense_width;
}

/* What every kind of block has, own or lent. */
static void common_layout(const struct model *model, struct block_state *state,
                          const struct block_state *lender, const struct layout *layout)
{
    const size_t n = (size_t)(model->batch * model->sequence);
    const size_t stream = n * (size_t)model->arch.width * dtype_bytes(model->act);
    state->input = layout_buffer(layout, MEMORY_INPUT, lender->input, stream);
    state->norm1 = layout_buffer(layout, MEMORY_NORM, lender->norm1, stream);
    state->middle = layout_buffer(layout, MEMORY_REST, lender->middle, stream);
    state->norm2 = layout_buffer(layout, MEMORY_NORM, lender->norm2, stream);
    state->rstd1 = layout_buffer(layout, MEMORY_REST, lender->rstd1, n * sizeof(float));
    state->rstd2 = layout_buffer(layout, MEMORY_REST, lender->rstd2, n * sizeof(float));
    attention_layout(model, &state->attention, &lender->attention, layout);
}

void block_layout(struct model *model, struct arena *arena)
{
    struct block_state *shared = &model->shared;
    struct layout layout;
    layout_init(&layout, arena, model->training, model->config->train.recompute);
    layout.lending = true;
    common_layout(model, shared, shared, &layout);
    mlp_layout(model, &shared->mlp, &shared->mlp, mlp_widest(&model->arch), &layout);
    moe_state_layout(&shared->moe, &model->moe, &shared->moe, &layout);
    layout.lending = false;
    for (int64_t b = 0; b < architecture_blocks(&model->arch); b++) {
        struct block_state *state = &model->blocks[b];
        common_layout(model, state, shared, &layout);
        mlp_layout(model, &state->mlp, &shared->mlp, mlp_width(model, b), &layout);
        if (has_experts(model, b)) {
            moe_state_layout(&state->moe, &model->moe, &shared->moe, &layout);
        }
    }
}

static struct moe_weights moe_weights(const struct model *model, int64_t block)
{
    const struct block_offsets *at = &model->params.block[block];
    const struct architecture *arch = &model->arch;
    return (struct moe_weights){
        .gate = model_weight(model, PARAM_DENSE, at->gate, arch->experts, arch->width),
        .bias = arch->has_bias ? model->router_bias + (block - arch->dense_layers) * arch->experts
                               : NULL,
        .experts = model_weight(model, PARAM_EXPERT, at->experts, 1, 1).data};
}

static struct moe_weights moe_grads(const struct model *model, int64_t block)
{
    const struct block_offsets *at = &model->params.block[block];
    return (struct moe_weights){
        .gate = model_grad(model, PARAM_DENSE, at->gate, model->arch.experts, model->arch.width),
        .experts = model_grad(model, PARAM_EXPERT, at->experts, 1, 1).data};
}

static struct tensor stream_of(const struct model *model, void *data, const struct block_call *call)
{
    return model_act(model, data, call->count * call->sequence, model->arch.width);
}

/* The second norm, with the residual sum before it where delta has data. */
static void second_norm(struct model *model, int64_t block, const struct block_call *call,
                        struct tensor x, struct tensor delta)
{
    struct block_state *state = &model->blocks[block];
    const struct tensor norm2 = stream_of(model, state->norm2, call);
    model->ops->norm_forward(
        model->device, norm2, stream_of(model, state->middle, call), state->rstd2, x, delta,
        model_vector(model, model->params.block[block].post_norm, model->arch.width),
        model->arch.norm_eps);
    if (call->training && model->arch.jitter > 0) {
        model->ops->jitter(model->device, norm2, call->jitter_key + (uint64_t)block, 0,
                           model->arch.jitter);
    }
}

static void first_norm(struct model *model, int64_t block, const struct block_call *call,
                       struct tensor x, struct tensor delta)
{
    struct block_state *state = &model->blocks[block];
    model->ops->norm_forward(
        model->device, stream_of(model, state->norm1, call), stream_of(model, state->input, call),
        state->rstd1, x, delta,
        model_vector(model, model->params.block[block].input_norm, model->arch.width),
        model->arch.norm_eps);
}

/* y = feed-forward of the second norm. */
static void feed_forward(struct model *model, int64_t block, const struct block_call *call,
                         struct tensor y)
{
    struct block_state *state = &model->blocks[block];
    const struct tensor x = stream_of(model, state->norm2, call);
    const int64_t inner = mlp_width(model, block);
    const bool routed = has_experts(model, block);
    const struct moe_weights weights = routed ? moe_weights(model, block) : (struct moe_weights){0};
    if (routed) {
        moe_forward_start(&model->moe, &state->moe, &weights, x, call->sequence, call->training);
    }
    if (inner > 0) { /* beside tokens on their way to their experts */
        mlp_forward_up(model, block, inner, x);
    }
    if (routed) {
        moe_forward_finish(&model->moe, &state->moe, &weights, y, x);
    }
    if (inner > 0) {
        mlp_forward_down(model, block, inner, y, routed);
    }
}

/* Up to the second norm. */
static void attend(struct model *model, int64_t block, const struct block_call *call,
                   struct tensor x, struct tensor delta)
{
    struct block_state *state = &model->blocks[block];
    const int64_t out = model->arch.heads * model->arch.v_dim;
    const struct tensor projected = stream_of(model, model->delta, call);
    first_norm(model, block, call, x, delta);
    attention_forward(model, block, call, stream_of(model, state->norm1, call));
    model->ops->linear_forward(
        model->device, projected, model_act(model, state->attention.attended, x.dim[0], out),
        model_weight(model, PARAM_DENSE, model->params.block[block].o_proj, model->arch.width, out),
        false);
    second_norm(model, block, call, stream_of(model, state->input, call), projected);
}

/* --- what a device may record (graph_begin, kernels/ops.h) --- */

/* Whether the ops of a block are the same at every step. The router's jitter differs from step to
 * step, the z-loss with the size of the global batch. */
static bool is_constant(const struct model *model, const struct block_call *call)
{
    return call->training && model->arch.jitter == 0 && model->arch.balance.z == 0;
}

/* Whether the host must know how many tokens went where. */
static bool waits(const struct model *model, int64_t block)
{
    return has_experts(model, block) && moe_waits(&model->moe, &model->blocks[block].moe, true);
}

enum part { PART_FORWARD, PART_BACKWARD, PARTS };

/* Runs part(model, ...) or has it repeated. */
struct recorded {
    struct model *model;
    int64_t block;
    const struct block_call *call;
    struct tensor x, delta;
    float z_scale;
};

static void record(const struct recorded *args, enum part part,
                   void (*run)(const struct recorded *args))
{
    const struct block_call *call = args->call;
    const struct ops *ops = args->model->ops;
    const uint64_t shape = (uint64_t)(call->count << 24 ^ call->sequence),
                   what = (shape << 16 ^ (uint64_t)args->block) * PARTS + part,
                   key =
                       what << 1 | args->model->config->router.force_balanced; /* bench's switch */
    if (!is_constant(args->model, call)) {
        run(args);
    } else if (ops->graph_begin(args->model->device, key)) {
        run(args);
        ops->graph_end(args->model->device);
    }
}

static void forward_part(const struct recorded *a)
{
    attend(a->model, a->block, a->call, a->x, a->delta);
    if (!waits(a->model, a->block)) {
        feed_forward(a->model, a->block, a->call, stream_of(a->model, a->model->delta, a->call));
    }
}

void block_forward(struct model *model, int64_t block, const struct block_call *call,
                   struct tensor x, struct tensor delta)
{
    const struct recorded args = {
        .model = model, .block = block, .call = call, .x = x, .delta = delta};
    if (has_experts(model, block)) {
        moe_expect(&model->moe, &model->blocks[block].moe, call->count * call->sequence,
                   call->sequence);
    }
    record(&args, PART_FORWARD, forward_part);
    if (waits(model, block)) {
        feed_forward(model, block, call, stream_of(model, model->delta, call));
    }
}

/* What this mode of training.recompute did not keep. Experts are made again where they are used. */
static void recompute(struct model *model, int64_t block, const struct block_call *call)
{
    struct block_state *state = &model->blocks[block];
    const struct tensor none = {0}, input = stream_of(model, state->input, call);
    if (model->config->train.recompute == CONFIG_RECOMPUTE_BLOCK) {
        attend(model, block, call, input, none);
        feed_forward(model, block, call, stream_of(model, model->delta, call));
    } else if (model->config->train.recompute == CONFIG_RECOMPUTE_NORMS) {
        first_norm(model, block, call, input, none);
        attention_recompute(model, block, call);
        second_norm(model, block, call, stream_of(model, state->middle, call), none);
    }
}

static void feed_forward_backward(struct model *model, int64_t block, const struct block_call *call,
                                  struct tensor dx, struct tensor dy, float z_scale)
{
    struct block_state *state = &model->blocks[block];
    const struct tensor x = stream_of(model, state->norm2, call);
    const int64_t inner = mlp_width(model, block);
    const bool routed = has_experts(model, block);
    if (routed) {
        moe_backward_start(&model->moe, &state->moe, dy);
    }
    if (inner > 0) { /* beside gradients on their way to the experts */
        mlp_backward_down(model, block, inner, dy, x);
    }
    if (routed) {
        const struct moe_weights weights = moe_weights(model, block),
                                 grads = moe_grads(model, block);
        moe_backward_finish(&model->moe, &state->moe, &weights, &grads, dx, x,
                            balance_gradient(model, block), z_scale);
    }
    if (inner > 0) {
        mlp_backward_up(model, block, inner, dx, routed);
    }
    if (model->arch.jitter > 0) {
        model->ops->jitter(model->device, dx, call->jitter_key + (uint64_t)block, 0,
                           model->arch.jitter);
    }
}

/* dx of the attention half from the gradient of the stream. */
static void project_backward(struct model *model, int64_t block, const struct block_call *call,
                             struct tensor dx, struct tensor dy)
{
    struct block_state *state = &model->blocks[block];
    const int64_t out = model->arch.heads * model->arch.v_dim, width = model->arch.width,
                  at = model->params.block[block].o_proj;
    model->ops->linear_backward_weight(model->device,
                                       model_grad(model, PARAM_DENSE, at, width, out), dy,
                                       model_act(model, state->attention.attended, dy.dim[0], out));
    model->ops->linear_backward_input(model->device,
                                      model_act(model, model->attention.dattended, dy.dim[0], out),
                                      dy, model_weight(model, PARAM_DENSE, at, width, out), false);
    attention_backward(model, block, call, dx, stream_of(model, state->norm1, call));
}

static void norm_backward(struct model *model, struct tensor dstream, struct tensor dnorm,
                          struct tensor x, const float *rstd, int64_t weight)
{
    const int64_t width = model->arch.width;
    model->ops->norm_backward(model->device, dstream, model_vector_grad(model, weight, width),
                              dnorm, x, rstd, model_vector(model, weight, width));
}

/* Gradients of the stream behind the block become those before its second norm. */
static void backward_experts(const struct recorded *a)
{
    struct model *model = a->model;
    const struct tensor dstream = stream_of(model, model->dstream, a->call),
                        dnorm = stream_of(model, model->dnorm, a->call);
    recompute(model, a->block, a->call);
    feed_forward_backward(model, a->block, a->call, dnorm, dstream, a->z_scale);
}

static void backward_attention(const struct recorded *a)
{
    struct model *model = a->model;
    const struct block_state *state = &model->blocks[a->block];
    const struct block_offsets *at = &model->params.block[a->block];
    const struct tensor dstream = stream_of(model, model->dstream, a->call),
                        dnorm = stream_of(model, model->dnorm, a->call);
    norm_backward(model, dstream, dnorm, stream_of(model, state->middle, a->call), state->rstd2,
                  at->post_norm);
    project_backward(model, a->block, a->call, dnorm, dstream);
    norm_backward(model, dstream, dnorm, stream_of(model, state->input, a->call), state->rstd1,
                  at->input_norm);
}

static void backward_part(const struct recorded *a)
{
    if (!waits(a->model, a->block)) {
        backward_experts(a);
    }
    backward_attention(a);
}

void block_backward(struct model *model, int64_t block, const struct block_call *call,
                    float z_scale)
{
    const struct recorded args = {.model = model, .block = block, .call = call, .z_scale = z_scale};
    if (waits(model, block)) {
        backward_experts(&args);
    }
    record(&args, PART_BACKWARD, backward_part);
}
