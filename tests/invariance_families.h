/* invariance_families: the ops of invariance_check.h, each on the rows it is told; those in FP8:
 * invariance_fp8.h. Included there. */
#ifndef TESTS_INVARIANCE_FAMILIES_H
#define TESTS_INVARIANCE_FAMILIES_H

enum { IV_EXPERTS = 5, IV_TOP = 2, IV_T = 6, IV_HEADS = 4, IV_KV = 2, IV_DIM = 16 };

/* --- tokens --- */

static void iv_embedding(struct invariance *v)
{
    const struct tensor ids = invariance_in(v, "ids", DTYPE_I32, 1, 9);
    const struct tensor w = invariance_fixed(v, "embed", v->act, 9, v->width);
    v->ops->embedding_forward(v->device, invariance_out(v, v->act, v->width), ids.data, w);
    v->ops->embedding_backward(v->device, invariance_sum(v, DTYPE_F32, 9, v->width), ids.data,
                               invariance_in(v, "dy", v->act, v->width, 0));
}

static struct tensor iv_vector(struct tensor t)
{
    return tensor_1d(t.data, t.dtype, tensor_count(&t));
}

static void iv_norm(struct invariance *v)
{
    const struct tensor x = invariance_in(v, "x", v->act, v->width, 0),
                        delta = invariance_in(v, "delta", v->act, v->width, 0),
                        w = iv_vector(invariance_fixed(v, "norm", v->act, 1, v->width)),
                        y = invariance_out(v, v->act, v->width),
                        sum = invariance_out(v, v->act, v->width),
                        rstd = invariance_out(v, DTYPE_F32, 1),
                        dx = invariance_out(v, v->act, v->width),
                        dw = iv_vector(invariance_sum(v, DTYPE_F32, 1, v->width));
    v->ops->norm_forward(v->device, y, sum, rstd.data, x, delta, w, 1e-6F);
    v->ops->norm_backward(v->device, dx, dw, invariance_in(v, "dy", v->act, v->width, 0), sum,
                          rstd.data, w);
}

static void iv_linear(struct invariance *v)
{
    const struct tensor x = invariance_in(v, "x", v->act, v->width, 0),
                        dy = invariance_in(v, "dy", v->act, v->inner, 0),
                        w = invariance_fixed(v, "w", v->act, v->inner, v->width);
    v->ops->linear_forward(v->device, invariance_out(v, v->act, v->inner), x, w, false);
    v->ops->linear_forward(v->device, invariance_out(v, DTYPE_F32, v->inner), x, w, true);
    v->ops->linear_backward_input(v->device, invariance_out(v, v->act, v->width), dy, w, false);
    v->ops->linear_backward_weight(v->device, invariance_sum(v, DTYPE_F32, v->inner, v->width), dy,
                                   x);
}

static void iv_rope(struct invariance *v)
{
    const struct rope_shape shape = {IV_HEADS, IV_DIM, 0, IV_DIM, true};
    const struct tensor x = invariance_in(v, "x", v->act, IV_HEADS * IV_DIM, 0),
                        positions = invariance_in(v, "positions", DTYPE_I32, 1, IV_T),
                        table = invariance_fixed(v, "table", DTYPE_F32, IV_T, IV_DIM);
    v->ops->rope(v->device, x, positions.data, table.data, shape, false);
    invariance_compare(v, x.data, IV_HEADS * IV_DIM * dtype_bytes(v->act), tensor_bytes(&x));
}

/* Of groups of so many rows: device memory. */
static const int64_t *iv_boundaries(struct invariance *v, int64_t tokens)
{
    int64_t offset[INVARIANCE_POOL + 1];
    for (int64_t i = 0; i <= v->count; i++) {
        offset[i] = i * tokens;
    }
    return invariance_upload(v, offset, (size_t)(v->count + 1) * sizeof *offset);
}

static void iv_swiglu(struct invariance *v)
{
    const struct tensor gate_up = invariance_in(v, "gate_up", v->act, 2 * v->inner, 0),
                        dh = invariance_in(v, "dh", v->act, v->inner, 0);
    v->ops->swiglu_forward(v->device, invariance_out(v, v->act, v->inner), gate_up);
    v->ops->swiglu_backward(v->device, invariance_out(v, v->act, 2 * v->inner),
                            invariance_out(v, v->act, v->inner), dh, gate_up);
}

