#include "trainer/model/attention.h"

#include "trainer/model/cache.h"
#include "trainer/model/context.h"
#include "trainer/model/latent.h"

/* Columns of a fused row of grouped queries: q, then k, then v. */
static int64_t key_column(const struct model *model)
{
    return architecture_query_width(&model->arch);
}

static int64_t value_column(const struct model *model)
{
    return key_column(model) + model->arch.kv_heads * model->arch.qk_dim;
}

static int64_t fused_width(const struct model *model)
{
    return key_column(model) + 2 * model->arch.kv_heads * model->arch.qk_dim;
}

static bool latent(const struct model *model)
{
    return model->arch.kv_rank > 0;
}

void attention_layout(const struct model *model, struct attention_state *state,
                      const struct attention_state *lender, const struct layout *layout)
{
    const struct architecture *arch = &model->arch;
    const size_t n = (size_t)(model->batch * model->sequence), row = n * dtype_bytes(model->act);
    const int64_t out = arch->heads * arch->v_dim;
    if (latent(model)) {
        latent_layout(model, state, lender, layout);
    } else {
        state->qkv =
            layout_buffer(layout, MEMORY_REST, lender->qkv, (size_t)fused_width(model) * row);
    }
    if (layout->fp8 && layout->training) {
        state->attended_codes = layout_buffer(layout, MEMORY_REST, lender->attended_codes,
                                              n * (size_t)fp8_e5m6_bytes(out));
    }
    if (layout->act) {
        state->attended = layout_buffer(layout, MEMORY_REST, lender->attended, (size_t)out * row);
    } else {
        state->attended = model->attention.attended;
    }
    state->lse =
        layout_buffer(layout, MEMORY_REST, lender->lse, n * (size_t)arch->heads * sizeof(float));
}

void attention_scratch_layout(const struct model *model, struct attention_scratch *scratch,
                              struct arena *arena)
{
    const struct architecture *arch = &model->arch;
    const size_t row = (size_t)(model->batch * model->sequence) * dtype_bytes(model->act);
    if (latent(model)) {
        latent_scratch_layout(model, scratch, arena);
    } else {
        scratch->dqkv = arena_alloc(arena, (size_t)fused_width(model) * row);
    }
    scratch->dattended = arena_alloc(arena, (size_t)(arch->heads * arch->v_dim) * row);
    if (model->linears.first < model->linears.end) {
        scratch->attended = arena_alloc(arena, (size_t)(arch->heads * arch->v_dim) * row);
        scratch->c = arena_alloc(arena, (size_t)arch->kv_rank * row);
    }
}

/* q, k, v, the rotary key: of the states or of their gradients. */
struct parts {
    void *q, *k, *v, *k_rope;
};

static void *column(const struct model *model, void *data, int64_t col)
{
    return (char *)data + (size_t)col * dtype_bytes(model->act);
}

static struct parts fused_parts(const struct model *model, void *qkv)
{
    return (struct parts){.q = qkv,
                          .k = column(model, qkv, key_column(model)),
                          .v = column(model, qkv, value_column(model))};
}

static struct parts latent_parts(const struct model *model, void *q, void *kv, void *k_rope)
{
    return (struct parts){
        .q = q, .k = kv, .v = column(model, kv, model->arch.nope_dim), .k_rope = k_rope};
}

static struct attention_shape shape_of(const struct model *model, const struct block_call *call)
{
    const struct architecture *arch = &model->arch;
    const bool shared = latent(model);
    const int64_t row = shared ? architecture_latent_width(arch) : fused_width(model);
    return (struct attention_shape){
        .batch = call->count,
        .sequence = call->sequence,
        .heads = arch->heads,
        .kv_heads = arch->kv_heads,
        .qk_dim = arch->qk_dim,
        .v_dim = arch->v_dim,
        .rope_dim = shared ? arch->rope_dim : 0,
        .q_stride = shared ? architecture_query_width(arch) : row,
        .k_stride = row,
        .v_stride = row,
        .k_rope_stride = shared ? arch->rope_dim : 0,
        .o_stride = arch->heads * arch->v_dim,
        .k_head_stride = shared ? arch->nope_dim + arch->v_dim : arch->qk_dim,
        .v_head_stride = shared ? arch->nope_dim + arch->v_dim : arch->v_dim,
        .window = arch->window,
        .scale = arch->attention_scale,
        .first = config_masks_documents(model->config) ? call->batch->first : NULL,
        .dtype = model->act};
}

