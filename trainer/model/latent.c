#include "trainer/model/latent.h"

#include <string.h>

static const float LATENT_EPS = 1e-6F; /* published code builds these norms with this constant */

/* Widths of the tensors of this file. */
struct widths {
    int64_t n, own; /* tokens: all, and those of this rank (block_tokens) */
    int64_t query, latent, q_rank, kv_rank, rope;
};

static struct widths widths(const struct model *model, int64_t tokens, int64_t own)
{
    const struct architecture *arch = &model->arch;
    return (struct widths){.n = tokens,
                           .own = own,
                           .query = architecture_query_width(arch),
                           .latent = architecture_latent_width(arch),
                           .q_rank = arch->q_rank,
                           .kv_rank = arch->kv_rank,
                           .rope = arch->rope_dim};
}

static struct widths widths_of(const struct model *model, const struct block_call *call)
{
    return widths(model, call->count * call->sequence, block_tokens(model, call));
}

/* Of the largest micro-batch. */
static struct widths most(const struct model *model)
{
    return widths(model, model->batch * model->sequence, model->batch * model->tp.share);
}

void latent_layout(const struct model *model, struct attention_state *state,
                   const struct attention_state *lender, const struct layout *layout)
{
    const struct widths w = most(model);
    const size_t row = (size_t)w.n * dtype_bytes(model->act), n = (size_t)w.own,
                 own = n * dtype_bytes(model->act);
    const enum memory_class query = w.q_rank > 0 ? MEMORY_NORM : MEMORY_REST;
    if (w.q_rank > 0) {
        const size_t bytes = (size_t)w.q_rank * own;
        state->q_a = layout_buffer(layout, MEMORY_REST, lender->q_a, bytes);
        if (layout->act) {
            state->q_c = layout_buffer(layout, MEMORY_NORM, lender->q_c, bytes);
        }
        if (layout->fp8) {
            state->q_c_codes =
                layout_codes(layout, MEMORY_NORM, lender->q_c_codes, w.own, w.q_rank);
        }
        state->rstd_q = layout_buffer(layout, MEMORY_REST, lender->rstd_q, n * sizeof(float));
    }
    state->q = layout_buffer(layout, query, lender->q, (size_t)w.query * row);
    state->c_a = layout_buffer(layout, MEMORY_REST, lender->c_a, (size_t)w.kv_rank * own);
    if (layout->act) {
        state->c = layout_buffer(layout, MEMORY_NORM, lender->c, (size_t)w.kv_rank * own);
    }
    if (layout->fp8) {
        state->c_codes = layout_codes(layout, MEMORY_NORM, lender->c_codes, w.own, w.kv_rank);
    }
    state->rstd_c = layout_buffer(layout, MEMORY_REST, lender->rstd_c, n * sizeof(float));
    if (cp_alone(&model->cp)) {
        state->kv = layout_buffer(layout, MEMORY_NORM, lender->kv, (size_t)w.latent * row);
    }
    state->k_rope = layout_buffer(layout, MEMORY_REST, lender->k_rope, (size_t)w.rope * row);
}

void latent_scratch_layout(const struct model *model, struct attention_scratch *scratch,
                           struct arena *arena)
{
    const struct widths w = most(model);
    const size_t row = (size_t)w.n * dtype_bytes(model->act),
                 own = (size_t)w.own * dtype_bytes(model->act);
    scratch->dq = arena_alloc(arena, (size_t)w.query * row);
    if (cp_alone(&model->cp)) {
        scratch->dkv = arena_alloc(arena, (size_t)w.latent * row);
    }
    scratch->dk_rope = arena_alloc(arena, (size_t)w.rope * row);
    scratch->dc = arena_alloc(arena, (size_t)w.kv_rank * own);
    scratch->dc_a = arena_alloc(arena, (size_t)w.kv_rank * own);
    if (w.q_rank > 0) {
        scratch->dq_c = arena_alloc(arena, (size_t)w.q_rank * own);
        scratch->dq_a = arena_alloc(arena, (size_t)w.q_rank * own);
    }
}

/* Rotary parts of the queries of a row, and the one rotary key. */
static struct rope_shape query_rope(const struct model *model)
{
    const struct architecture *arch = &model->arch;
    return (struct rope_shape){.heads = arch->heads,
                               .head_stride = arch->qk_dim,
                               .first = arch->nope_dim,
                               .dim = arch->rope_dim,
                               .interleaved = arch->rope_interleaved};
}

static struct rope_shape key_rope(const struct model *model)
{
    return (struct rope_shape){.heads = 1,
                               .head_stride = model->arch.rope_dim,
                               .dim = model->arch.rope_dim,
                               .interleaved = model->arch.rope_interleaved};
}