static void iv_loss(struct invariance *v)
{
    const struct tensor x = invariance_in(v, "x", v->act, v->width, 0),
                        labels = invariance_in(v, "labels", DTYPE_I32, 1, 40),
                        w = invariance_fixed(v, "head", v->act, 41, v->width);
    v->ops->cross_entropy(v->device, invariance_sum(v, DTYPE_F64, 1, 1).data,
                          invariance_out(v, v->act, v->width),
                          invariance_sum(v, DTYPE_F32, 41, v->width), x, w, labels.data, 0.25F);
}

static void iv_loss_parts(struct invariance *v)
{
    const struct tensor logits = invariance_in(v, "logits", DTYPE_F32, 24, 0),
                        labels = invariance_in(v, "labels", DTYPE_I32, 1, 40),
                        stats = invariance_out(v, DTYPE_F64, 3),
                        work = invariance_out(v, DTYPE_F32, 24);
    const struct loss_parts parts = {stats.data, 1, 0, 10};
    v->ops->cast(v->device, work, logits);
    v->ops->loss_stats(v->device, stats.data, work, labels.data, parts.first);
    v->ops->loss_gradient(v->device, invariance_sum(v, DTYPE_F64, 1, 1).data,
                          invariance_out(v, v->act, 24), work, &parts, labels.data, 0.25F);
}

static void iv_add(struct invariance *v)
{
    const struct tensor x = invariance_in(v, "x", v->act, v->width, 0),
                        y = invariance_out(v, v->act, v->width),
                        wide = invariance_out(v, DTYPE_F32, v->width);
    v->ops->add(v->device, y, x);
    v->ops->cast(v->device, wide, x);
    v->ops->sum_squares(v->device, invariance_sum(v, DTYPE_F64, 1, 1).data, wide.data,
                        tensor_count(&wide));
}

/* Of all rows together: pieces of one parameter, and Muon's products. */
static void iv_optimizer(struct invariance *v)
{
    const struct tensor grad = invariance_in(v, "grad", DTYPE_F32, v->width, 0),
                        param = invariance_sum(v, DTYPE_F32, v->count, v->width),
                        m = invariance_sum(v, DTYPE_BF16, v->count, v->width),
                        second = invariance_sum(v, DTYPE_BF16, v->count, v->width),
                        x = invariance_fixed(v, "muon", DTYPE_F32, 24, 40);
    const struct adamw_piece piece = {.param = param.data,
                                      .m = m.data,
                                      .v = second.data,
                                      .grad = grad.data,
                                      .count = v->count * v->width,
                                      .key = 3};
    const struct adamw adamw = {.lr = 0.01F,
                                .beta1 = 0.9F,
                                .beta2 = 0.95F,
                                .eps = 1e-8F,
                                .grad_scale = 1,
                                .step = 2,
                                .moments = DTYPE_BF16};
    float *scratch = invariance_memory(v, (24 * 40 + 2 * 24 * 24) * sizeof(float));
    v->ops->adamw(v->device, &piece, 1, adamw);
    v->ops->muon_orthogonalize(v->device, x, scratch);
    invariance_compare(v, x.data, 0, tensor_bytes(&x));
}

/* --- sequences --- */

static struct attention_shape iv_attention_shape(const struct invariance *v, int64_t rope)
{
    const int64_t kv = rope > 0 ? IV_HEADS : IV_KV, whole = IV_DIM - rope;
    return (struct attention_shape){.batch = v->count,
                                    .sequence = IV_T,
                                    .heads = IV_HEADS,
                                    .kv_heads = kv,
                                    .qk_dim = IV_DIM,
                                    .v_dim = IV_DIM,
                                    .q_stride = IV_HEADS * IV_DIM,
                                    .k_stride = kv * whole,
                                    .v_stride = kv * IV_DIM,
                                    .o_stride = IV_HEADS * IV_DIM,
                                    .k_head_stride = whole,
                                    .v_head_stride = IV_DIM,
                                    .rope_dim = rope,
                                    .k_rope_stride = rope,
                                    .window = rope > 0 ? 0 : 4,
                                    .scale = 0.25F,
                                    .dtype = v->act};
}

