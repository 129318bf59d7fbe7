#include "trainer/model/latent.h"

#include <string.h>

static const float LATENT_EPS = 1e-6F; /* published code builds these norms with this constant */

/* Widths of the tensors of this file. */
struct widths {
    int64_t n, query, latent, q_rank, kv_rank, rope;
};

static struct widths widths(const struct model *model, int64_t tokens)
{
    const struct architecture *arch = &model->arch;
    return (struct widths){.n = tokens,
                           .query = architecture_query_width(arch),
                           .latent = architecture_latent_width(arch),
                           .q_rank = arch->q_rank,
                           .kv_rank = arch->kv_rank,
                           .rope = arch->rope_dim};
}

void latent_layout(const struct model *model, struct attention_state *state,
                   const struct attention_state *lender, const struct layout *layout)
{
    const struct widths w = widths(model, model->batch * model->sequence);
    const size_t row = (size_t)w.n * dtype_bytes(model->act), n = (size_t)w.n;
    const enum memory_class query = w.q_rank > 0 ? MEMORY_NORM : MEMORY_REST;
    if (w.q_rank > 0) {
        const size_t bytes = (size_t)w.q_rank * row;
        state->q_a = layout_buffer(layout, MEMORY_REST, lender->q_a, bytes);
        state->q_c = layout_buffer(layout, MEMORY_NORM, lender->q_c, bytes);
        state->rstd_q = layout_buffer(layout, MEMORY_REST, lender->rstd_q, n * sizeof(float));
    }
    state->q = layout_buffer(layout, query, lender->q, (size_t)w.query * row);
    state->c_a = layout_buffer(layout, MEMORY_REST, lender->c_a, (size_t)w.kv_rank * row);
    state->c = layout_buffer(layout, MEMORY_NORM, lender->c, (size_t)w.kv_rank * row);
    state->rstd_c = layout_buffer(layout, MEMORY_REST, lender->rstd_c, n * sizeof(float));
    state->kv = layout_buffer(layout, MEMORY_NORM, lender->kv, (size_t)w.latent * row);
    state->k_rope = layout_buffer(layout, MEMORY_REST, lender->k_rope, (size_t)w.rope * row);
}