/* Queries and keys of a fused row are rotated as one run of heads. */
static struct rope_shape fused_rope(const struct model *model)
{
    const struct architecture *arch = &model->arch;
    return (struct rope_shape){.heads = arch->heads + arch->kv_heads,
                               .head_stride = arch->qk_dim,
                               .dim = arch->rope_dim,
                               .interleaved = arch->rope_interleaved};
}

static void fused_forward(struct model *model, int64_t block, const struct block_call *call,
                          const struct operand *x)
{
    struct tensor qkv = model_act(model, model->blocks[block].attention.qkv,
                                  call->count * call->sequence, fused_width(model));
    block_divided(model, linears_at(&model->linears, block, LINEAR_QKV), call, qkv, x);
    model->ops->rope(model->device, qkv, call->batch->positions, model->rope, fused_rope(model),
                     false);
}

static struct parts state_parts(const struct model *model, const struct attention_state *state)
{
    return latent(model) ? latent_parts(model, state->q, state->kv, state->k_rope)
                         : fused_parts(model, state->qkv);
}

/* Rows of this call that the cache keeps. */
static void fill_cache(struct model *model, int64_t block, const struct block_call *call)
{
    const struct architecture *arch = &model->arch;
    const struct attention_state *state = &model->blocks[block].attention;
    const struct cache_layer *layer = &call->cache->layer[block];
    const struct parts in = state_parts(model, state);
    const bool shared = latent(model);
    const int64_t rows = call->cache->slots * call->cache->capacity,
                  k = shared ? arch->kv_rank : arch->kv_heads * arch->qk_dim,
                  v = shared ? arch->rope_dim : arch->kv_heads * arch->v_dim;
    const int32_t *row = call->cache->row;
    const void *c = linears_in_fp8(&model->linears, block) ? model->attention.c : state->c;
    model->ops->scatter_rows(model->device, model_act(model, layer->k, rows, k), shared ? c : in.k,
                             shared ? k : fused_width(model), row, call->sequence);
    model->ops->scatter_rows(model->device, model_act(model, layer->v, rows, v),
                             shared ? in.k_rope : in.v, shared ? v : fused_width(model), row,
                             call->sequence);
}

/* One new token a slot, over the cache. */
static void decode(struct model *model, int64_t block, const struct block_call *call)
{
    const struct architecture *arch = &model->arch;
    const struct attention_state *state = &model->blocks[block].attention;
    const struct cache_layer *layer = &call->cache->layer[block];
    const bool shared = latent(model);
    const struct decode_shape shape = {.batch = call->sequence,
                                       .heads = arch->heads,
                                       .kv_heads = arch->kv_heads,
                                       .qk_dim = arch->qk_dim,
                                       .v_dim = arch->v_dim,
                                       .rope_dim = shared ? arch->rope_dim : 0,
                                       .rank = arch->kv_rank,
                                       .q_stride = shared ? architecture_query_width(arch)
                                                          : fused_width(model),
                                       .o_stride = arch->heads * arch->v_dim,
                                       .capacity = call->cache->capacity,
                                       .window = arch->window,
                                       .scale = arch->attention_scale,
                                       .dtype = model->act};
    if (shared) {
        const void *kv_b =
            model_weight(model, model->params.divided, model->params.block[block].kv_b,
                         architecture_latent_width(arch), arch->kv_rank)
                .data;
        model->ops->mla_decode(model->device, state->attended, state->q, kv_b, layer->k, layer->v,
                               call->lengths, &shape);
    } else {
        model->ops->attention_decode(model->device, state->attended, state->qkv, layer->k, layer->v,
                                     call->lengths, &shape);
    }
}

/* What attention made, as the output's projection reads it. */
static struct operand attended_of(const struct model *model, int64_t block,
                                  const struct block_call *call)
{
    const struct attention_state *state = &model->blocks[block].attention;
    return (struct operand){.act = model_act(model, state->attended, call->count * call->sequence,
                                             model->arch.heads * model->arch.v_dim)};
}

