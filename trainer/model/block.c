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
    const struct model_group *own = &model->group[group];
    void *data = own->gathered.on ? gathered_place(own, offset, model->act)
                                  : (char *)own->weights + (size_t)offset * dtype_bytes(model->act);
    return tensor_2d(data, model->act, rows, cols);
}

struct tensor model_grad(const struct model *model, enum param_group group, int64_t offset,
                         int64_t rows, int64_t cols)
{
    float *place = gradients_place(&model->gradients, shards_grad(&model->group[group], offset));
    return tensor_2d(place, DTYPE_F32, rows, cols);
}

struct tensor model_vector(const struct model *model, int64_t offset, int64_t width)
{
    return tensor_1d(model_weight(model, PARAM_DENSE, offset, 1, width).data, model->act, width);
}

struct tensor model_vector_grad(const struct model *model, int64_t offset, int64_t width)
{
    return tensor_1d(model_grad(model, PARAM_DENSE, offset, 1, width).data, DTYPE_F32, width);
}

void model_add_grad(const struct model *model, enum param_group group, int64_t offset,
                    int64_t count)
{
    if (model->gradients.fixed) {
        gradients_add(&model->gradients, shards_sum(&model->group[group], offset), count);
    }
}

int64_t block_sequence(const struct model *model, const struct block_call *call)
{
    return tp_tokens(&model->tp, call->sequence);
}

int64_t block_tokens(const struct model *model, const struct block_call *call)
{
    return call->count * block_sequence(model, call);
}