static void iv_attend(struct invariance *v, int64_t rope)
{
    const struct attention_shape s = iv_attention_shape(v, rope);
    const int64_t columns[4] = {IV_T * s.q_stride, IV_T * s.k_stride, IV_T * s.v_stride,
                                IV_T * rope};
    const struct tensor q = invariance_in(v, "q", v->act, columns[0], 0),
                        k = invariance_in(v, "k", v->act, columns[1], 0),
                        value = invariance_in(v, "v", v->act, columns[2], 0),
                        d_o = invariance_in(v, "d_o", v->act, columns[0], 0),
                        o = invariance_out(v, v->act, columns[0]),
                        lse = invariance_out(v, DTYPE_F32, IV_HEADS * IV_T),
                        dq = invariance_out(v, v->act, columns[0]),
                        dk = invariance_out(v, v->act, columns[1]),
                        dv = invariance_out(v, v->act, columns[2]);
    void *k_rope = rope > 0 ? invariance_in(v, "k_rope", v->act, columns[3], 0).data : NULL;
    void *dk_rope = rope > 0 ? invariance_out(v, v->act, columns[3]).data : NULL;
    v->ops->attention_forward(v->device, o.data, lse.data, q.data, k.data, k_rope, value.data, &s);
    v->ops->attention_backward(v->device, dq.data, dk.data, dk_rope, dv.data, d_o.data, o.data,
                               lse.data, q.data, k.data, k_rope, value.data, &s);
}

static void iv_attention(struct invariance *v)
{
    iv_attend(v, 0);
}

static void iv_attention_latent(struct invariance *v)
{
    iv_attend(v, IV_DIM / 2);
}

static void iv_decode(struct invariance *v)
{
    enum { RANK = 24, ROPE = 8, ROOM = 5 };
    struct decode_shape s = {.batch = v->count,
                             .heads = IV_HEADS,
                             .kv_heads = IV_KV,
                             .qk_dim = IV_DIM,
                             .v_dim = IV_DIM,
                             .q_stride = IV_HEADS * IV_DIM,
                             .o_stride = IV_HEADS * IV_DIM,
                             .capacity = ROOM,
                             .scale = 0.25F,
                             .dtype = v->act};
    const struct tensor q = invariance_in(v, "q", v->act, s.q_stride, 0),
                        lengths = invariance_in(v, "lengths", DTYPE_I32, 1, ROOM + 1),
                        k = invariance_in(v, "k", v->act, ROOM * IV_KV * IV_DIM, 0),
                        value = invariance_in(v, "v", v->act, ROOM * IV_KV * IV_DIM, 0),
                        c = invariance_in(v, "c", v->act, ROOM * RANK, 0),
                        k_rope = invariance_in(v, "k_rope", v->act, ROOM * ROPE, 0),
                        w = invariance_fixed(v, "kv_b", v->act, IV_HEADS * (IV_DIM - ROPE + IV_DIM),
                                             RANK);
    v->ops->attention_decode(v->device, invariance_out(v, v->act, s.o_stride).data, q.data, k.data,
                             value.data, lengths.data, &s);
    s.rope_dim = ROPE;
    s.rank = RANK;
    v->ops->mla_decode(v->device, invariance_out(v, v->act, s.o_stride).data, q.data, w.data,
                       c.data, k_rope.data, lengths.data, &s);
}

/* --- routing --- */