/* y = attended w^T; in FP8 what backward will read is kept. */
static void project(struct model *model, int64_t block, const struct block_call *call,
                    struct tensor y)
{
    const struct linears *linears = &model->linears;
    struct operand x = attended_of(model, block, call);
    if (linears_in_fp8(linears, block)) {
        const struct fp8_how how = linears_how(linears, LINEAR_ACTIVATIONS);
        const struct fp8_rows none = {0};
        x.q = fp8_view(linears->scratch.x, x.act.dim[0], x.act.dim[1]);
        model->ops->fp8->quantize(model->device, x.q, none, x.act, NULL, x.q.rows, NULL, 1, &how);
        if (call->training) {
            model->ops->fp8->e5m6_pack(model->device, model->blocks[block].attention.attended_codes,
                                       x.act);
        }
    }
    const struct tensor part = block_part(model, call, y);
    linear_forward(linears, linears_at(linears, block, LINEAR_O), part, &x, NULL, false);
    block_join(model, call, y, part, false);
}

static void attend(struct model *model, int64_t block, const struct block_call *call,
                   const struct operand *x)
{
    struct attention_state *state = &model->blocks[block].attention;
    const struct attention_shape shape = shape_of(model, call);
    (latent(model) ? latent_forward : fused_forward)(model, block, call, x);
    if (call->cache != NULL) {
        fill_cache(model, block, call);
    }
    if (call->lengths != NULL) {
        decode(model, block, call);
        return;
    }
    if (!cp_alone(&model->cp)) {
        context_forward(model, block, call, &shape, latent(model) ? state->q : state->qkv);
        return;
    }
    const struct parts in = state_parts(model, state);
    model->ops->attention_forward(model->device, state->attended, state->lse, in.q, in.k, in.k_rope,
                                  in.v, &shape);
}

void attention_forward(struct model *model, int64_t block, const struct block_call *call,
                       struct tensor y, const struct operand *x)
{
    attend(model, block, call, x);
    project(model, block, call, y);
}

void attention_recompute(struct model *model, int64_t block, const struct block_call *call)
{
    if (latent(model)) {
        latent_recompute(model, block, call);
    }
}

static void fused_backward(struct model *model, int64_t block, const struct block_call *call,
                           struct tensor dx, const struct operand *x)
{
    struct tensor dqkv =
        model_act(model, model->attention.dqkv, call->count * call->sequence, fused_width(model));
    model->ops->rope(model->device, dqkv, call->batch->positions, model->rope, fused_rope(model),
                     true);
    block_divided_backward(model, linears_at(&model->linears, block, LINEAR_QKV), call, dx, dqkv,
                           x);
}

/* Scratch dattended from dy, the gradient behind the projection. */
static void project_backward(struct model *model, int64_t block, const struct block_call *call,
                             struct tensor dy)
{
    const struct linears *linears = &model->linears;
    const struct linear *linear = linears_at(linears, block, LINEAR_O);
    const struct operand own = {.act = dy};
    struct operand x = attended_of(model, block, call), whole = block_gather(model, call, 0, &own);
    const struct tensor dx =
        model_act(model, model->attention.dattended, x.act.dim[0], x.act.dim[1]);
    if (linears_in_fp8(linears, block)) {
        model->ops->fp8->e5m6_unpack(model->device, x.act,
                                     model->blocks[block].attention.attended_codes);
    }
    block_ready(model, linear, &whole);
    linear_turn(linears, linear, &x, NULL);
    linear_backward_weight(linears, linear, &whole, &x, NULL, dx.dim[0]);
    linear_backward_input(linears, linear, dx, &whole, NULL, false);
}

/* Gradients of queries, keys and values from scratch dattended. */
static void attend_backward(struct model *model, int64_t block, const struct block_call *call)
{
    const struct attention_state *state = &model->blocks[block].attention;
    const struct attention_scratch *scratch = &model->attention;
    const struct attention_shape shape = shape_of(model, call);
    if (!cp_alone(&model->cp)) {
        context_backward(model, block, call, &shape, latent(model) ? state->q : state->qkv,
                         latent(model) ? scratch->dq : scratch->dqkv);
        return;
    }
    const struct parts in = state_parts(model, state);
    const struct parts out = latent(model)
                                 ? latent_parts(model, scratch->dq, scratch->dkv, scratch->dk_rope)
                                 : fused_parts(model, scratch->dqkv);
    model->ops->attention_backward(model->device, out.q, out.k, out.k_rope, out.v,
                                   scratch->dattended, state->attended, state->lse, in.q, in.k,
                                   in.k_rope, in.v, &shape);
}

void attention_backward(struct model *model, int64_t block, const struct block_call *call,
                        struct tensor dx, struct tensor dy, const struct operand *x)
{
    project_backward(model, block, call, dy);
    attend_backward(model, block, call);
    (latent(model) ? latent_backward : fused_backward)(model, block, call, dx, x);
}