void block_sum(const struct model *model, void *data, int64_t count, enum dtype dtype)
{
    if (!tp_alone(&model->tp)) {
        comm_device_all_reduce(model->tp.comm, data, count, dtype, REDUCE_SUM);
    }
    if (!cp_alone(&model->cp)) {
        comm_device_all_reduce(model->cp.comm, data, count, dtype, REDUCE_SUM);
    }
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

/* What every kind of block has, own or lent. norm2: whether a router or bf16 reads the second norm;
 * codes: whether an MLP in FP8 does. */
static void common_layout(const struct model *model, struct block_state *state,
                          const struct block_state *lender, const struct layout *layout, bool norm2,
                          bool codes)
{
    const int64_t n = model->batch * model->tp.share, width = model->arch.width;
    const size_t stream = (size_t)(n * width) * dtype_bytes(model->act),
                 rstd = (size_t)n * sizeof(float);
    state->input = layout_buffer(layout, MEMORY_INPUT, lender->input, stream);
    if (layout->act) {
        state->norm1 = layout_buffer(layout, MEMORY_NORM, lender->norm1, stream);
    }
    if (layout->fp8) {
        state->norm1_codes = layout_codes(layout, MEMORY_NORM, lender->norm1_codes, n, width);
    }
    state->middle = layout_buffer(layout, MEMORY_REST, lender->middle, stream);
    if (norm2) {
        state->norm2 = layout_buffer(layout, MEMORY_NORM, lender->norm2, stream);
    }
    if (codes) {
        state->norm2_codes = layout_codes(layout, MEMORY_NORM, lender->norm2_codes, n, width);
    }
    state->rstd1 = layout_buffer(layout, MEMORY_REST, lender->rstd1, rstd);
    state->rstd2 = layout_buffer(layout, MEMORY_REST, lender->rstd2, rstd);
    attention_layout(model, &state->attention, &lender->attention, layout);
}

/* Whether the second norm is written in act: a router reads it, or a block without FP8. */
static bool norm2_in_act(const struct model *model, int64_t block)
{
    return has_experts(model, block) || model->arch.jitter > 0 ||
           !linears_in_fp8(&model->linears, block);
}

static bool norm2_in_codes(const struct model *model, int64_t block)
{
    return mlp_width(model, block) > 0 && linears_in_fp8(&model->linears, block);
}

void block_lent_layout(struct model *model, struct arena *arena)
{
    struct block_state *shared = &model->shared;
    const struct linears *linears = &model->linears;
    const int64_t n = model->batch * model->sequence, widest = mlp_widest(&model->arch);
    struct layout layout;
    layout_init(&layout, arena, model->training, model->config->train.recompute);
    layout.lending = true;
    layout.fp8 = linears->first < linears->end;
    layout.act = linears->end - linears->first < linears->blocks;
    common_layout(model, shared, shared, &layout, true, layout.fp8 && widest > 0);
    mlp_layout(&shared->mlp, &shared->mlp, n, widest, model->act, &layout);
    moe_state_layout(&shared->moe, &model->moe, &shared->moe, &layout);
}

void block_layout(struct model *model, struct arena *arena)
{
    struct block_state *shared = &model->shared;
    const struct linears *linears = &model->linears;
    const int64_t n = model->batch * model->sequence, blocks = architecture_blocks(&model->arch);
    struct layout layout;
    layout_init(&layout, arena, model->training, model->config->train.recompute);
    for (int64_t i = 0; i < model->slots * blocks; i++) {
        const int64_t b = i % blocks;
        const struct stage *part = &model->slice.part[model->slot[i / blocks].part];
        struct block_state *state = &model->states[i];
        lane_use(model, lane_of(model, i / blocks));
        if (b < part->first || b >= part->first + part->blocks) {
            continue;
        }
        layout.fp8 = linears_in_fp8(linears, b);
        layout.act = !layout.fp8;
        common_layout(model, state, shared, &layout, norm2_in_act(model, b),
                      norm2_in_codes(model, b));
        mlp_layout(&state->mlp, &shared->mlp, n, mlp_width(model, b), model->act, &layout);
        if (has_experts(model, b)) {
            moe_state_layout(&state->moe, &model->moe, &shared->moe, &layout);
        }
    }
    lane_use(model, 0);
}

static struct moe_weights moe_weights(const struct model *model, int64_t block)
{
    const struct block_offsets *at = &model->params.block[block];
    const struct architecture *arch = &model->arch;
    const int64_t experts = arch->experts, width = arch->width;
    return (struct moe_weights){
        .gate = model_weight(model, PARAM_DENSE, at->gate, experts, width),
        .dgate = model->training ? model_grad(model, PARAM_DENSE, at->gate, experts, width)
                                 : (struct tensor){0},
        .bias = arch->has_bias ? model->router_bias + (block - arch->dense_layers) * experts : NULL,
        .up = linears_at(&model->linears, block, LINEAR_EXPERTS_UP),
        .down = linears_at(&model->linears, block, LINEAR_EXPERTS_DOWN)};
}

static struct mlp mlp_of(const struct model *model, int64_t block)
{
    return (struct mlp){.linears = &model->linears,
                        .scratch = &model->mlp,
                        .state = &model->blocks[block].mlp,
                        .up = linears_at(&model->linears, block, LINEAR_UP),
                        .down = linears_at(&model->linears, block, LINEAR_DOWN)};
}

static struct tensor stream_of(const struct model *model, void *data, const struct block_call *call)
{
    return model_act(model, data, block_tokens(model, call), model->arch.width);
}

/* The norms of this call, as those that follow read them. */
static struct operand norm1_of(const struct model *model, int64_t block,
                               const struct block_call *call)
{
    const struct block_state *state = &model->blocks[block];
    if (linears_in_fp8(&model->linears, block)) {
        return (struct operand){
            .q = fp8_view(state->norm1_codes, block_tokens(model, call), model->arch.width)};
    }
    return (struct operand){.act = stream_of(model, state->norm1, call)};
}

static struct operand norm2_of(const struct model *model, int64_t block,
                               const struct block_call *call)
{
    const struct block_state *state = &model->blocks[block];
    struct operand x = {.act = stream_of(model, state->norm2, call)};
    if (norm2_in_codes(model, block)) {
        x.q = fp8_view(state->norm2_codes, x.act.dim[0], x.act.dim[1]);
    }
    return x;
}

/* Router jitter of x, keyed by its place in the whole micro-batch: of each sequence the pieces that
 * this rank of cp has, and of these what this rank of tp has. */
static void jitter_rows(struct model *model, int64_t block, const struct block_call *call,
                        struct tensor x)
{
    const int64_t own = block_sequence(model, call), begin = tp_first(&model->tp);
    const struct cp_pieces pieces = cp_pieces(&model->cp, call->length);
    for (int64_t s = 0; s < call->count; s++) {
        for (int p = 0; p < CP_PIECES; p++) {
            const struct cp_piece *piece = &pieces.piece[p];
            const int64_t end = piece->at + piece->count,
                          from = piece->at > begin ? piece->at : begin,
                          to = end < begin + own ? end : begin + own,
                          first = s * call->length + piece->first + from - piece->at;
            if (from < to) {
                model->ops->jitter(model->device,
                                   tensor_rows(&x, s * own + from - begin, to - from),
                                   call->jitter_key + (uint64_t)block,
                                   (uint64_t)(first * model->arch.width), model->arch.jitter);
            }
        }
    }
}

/* Router jitter on the second norm, and the codes of what comes out. */
static void jitter(struct model *model, int64_t block, const struct block_call *call,
                   const struct operand *x)
{
    const struct fp8_how how = linears_how(&model->linears, LINEAR_ACTIVATIONS);
    const struct fp8_rows none = {0};
    jitter_rows(model, block, call, x->act);
    if (x->q.code != NULL) {
        model->ops->fp8->quantize(model->device, x->q, none, x->act, NULL, x->q.rows, NULL, 1,
                                  &how);
    }
}

/* The second norm, with the residual sum before it where delta has data. */
static void second_norm(struct model *model, int64_t block, const struct block_call *call,
                        struct tensor x, struct tensor delta)
{
    struct block_state *state = &model->blocks[block];
    const struct operand y = norm2_of(model, block, call);
    const bool jitters = call->training && model->arch.jitter > 0;
    const struct operand first = {.act = y.act, .q = jitters ? (struct fp8_rows){0} : y.q};
    linear_norm(&model->linears, &first, stream_of(model, state->middle, call), state->rstd2, x,
                delta, model_vector(model, model->params.block[block].post_norm, model->arch.width),
                model->arch.norm_eps);
    if (jitters) {
        jitter(model, block, call, &y);
    }
}

static void first_norm(struct model *model, int64_t block, const struct block_call *call,
                       struct tensor x, struct tensor delta)
{
    struct block_state *state = &model->blocks[block];
    const struct operand y = norm1_of(model, block, call);
    linear_norm(&model->linears, &y, stream_of(model, state->input, call), state->rstd1, x, delta,
                model_vector(model, model->params.block[block].input_norm, model->arch.width),
                model->arch.norm_eps);
}

/* Gradients and weights of other blocks, and tokens, on their way may move on. */
static void progress(struct model *model)
{
    shards_progress(model);
    reduction_progress(model);
    gathered_progress(model);
    mesh_progress(model->mesh);
}

/* y = feed-forward of the second norm. */
static void feed_forward(struct model *model, int64_t block, const struct block_call *call,
                         struct tensor y)
{
    struct block_state *state = &model->blocks[block];
    const struct operand x = norm2_of(model, block, call);
    const bool routed = has_experts(model, block), visited = mlp_width(model, block) > 0;
    const struct moe_weights weights = routed ? moe_weights(model, block) : (struct moe_weights){0};
    const struct mlp mlp = mlp_of(model, block);
    const struct operand whole = visited ? block_gather(model, call, 0, &x) : x;
    if (routed) {
        moe_forward_start(&model->moe, &state->moe, &weights, x.act, block_sequence(model, call),
                          call->length, call->training);
    }
    if (visited) { /* beside tokens on their way to their experts */
        const int64_t began = comm_span_begin(model->mesh->world);
        mlp_forward_up(&mlp, &whole, call->training);
        comm_span_end(model->mesh->world, "dense mlp, up", began);
    }
    progress(model);
    if (routed) {
        fiber_yield();
        moe_forward_finish(&model->moe, &state->moe, &weights, y, x.act, call->training);
    }
    if (visited) {
        const int64_t began = comm_span_begin(model->mesh->world);
        const struct tensor part = block_part(model, call, y);
        mlp_forward_down(&mlp, part, routed && tp_alone(&model->tp));
        comm_span_end(model->mesh->world, "dense mlp, down", began);
        block_join(model, call, y, part, routed);
    }
}

/* Up to the second norm. */
static void attend(struct model *model, int64_t block, const struct block_call *call,
                   struct tensor x, struct tensor delta)
{
    struct block_state *state = &model->blocks[block];
    const struct tensor projected = stream_of(model, model->delta, call);
    const struct operand norm1 = norm1_of(model, block, call);
    const int64_t began = comm_span_begin(model->mesh->world);
    first_norm(model, block, call, x, delta);
    attention_forward(model, block, call, projected, &norm1);
    comm_span_end(model->mesh->world, "attention", began);
    progress(model);
    second_norm(model, block, call, stream_of(model, state->input, call), projected);
}

/* --- what a device may record (graph_begin, kernels/ops.h) --- */

/* Whether the ops of a block are the same at every step. Products that wait are noted by the host,
 * each time in another place. The router's jitter differs from step to
 * step, the z-loss with the size of the global batch; who is told of tensors downloads them; ranks
 * of tp and cp exchange rows, which not every wire can record. */
static bool is_constant(const struct model *model, const struct block_call *call)
{
    return call->training && model->arch.jitter == 0 && model->arch.balance.z == 0 &&
           model->probe == NULL && model->linears.drawer == NULL && tp_alone(&model->tp) &&
           cp_alone(&model->cp);
}

/* Whether the host must know how many tokens went where, or gradients and weights of other blocks,
 * or tokens of another pass, may be on their way, beside which no exchange is recorded
 * (comm_device_mark). */
static bool waits(const struct model *model, int64_t block)
{
    const bool beside = (model->group[PARAM_DENSE].shards.on && model->mesh->experts.size > 1) ||
                        model->lanes.count > 1;
    return has_experts(model, block) &&
           (beside || moe_waits(&model->moe, &model->blocks[block].moe, true));
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
                   state = (uint64_t)(args->model->blocks - args->model->states + args->block),
                   what = (shape << 16 ^ state) * PARTS + part,
                   key =
                       what << 1 | args->model->config->router.force_balanced; /* bench's switch */
    if (!is_constant(args->model, call)) {
        run(args);
    } else if (ops->graph_begin(args->model->device, key)) {
        run(args);
        ops->graph_end(args->model->device);
    }
}

/* Only of forward in training, not of what is made again for backward. */
static void tell(const struct recorded *a, enum probe_point point, struct tensor x)
{
    if (a->call->training) {
        probe_tell(a->model->probe, a->block, point, x);
    }
}

static void forward_part(const struct recorded *a)
{
    attend(a->model, a->block, a->call, a->x, a->delta);
    tell(a, PROBE_INPUT, stream_of(a->model, a->model->blocks[a->block].input, a->call));
    tell(a, PROBE_ATTENTION, stream_of(a->model, a->model->delta, a->call));
    if (!waits(a->model, a->block)) {
        feed_forward(a->model, a->block, a->call, stream_of(a->model, a->model->delta, a->call));
    }
}

static void tell_feed_forward(const struct recorded *a)
{
    const struct architecture *arch = &a->model->arch;
    const struct moe_state *moe = &a->model->blocks[a->block].moe;
    const int64_t n = a->call->count * a->call->sequence;
    if (has_experts(a->model, a->block)) {
        tell(a, PROBE_SCORE, tensor_2d(moe->score, DTYPE_F32, n, arch->experts));
        tell(a, PROBE_EXPERT, tensor_2d(moe->expert, DTYPE_I32, n, arch->top_k));
    }
    tell(a, PROBE_FEED_FORWARD, stream_of(a->model, a->model->delta, a->call));
}

void block_forward(struct model *model, int64_t block, const struct block_call *call,
                   struct tensor x, struct tensor delta)
{
    const struct recorded args = {
        .model = model, .block = block, .call = call, .x = x, .delta = delta};
    if (has_experts(model, block)) {
        moe_expect(&model->moe, &model->blocks[block].moe, block_tokens(model, call),
                   block_sequence(model, call));
    }
    record(&args, PART_FORWARD, forward_part);
    if (waits(model, block)) {
        feed_forward(model, block, call, stream_of(model, model->delta, call));
    }
    tell_feed_forward(&args);
}

/* What this mode of training.recompute did not keep. Experts are made again where they are used. */
static void recompute(struct model *model, int64_t block, const struct block_call *call)
{
    struct block_state *state = &model->blocks[block];
    const struct tensor none = {0}, input = stream_of(model, state->input, call);
    model->linears.again = true;
    if (model->config->train.recompute == CONFIG_RECOMPUTE_BLOCK) {
        attend(model, block, call, input, none);
        feed_forward(model, block, call, stream_of(model, model->delta, call));
    } else if (model->config->train.recompute == CONFIG_RECOMPUTE_NORMS) {
        first_norm(model, block, call, input, none);
        attention_recompute(model, block, call);
        second_norm(model, block, call, stream_of(model, state->middle, call), none);
    }
    model->linears.again = false;
}

static void feed_forward_backward(struct model *model, int64_t block, const struct block_call *call,
                                  struct tensor dx, struct tensor dy, float z_scale)
{
    struct block_state *state = &model->blocks[block];
    const struct operand x = norm2_of(model, block, call);
    const bool routed = has_experts(model, block), visited = mlp_width(model, block) > 0;
    const struct moe_weights weights = routed ? moe_weights(model, block) : (struct moe_weights){0};
    const struct mlp mlp = mlp_of(model, block);
    struct operand whole = x, dwhole = {.act = dy};
    if (visited) {
        whole = block_gather(model, call, 0, &x);
        dwhole = block_gather(model, call, 1, &dwhole);
    }
    if (routed) {
        moe_backward_start(&model->moe, &state->moe, &weights, dy);
    }
    if (visited) { /* beside gradients on their way to the experts */
        const int64_t began = comm_span_begin(model->mesh->world);
        if (model->config->train.recompute == CONFIG_RECOMPUTE_EXPERTS) {
            mlp_restore(&mlp, &whole);
        }
        block_ready(model, mlp.down, &dwhole);
        mlp_backward_down(&mlp, dwhole);
        progress(model);
        mlp_backward_up_weight(&mlp, &whole);
        comm_span_end(model->mesh->world, "dense mlp, backward", began);
    }
    if (routed) {
        fiber_yield();
        moe_backward_finish(&model->moe, &state->moe, &weights, dx, x.act,
                            balance_gradient(model, block), z_scale);
        model_add_grad(model, PARAM_DENSE, model->params.block[block].gate,
                       tensor_count(&weights.dgate));
    }
    if (visited) {
        const struct tensor part = block_part(model, call, dx);
        mlp_backward_up(&mlp, part, routed && tp_alone(&model->tp));
        block_join(model, call, dx, part, routed);
    }
    if (model->arch.jitter > 0) {
        jitter_rows(model, block, call, dx);
    }
}

static void norm_backward(struct model *model, struct tensor dstream, struct tensor dnorm,
                          struct tensor x, const float *rstd, int64_t weight)
{
    const int64_t width = model->arch.width;
    model->ops->norm_backward(model->device, dstream, model_vector_grad(model, weight, width),
                              dnorm, x, rstd, model_vector(model, weight, width));
    model_add_grad(model, PARAM_DENSE, weight, width);
}

/* Gradients of the stream behind the block become those before its second norm. */
static void backward_experts(const struct recorded *a)
{
    struct model *model = a->model;
    const struct tensor dstream = stream_of(model, model->dstream, a->call),
                        dnorm = stream_of(model, model->dnorm, a->call);
    recompute(model, a->block, a->call);
    progress(model);
    feed_forward_backward(model, a->block, a->call, dnorm, dstream, a->z_scale);
    progress(model);
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
    const struct operand norm1 = norm1_of(model, a->block, a->call);
    const int64_t began = comm_span_begin(model->mesh->world);
    attention_backward(model, a->block, a->call, dnorm, dstream, &norm1);
    comm_span_end(model->mesh->world, "attention, backward", began);
    progress(model);
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

/* Other blocks' gradients and weights travel beside: of a GPU's memory from behind the exchanges
 * with the experts on, which would have to wait for them. */
void block_backward(struct model *model, int64_t block, const struct block_call *call,
                    float z_scale, int64_t next)
{
    const struct recorded args = {.model = model, .block = block, .call = call, .z_scale = z_scale};
    const int64_t part = params_part_block(&model->arch, block);
    const bool host = device_stream(model->device) == NULL;
    if (host) {
        gathered_ahead(model, part, next);
    }
    shards_open(model, part);
    if (waits(model, block)) {
        backward_experts(&args);
    }
    if (!host) {
        shards_start(model);
        reduction_start(model);
        gathered_ahead(model, part, next);
    }
    record(&args, PART_BACKWARD, backward_part);
    probe_tell(model->probe, block, PROBE_STREAM_GRADIENT, stream_of(model, model->dstream, call));
}