static void iv_route(struct invariance *v, bool sigmoid, float z)
{
    const struct router_shape shape = {.tokens = v->count,
                                       .experts = 2 * IV_EXPERTS,
                                       .top_k = IV_TOP,
                                       .row_tokens = 1,
                                       .sigmoid = sigmoid,
                                       .groups = 2,
                                       .top_groups = 1,
                                       .normalize = true,
                                       .scale = 2.5F,
                                       .loss_groups = 2};
    const int64_t experts = shape.experts;
    const struct tensor x = invariance_in(v, "x", v->act, v->width, 0),
                        w = invariance_fixed(v, "gate", v->act, experts, v->width),
                        bias = invariance_fixed(v, "bias", DTYPE_F32, 1, experts),
                        dweight = invariance_in(v, "dweight", DTYPE_F32, IV_TOP, 0),
                        logits = invariance_out(v, DTYPE_F32, experts),
                        expert = invariance_out(v, DTYPE_I32, IV_TOP),
                        weight = invariance_out(v, DTYPE_F32, IV_TOP),
                        score = invariance_out(v, DTYPE_F32, experts),
                        dlogits = invariance_out(v, DTYPE_F32, experts),
                        dx = invariance_out(v, v->act, v->width);
    float *lse = invariance_memory(v, (size_t)v->count * sizeof(float));
    float *aux = invariance_memory(v, (size_t)(v->count * experts) * sizeof(float));
    const struct router_counts counts = {
        .routed = invariance_memory(v, (size_t)(v->count * experts) * sizeof(int64_t))};
    v->ops->router_logits(v->device, logits, x, w);
    v->ops->router_forward(v->device, expert.data, weight.data, score.data, lse, counts,
                           logits.data, sigmoid ? bias.data : NULL, shape);
    v->ops->router_backward(v->device, dlogits.data, dweight.data, expert.data, weight.data,
                            score.data, logits.data, lse, aux, z, shape);
    const struct router_chosen chosen = {.expert = expert.data, .top_k = IV_TOP, .rest = z != 0};
    v->ops->router_logits_backward(v->device, dx, invariance_sum(v, DTYPE_F32, experts, v->width),
                                   dlogits, x, w, chosen);
    v->ops->router_sums(v->device, invariance_out(v, DTYPE_F64, experts).data, score.data, shape);
}

static void iv_router(struct invariance *v)
{
    iv_route(v, false, 0.125F);
}

static void iv_router_sigmoid(struct invariance *v)
{
    iv_route(v, true, 0.125F);
}

static void iv_router_chosen(struct invariance *v)
{
    iv_route(v, true, 0);
}

/* Balance losses of all rows together: a sum. */
static void iv_balance(struct invariance *v)
{
    const struct router_shape shape = {.tokens = v->count,
                                       .experts = IV_EXPERTS,
                                       .top_k = 1,
                                       .row_tokens = 1,
                                       .groups = 1,
                                       .top_groups = 1,
                                       .scale = 1,
                                       .loss_groups = 1};
    const struct balance_terms terms = {.sequence = 0.5, .z = 0.25, .unit = 1};
    const struct tensor score = invariance_in(v, "score", DTYPE_F32, IV_EXPERTS, 0),
                        lse = invariance_in(v, "lse", DTYPE_F32, 1, 0);
    const struct router_counts counts = {
        .routed = invariance_memory(v, (size_t)(v->count * IV_EXPERTS) * sizeof(int64_t))};
    double *sums = invariance_memory(v, (size_t)(v->count * IV_EXPERTS) * sizeof(double));
    v->ops->router_sums(v->device, sums, score.data, shape);
    v->ops->balance(v->device, invariance_sum(v, DTYPE_F64, 1, 1).data,
                    invariance_sum(v, DTYPE_F32, v->count, IV_EXPERTS).data, sums, counts, NULL,
                    lse.data, shape, &terms);
}

/* Where row i of the call goes in expert order, and the boundaries: expert of row r of the pool is
 * r % IV_EXPERTS but for expert 3, which has none. */
struct iv_order {
    int32_t *row, *back; /* device: [count] */
    int64_t *offset;     /* device: [IV_EXPERTS + 1] */
};