void latent_scratch_layout(const struct model *model, struct attention_scratch *scratch,
                           struct arena *arena)
{
    const struct widths w = widths(model, model->batch * model->sequence);
    const size_t row = (size_t)w.n * dtype_bytes(model->act);
    scratch->dq = arena_alloc(arena, (size_t)w.query * row);
    scratch->dkv = arena_alloc(arena, (size_t)w.latent * row);
    scratch->dk_rope = arena_alloc(arena, (size_t)w.rope * row);
    scratch->dc = arena_alloc(arena, (size_t)w.kv_rank * row);
    scratch->dc_a = arena_alloc(arena, (size_t)w.kv_rank * row);
    if (w.q_rank > 0) {
        scratch->dq_c = arena_alloc(arena, (size_t)w.q_rank * row);
        scratch->dq_a = arena_alloc(arena, (size_t)w.q_rank * row);
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

static void norm(struct model *model, void *y, float *rstd, void *x, int64_t weight, int64_t rows,
                 int64_t width)
{
    model->ops->norm_forward(model->device, model_act(model, y, rows, width), (struct tensor){0},
                             rstd, model_act(model, x, rows, width), (struct tensor){0},
                             model_vector(model, weight, width), LATENT_EPS);
}

static void up(struct model *model, void *y, void *x, int64_t weight, int64_t rows, int64_t out,
               int64_t in)
{
    model->ops->linear_forward(model->device, model_act(model, y, rows, out),
                               model_act(model, x, rows, in),
                               model_weight(model, PARAM_DENSE, weight, out, in), false);
}

/* q from x or from the normed compressed query, rotated. */
static void queries(struct model *model, int64_t block, const struct block_call *call, void *x,
                    int64_t in)
{
    struct attention_state *state = &model->blocks[block].attention;
    const struct widths w = widths(model, call->count * call->sequence);
    up(model, state->q, x, model->params.block[block].q_b, w.n, w.query, in);
    model->ops->rope(model->device, model_act(model, state->q, w.n, w.query),
                     call->batch->positions, model->rope, query_rope(model), false);
}

void latent_forward(struct model *model, int64_t block, const struct block_call *call,
                    struct tensor x)
{
    struct attention_state *state = &model->blocks[block].attention;
    const struct block_offsets *at = &model->params.block[block];
    const struct widths w = widths(model, call->count * call->sequence);
    const int64_t width = x.dim[1];
    if (w.q_rank > 0) {
        up(model, state->q_a, x.data, at->q_a, w.n, w.q_rank, width);
        norm(model, state->q_c, state->rstd_q, state->q_a, at->q_a_norm, w.n, w.q_rank);
        queries(model, block, call, state->q_c, w.q_rank);
    } else {
        queries(model, block, call, x.data, width);
    }
    up(model, state->c_a, x.data, at->kv_a, w.n, w.kv_rank, width);
    up(model, state->k_rope, x.data, at->kv_a + w.kv_rank * width, w.n, w.rope, width);
    model->ops->rope(model->device, model_act(model, state->k_rope, w.n, w.rope),
                     call->batch->positions, model->rope, key_rope(model), false);
    norm(model, state->c, state->rstd_c, state->c_a, at->kv_a_norm, w.n, w.kv_rank);
    if (call->lengths == NULL) { /* else attention is absorbed: no head's keys, no values */
        up(model, state->kv, state->c, at->kv_b, w.n, w.latent, w.kv_rank);
    }
}

void latent_recompute(struct model *model, int64_t block, const struct block_call *call)
{
    struct attention_state *state = &model->blocks[block].attention;
    const struct block_offsets *at = &model->params.block[block];
    const struct widths w = widths(model, call->count * call->sequence);
    if (w.q_rank > 0) {
        norm(model, state->q_c, state->rstd_q, state->q_a, at->q_a_norm, w.n, w.q_rank);
        queries(model, block, call, state->q_c, w.q_rank);
    }
    norm(model, state->c, state->rstd_c, state->c_a, at->kv_a_norm, w.n, w.kv_rank);
    up(model, state->kv, state->c, at->kv_b, w.n, w.latent, w.kv_rank);
}

/* A projection y = x w^T: dw adds; dx overwrites or adds. */
static void down(struct model *model, void *dy, int64_t weight, int64_t out, struct tensor dx,
                 struct tensor x, bool add)
{
    const struct tensor grad = model_act(model, dy, x.dim[0], out);
    model->ops->linear_backward_weight(
        model->device, model_grad(model, PARAM_DENSE, weight, out, x.dim[1]), grad, x);
    model->ops->linear_backward_input(model->device, dx, grad,
                                      model_weight(model, PARAM_DENSE, weight, out, x.dim[1]), add);
}

/* dx overwrites (the op adds: it starts from zeros). */
static void norm_down(struct model *model, struct tensor dx, struct tensor dy, struct tensor x,
                      const float *rstd, int64_t weight)
{
    model->ops->zero(model->device, dx.data, tensor_bytes(&dx));
    model->ops->norm_backward(model->device, dx, model_vector_grad(model, weight, x.dim[1]), dy, x,
                              rstd, model_vector(model, weight, x.dim[1]));
}

static void keys_backward(struct model *model, int64_t block, const struct widths *w,
                          struct tensor dx, struct tensor x)
{
    struct attention_state *state = &model->blocks[block].attention;
    struct attention_scratch *scratch = &model->attention;
    const struct block_offsets *at = &model->params.block[block];
    const struct tensor dc = model_act(model, scratch->dc, w->n, w->kv_rank),
                        dc_a = model_act(model, scratch->dc_a, w->n, w->kv_rank);
    down(model, scratch->dkv, at->kv_b, w->latent, dc, model_act(model, state->c, w->n, w->kv_rank),
         false);
    norm_down(model, dc_a, dc, model_act(model, state->c_a, w->n, w->kv_rank), state->rstd_c,
              at->kv_a_norm);
    down(model, scratch->dc_a, at->kv_a, w->kv_rank, dx, x, true);
    down(model, scratch->dk_rope, at->kv_a + w->kv_rank * x.dim[1], w->rope, dx, x, true);
}

static void queries_backward(struct model *model, int64_t block, const struct widths *w,
                             struct tensor dx, struct tensor x)
{
    struct attention_state *state = &model->blocks[block].attention;
    struct attention_scratch *scratch = &model->attention;
    const struct block_offsets *at = &model->params.block[block];
    if (w->q_rank == 0) {
        down(model, scratch->dq, at->q_b, w->query, dx, x, false);
        return;
    }
    const struct tensor dq_c = model_act(model, scratch->dq_c, w->n, w->q_rank),
                        dq_a = model_act(model, scratch->dq_a, w->n, w->q_rank);
    down(model, scratch->dq, at->q_b, w->query, dq_c, model_act(model, state->q_c, w->n, w->q_rank),
         false);
    norm_down(model, dq_a, dq_c, model_act(model, state->q_a, w->n, w->q_rank), state->rstd_q,
              at->q_a_norm);
    down(model, scratch->dq_a, at->q_a, w->q_rank, dx, x, false);
}

void latent_backward(struct model *model, int64_t block, const struct block_call *call,
                     struct tensor dx, struct tensor x)
{
    struct attention_scratch *scratch = &model->attention;
    const struct widths w = widths(model, call->count * call->sequence);
    model->ops->rope(model->device, model_act(model, scratch->dq, w.n, w.query),
                     call->batch->positions, model->rope, query_rope(model), true);
    model->ops->rope(model->device, model_act(model, scratch->dk_rope, w.n, w.rope),
                     call->batch->positions, model->rope, key_rope(model), true);
    queries_backward(model, block, &w, dx, x);
    keys_backward(model, block, &w, dx, x);
}