/* y = x w^T of one of the projections that are not divided. */
static void up(struct model *model, int64_t block, enum linear_name name, void *y, int64_t tokens,
               const struct operand *x)
{
    const struct linear *linear = linears_at(&model->linears, block, name);
    linear_forward(&model->linears, linear, model_act(model, y, tokens, linear->out), x, NULL,
                   false);
}

/* The same of a divided one, of all tokens. */
static void up_divided(struct model *model, int64_t block, enum linear_name name, void *y,
                       const struct block_call *call, const struct operand *x)
{
    const struct linear *linear = linears_at(&model->linears, block, name);
    block_divided(model, linear, call,
                  model_act(model, y, call->count * call->sequence, linear->out), x);
}

static void norm(struct model *model, const struct operand *y, float *rstd, struct tensor x,
                 int64_t weight)
{
    const struct tensor none = {0};
    linear_norm(&model->linears, y, none, rstd, x, none, model_vector(model, weight, x.dim[1]),
                LATENT_EPS);
}

/* The normed compressed query, as q_b reads it. */
static struct operand query_input(const struct model *model, int64_t block, const struct widths *w)
{
    const struct attention_state *state = &model->blocks[block].attention;
    if (linears_in_fp8(&model->linears, block)) {
        return (struct operand){.q = fp8_view(state->q_c_codes, w->own, w->q_rank)};
    }
    return (struct operand){.act = model_act(model, state->q_c, w->own, w->q_rank)};
}

/* The normed latent, as kv_b reads it; `cached`: in act too. */
static struct operand latent_input(const struct model *model, int64_t block, const struct widths *w,
                                   bool cached)
{
    const struct attention_state *state = &model->blocks[block].attention;
    struct operand c = {0};
    if (linears_in_fp8(&model->linears, block)) {
        c.q = fp8_view(state->c_codes, w->own, w->kv_rank);
        c.act = model_act(model, cached ? model->attention.c : NULL, w->own, w->kv_rank);
    } else {
        c.act = model_act(model, state->c, w->own, w->kv_rank);
    }
    return c;
}

/* q from x, or from the compressed query, normed; rotated. */
static void queries(struct model *model, int64_t block, const struct block_call *call,
                    const struct operand *x)
{
    struct attention_state *state = &model->blocks[block].attention;
    const struct widths w = widths_of(model, call);
    if (w.q_rank > 0) {
        const struct operand q_c = query_input(model, block, &w);
        norm(model, &q_c, state->rstd_q, model_act(model, state->q_a, w.own, w.q_rank),
             model->params.block[block].q_a_norm);
        up_divided(model, block, LINEAR_Q_B, state->q, call, &q_c);
    } else {
        up_divided(model, block, LINEAR_Q_B, state->q, call, x);
    }
    model->ops->rope(model->device, model_act(model, state->q, w.n, w.query),
                     call->batch->positions, model->rope, query_rope(model), false);
}

static void keys(struct model *model, int64_t block, const struct block_call *call)
{
    struct attention_state *state = &model->blocks[block].attention;
    const struct widths w = widths_of(model, call);
    const struct operand c = latent_input(model, block, &w, call->cache != NULL);
    norm(model, &c, state->rstd_c, model_act(model, state->c_a, w.own, w.kv_rank),
         model->params.block[block].kv_a_norm);
    /* else attention is absorbed (no head's keys, no values), or context.c does it */
    if (call->lengths == NULL && cp_alone(&model->cp)) {
        up_divided(model, block, LINEAR_KV_B, state->kv, call, &c);
    }
}

/* The key that all heads share, of all tokens, not rotated yet. */
static void rotary_key(struct model *model, int64_t block, const struct block_call *call,
                       const struct operand *x)
{
    const struct widths w = widths_of(model, call);
    void *key = model->blocks[block].attention.k_rope,
         *own = tp_alone(&model->tp) ? key : model->wide[1];
    up(model, block, LINEAR_K_ROPE, own, w.own, x);
    if (own != key) {
        tp_gather(&model->tp, model_act(model, key, w.n, w.rope),
                  model_act(model, own, w.own, w.rope), call->count);
    }
}

void latent_forward(struct model *model, int64_t block, const struct block_call *call,
                    const struct operand *x)
{
    struct attention_state *state = &model->blocks[block].attention;
    const struct widths w = widths_of(model, call);
    if (w.q_rank > 0) {
        up(model, block, LINEAR_Q_A, state->q_a, w.own, x);
    }
    queries(model, block, call, x);
    up(model, block, LINEAR_KV_A, state->c_a, w.own, x);
    rotary_key(model, block, call, x);
    model->ops->rope(model->device, model_act(model, state->k_rope, w.n, w.rope),
                     call->batch->positions, model->rope, key_rope(model), false);
    keys(model, block, call);
}

void latent_recompute(struct model *model, int64_t block, const struct block_call *call)
{
    if (model->arch.q_rank > 0) {
        queries(model, block, call, NULL);
    }
    keys(model, block, call);
}