static struct iv_order iv_sort(struct invariance *v)
{
    int32_t row[INVARIANCE_POOL], back[INVARIANCE_POOL];
    int64_t offset[IV_EXPERTS + 1] = {0}, next = 0;
    for (int64_t e = 0; e < IV_EXPERTS; e++) {
        for (int64_t i = 0; i < v->count; i++) {
            const int64_t own = v->rows[i] % IV_EXPERTS;
            if ((own == 3 ? 4 : own) == e) {
                back[i] = (int32_t)next;
                row[next++] = (int32_t)i;
            }
        }
        offset[e + 1] = next;
    }
    return (struct iv_order){invariance_upload(v, row, (size_t)next * sizeof *row),
                             invariance_upload(v, back, (size_t)next * sizeof *back),
                             invariance_upload(v, offset, sizeof offset)};
}

static struct tensor iv_gather(struct invariance *v, struct tensor x, const int32_t *row)
{
    struct tensor y = tensor_2d(NULL, x.dtype, x.dim[0], x.dim[1]);
    y.data = invariance_memory(v, tensor_bytes(&y));
    v->ops->gather_rows(v->device, y, x, row);
    return y;
}

static void iv_grouped(struct invariance *v)
{
    const struct iv_order order = iv_sort(v);
    const struct tensor x = iv_gather(v, invariance_in(v, "x", v->act, v->width, 0), order.row),
                        dy = iv_gather(v, invariance_in(v, "dy", v->act, v->inner, 0), order.row),
                        w = invariance_fixed(v, "experts", v->act, IV_EXPERTS * v->inner, v->width);
    struct tensor y = tensor_2d(NULL, v->act, v->count, v->inner),
                  dx = tensor_2d(NULL, v->act, v->count, v->width);
    y.data = invariance_memory(v, tensor_bytes(&y));
    dx.data = invariance_memory(v, tensor_bytes(&dx));
    v->ops->grouped_forward(v->device, y, x, w.data, v->inner * v->width, order.offset, IV_EXPERTS);
    v->ops->grouped_backward_input(v->device, dx, dy, w.data, v->inner * v->width, order.offset,
                                   IV_EXPERTS);
    v->ops->gather_rows(v->device, invariance_out(v, v->act, v->inner), y, order.back);
    v->ops->gather_rows(v->device, invariance_out(v, v->act, v->width), dx, order.back);
    v->ops->grouped_backward_weight(
        v->device, invariance_sum(v, DTYPE_F32, IV_EXPERTS * v->inner, v->width).data,
        v->inner * v->width, dy, x, order.offset, IV_EXPERTS);
}

/* One expert's gradient of weights is a row: alone, and beside others'. Tokens of an expert: 7. */
static void iv_expert_weight(struct invariance *v)
{
    enum { TOKENS = 7 };
    const int64_t *boundaries = iv_boundaries(v, TOKENS);
    struct tensor x = invariance_in(v, "x", v->act, TOKENS * v->width, 0),
                  dy = invariance_in(v, "dy", v->act, TOKENS * v->inner, 0);
    const struct tensor dw = invariance_out(v, DTYPE_F32, v->inner * v->width);
    x = tensor_2d(x.data, v->act, v->count * TOKENS, v->width);
    dy = tensor_2d(dy.data, v->act, v->count * TOKENS, v->inner);
    v->ops->grouped_backward_weight(v->device, dw.data, v->inner * v->width, dy, x, boundaries,
                                    v->count);
}

/* The same as integers (ops_fixed.h). */
static void iv_fixed_weight(struct invariance *v)
{
    enum { TOKENS = 7 };
    static const struct fixed_point scale = {.scale = 0x1p40F, .limit = 0x1p62F};
    const int64_t matrix = v->inner * v->width;
    const int64_t *boundaries = iv_boundaries(v, TOKENS);
    struct fixed_point *point = invariance_upload(v, &scale, sizeof scale);
    struct tensor x = invariance_in(v, "x", v->act, TOKENS * v->width, 0),
                  dy = invariance_in(v, "dy", v->act, TOKENS * v->inner, 0);
    const struct tensor sum = invariance_out(v, DTYPE_I64, matrix);
    float *unit = invariance_memory(v, (size_t)matrix * sizeof *unit);
    x = tensor_2d(x.data, v->act, v->count * TOKENS, v->width);
    dy = tensor_2d(dy.data, v->act, v->count * TOKENS, v->inner);
    v->ops->fixed->grouped_backward_weight(v->device, sum.data, matrix, unit, dy, x, boundaries,
                                           v->count, 1, NULL, point);
}

/* All rows' sums: added, squared, made f32. */
static void iv_fixed_sums(struct invariance *v)
{
    static const struct fixed_point scale = {.scale = 0x1p40F, .limit = 0x1p62F};
    const int64_t count = v->count * v->width / FIXED_CHUNK * FIXED_CHUNK;
    const struct tensor x = invariance_in(v, "x", DTYPE_F32, v->width, 0);
    const struct tensor sum = invariance_out(v, DTYPE_I64, v->width);
    struct fixed_point *point = invariance_upload(v, &scale, sizeof scale);
    v->ops->fixed->add(v->device, sum.data, x.data, v->count * v->width, point);
    v->ops->fixed->squares(v->device, invariance_sum(v, DTYPE_I64, 1, FIXED_LIMBS).data, sum.data,
                           count);
    v->ops->fixed->decode(v->device, invariance_out(v, DTYPE_F32, v->width).data, sum.data,
                          v->count * v->width, 0x1p-40F);
}

/* Two slots a token, one of them dropped where the token's number is a multiple of 3. */
static void iv_combine(struct invariance *v)
{
    int32_t slot[INVARIANCE_POOL * IV_TOP];
    for (int64_t i = 0; i < v->count * IV_TOP; i++) {
        slot[i] = i % IV_TOP == 1 && v->rows[i / IV_TOP] % 3 == 0 ? -1 : (int32_t)i;
    }
    const int32_t *slots = invariance_upload(v, slot, (size_t)(v->count * IV_TOP) * sizeof *slot);
    struct tensor x = invariance_in(v, "x", v->act, IV_TOP * v->width, 0),
                  dx = invariance_out(v, v->act, IV_TOP * v->width);
    const struct tensor weight = invariance_in(v, "weight", DTYPE_F32, IV_TOP, 0),
                        dy = invariance_in(v, "dy", v->act, v->width, 0);
    x = tensor_2d(x.data, v->act, v->count * IV_TOP, v->width);
    dx = tensor_2d(dx.data, v->act, v->count * IV_TOP, v->width);
    v->ops->combine_rows(v->device, invariance_out(v, v->act, v->width), x, slots, weight.data,
                         IV_TOP);
    v->ops->combine_rows_backward(v->device, dx, invariance_out(v, DTYPE_F32, IV_TOP).data, dy, x,
                                  slots, weight.data, IV_TOP);
}

#include "invariance_fp8.h"

static const struct invariance_family invariance_families[] = {
    {"embedding", iv_embedding, false},
    {"norm", iv_norm, false},
    {"linear", iv_linear, false},
    {"rope", iv_rope, false},
    {"swiglu", iv_swiglu, false},
    {"cross_entropy", iv_loss, false},
    {"loss in parts", iv_loss_parts, false},
    {"add, cast, sum_squares", iv_add, false},
    {"adamw, muon", iv_optimizer, false},
    {"attention", iv_attention, false},
    {"attention, latent", iv_attention_latent, false},
    {"decode", iv_decode, false},
    {"router, softmax", iv_router, false},
    {"router, sigmoid", iv_router_sigmoid, false},
    {"router, chosen experts alone", iv_router_chosen, false},
    {"balance", iv_balance, false},
    {"grouped", iv_grouped, false},
    {"grouped_backward_weight of one expert", iv_expert_weight, false},
    {"integers, of one expert", iv_fixed_weight, false},
    {"integers, all", iv_fixed_sums, true},
    {"combine_rows", iv_combine, false},
    {"fp8 quantize, pack", iv_fp8_quantize, true},
    {"fp8 combine_rows_backward", iv_fp8_combine, true},
    {"fp8 norm", iv_fp8_norm, true},
    {"fp8 swiglu", iv_fp8_swiglu, true},
    {"fp8 linear", iv_fp8_linear, true},
    {"fp8 grouped", iv_fp8_grouped, true},
    {"fp8 integers, of one expert", iv_fp8_fixed, true},
};

#endif