/* Back through a projection y = x w^T: dx overwrites or adds. */
static void down(struct model *model, int64_t block, enum linear_name name, struct tensor dx,
                 void *dy, const struct operand *x, bool add)
{
    const struct linear *linear = linears_at(&model->linears, block, name);
    linear_backward(&model->linears, linear, dx, model_act(model, dy, dx.dim[0], linear->out), x,
                    add);
}

/* dx overwrites (the op adds: it starts from zeros). */
static void norm_down(struct model *model, struct tensor dx, struct tensor dy, struct tensor x,
                      const float *rstd, int64_t weight)
{
    model->ops->zero(model->device, dx.data, tensor_bytes(&dx));
    model->ops->norm_backward(model->device, dx, model_vector_grad(model, weight, x.dim[1]), dy, x,
                              rstd, model_vector(model, weight, x.dim[1]));
    model_add_grad(model, PARAM_DENSE, weight, x.dim[1]);
}

/* Back through a divided one, to dx of this rank's tokens. */
static void down_divided(struct model *model, int64_t block, enum linear_name name,
                         const struct block_call *call, struct tensor dx, void *dy,
                         const struct operand *x)
{
    const struct linear *linear = linears_at(&model->linears, block, name);
    block_divided_backward(model, linear, call, dx,
                           model_act(model, dy, call->count * call->sequence, linear->out), x);
}

/* To the latent before its norm. */
static void keys_backward(struct model *model, int64_t block, const struct block_call *call)
{
    const struct widths w = widths_of(model, call);
    struct attention_state *state = &model->blocks[block].attention;
    struct attention_scratch *scratch = &model->attention;
    const struct tensor dc = model_act(model, scratch->dc, w.own, w.kv_rank),
                        dc_a = model_act(model, scratch->dc_a, w.own, w.kv_rank);
    const struct operand c = latent_input(model, block, &w, false);
    if (cp_alone(&model->cp)) { /* else context_backward made dc */
        down_divided(model, block, LINEAR_KV_B, call, dc, scratch->dkv, &c);
    }
    norm_down(model, dc_a, dc, model_act(model, state->c_a, w.own, w.kv_rank), state->rstd_c,
              model->params.block[block].kv_a_norm);
}

/* To the compressed query before its norm. */
static void queries_backward(struct model *model, int64_t block, const struct block_call *call)
{
    const struct widths w = widths_of(model, call);
    struct attention_state *state = &model->blocks[block].attention;
    struct attention_scratch *scratch = &model->attention;
    const struct tensor dq_c = model_act(model, scratch->dq_c, w.own, w.q_rank),
                        dq_a = model_act(model, scratch->dq_a, w.own, w.q_rank);
    const struct operand q_c = query_input(model, block, &w);
    down_divided(model, block, LINEAR_Q_B, call, dq_c, scratch->dq, &q_c);
    norm_down(model, dq_a, dq_c, model_act(model, state->q_a, w.own, w.q_rank), state->rstd_q,
              model->params.block[block].q_a_norm);
}

/* Gradient of the shared key of this rank's tokens, summed over all heads. */
static void *rotary_key_gradient(struct model *model, const struct block_call *call)
{
    const struct widths w = widths_of(model, call);
    const struct tensor all = model_act(model, model->attention.dk_rope, w.n, w.rope);
    if (tp_alone(&model->tp)) {
        return all.data;
    }
    tp_reduce(&model->tp, model_act(model, model->wide[1], w.own, w.rope), all, call->count, false);
    return model->wide[1];
}

void latent_backward(struct model *model, int64_t block, const struct block_call *call,
                     struct tensor dx, const struct operand *x)
{
    struct attention_scratch *scratch = &model->attention;
    const struct widths w = widths_of(model, call);
    const bool compressed = w.q_rank > 0;
    struct operand input = *x;
    model->ops->rope(model->device, model_act(model, scratch->dq, w.n, w.query),
                     call->batch->positions, model->rope, query_rope(model), true);
    model->ops->rope(model->device, model_act(model, scratch->dk_rope, w.n, w.rope),
                     call->batch->positions, model->rope, key_rope(model), true);
    if (compressed) {
        queries_backward(model, block, call);
    }
    keys_backward(model, block, call);
    linear_turn(&model->linears, linears_at(&model->linears, block, LINEAR_KV_A), &input, NULL);
    if (compressed) {
        down(model, block, LINEAR_Q_A, dx, scratch->dq_a, &input, false);
    } else {
        down_divided(model, block, LINEAR_Q_B, call, dx, scratch->dq, &input);
    }
    down(model, block, LINEAR_KV_A, dx, scratch->dc_a, &input, true);
    down(model, block, LINEAR_K_ROPE, dx, rotary_key_gradient(model, call), &input, true);
}
