/* attention_check: cases of attention and a reference in double, for tests of its ops: whole
 * (test_ops_attention.c) and in parts (test_ops_attention_parts.c).
 */
#ifndef TESTS_ATTENTION_CHECK_H
#define TESTS_ATTENTION_CHECK_H

#include "ops_check.h"

struct layout {
    int64_t batch, sequence, heads, kv_heads;
    int64_t qk, v, rope; /* rope: of qk, shared by all heads */
    int64_t window, gap; /* gap: unused elements between rows and key/value heads */
    bool documents;      /* several in a sample */
    double sharp;        /* deviation of the queries: how peaked the softmax is */
};

/* Around the tiles of 64 rows and the vectors of 8, 16 and 32 columns; grouped queries; window of
 * one token, of a tile, and wider than the sample; the rope part of keys shared by all heads, up to
 * the whole key. */
static const struct layout layouts[] = {
    {1, 1, 1, 1, 4, 4, 0, 0, 0, false, 1},      {2, 1, 2, 1, 3, 5, 0, 0, 1, true, 1},
    {2, 7, 4, 2, 5, 3, 0, 0, 1, false, 1},      {1, 7, 2, 2, 8, 8, 0, 3, 0, true, 1},
    {2, 63, 2, 2, 16, 8, 0, 0, 0, false, 1},    {1, 64, 2, 1, 12, 12, 0, 64, 0, false, 1},
    {2, 65, 4, 1, 24, 16, 0, 0, 3, true, 1},    {1, 65, 1, 1, 33, 32, 0, 1000, 0, false, 1},
    {3, 130, 4, 2, 16, 33, 0, 40, 2, false, 1}, {2, 130, 3, 3, 8, 40, 0, 1, 0, true, 1},
    {1, 200, 6, 2, 32, 31, 0, 70, 5, true, 1},  {1, 130, 2, 1, 8, 8, 0, 2, 0, false, 1},
    {1, 130, 2, 1, 16, 16, 0, 0, 0, false, 30}, {1, 1, 2, 2, 6, 4, 2, 0, 0, false, 1},
    {2, 65, 4, 4, 24, 16, 8, 0, 0, false, 1},   {2, 70, 4, 2, 13, 9, 4, 5, 3, false, 1},
    {1, 130, 3, 3, 48, 32, 16, 0, 1, true, 1},  {3, 33, 4, 1, 17, 40, 17, 20, 2, true, 1},
    {1, 200, 8, 8, 40, 24, 6, 66, 0, true, 30},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

/* Inputs and outputs of one case, and the values a reference computes from. */
struct attention {
    struct attention_shape shape;
    struct tensor q, k, k_rope, v, d_o, first;
    struct tensor o, lse, dq, dk, dk_rope, dv;
    double *in[4], *weight; /* q, k, v, k_rope; dO */
};

/* The fast exp is off by 3e-7 (vector_math.h); scores are sums of qk products and as large as the
 * queries, and their absolute error is the relative error of a probability. */
static inline double attention_error(const struct layout *l)
{
    const double sums = 4 + sqrt((double)l->qk) + sqrt((double)l->v) + sqrt((double)l->sequence);
    return (3e-7 + CHECK_U * sums) * l->sharp;
}

static inline struct attention_shape make_shape(const struct layout *l, enum dtype dtype)
{
    return (struct attention_shape){.batch = l->batch,
                                    .sequence = l->sequence,
                                    .heads = l->heads,
                                    .kv_heads = l->kv_heads,
                                    .qk_dim = l->qk,
                                    .v_dim = l->v,
                                    .q_stride = l->heads * l->qk + l->gap,
                                    .k_stride = l->kv_heads * (l->qk - l->rope + l->gap) + l->gap,
                                    .v_stride = l->kv_heads * (l->v + 2 * l->gap),
                                    .o_stride = l->heads * l->v + 2 * l->gap,
                                    .k_head_stride = l->qk - l->rope + l->gap,
                                    .v_head_stride = l->v + 2 * l->gap,
                                    .rope_dim = l->rope,
                                    .k_rope_stride = l->rope > 0 ? l->rope + 3 * l->gap : 0,
                                    .window = l->window,
                                    .scale = (float)(1 / sqrt((double)l->qk)),
                                    .dtype = dtype};
}

/* Documents of about 20 tokens. */
static inline void fill_first(const struct check *c, struct tensor first, int64_t sequence)
{
    int32_t *out = first.data;
    for (int64_t n = 0; n < first.dim[0]; n++) {
        const bool start = n % sequence == 0 || rng_uniform(c->seed, (uint64_t)n) < 0.05;
        out[n] = start ? (int32_t)(n % sequence) : out[n - 1];
    }
}

static inline struct attention make_case(struct check *c, const struct layout *l)
{
    struct attention a = {.shape = make_shape(l, c->dtype)};
    const struct attention_shape *s = &a.shape;
    const int64_t rows = l->batch * l->sequence;
    a.q = check_random(c, "q", c->dtype, rows, s->q_stride, l->sharp);
    a.k = check_random(c, "k", c->dtype, rows, s->k_stride, 1);
    a.k_rope = check_random(c, "k_rope", c->dtype, rows, s->k_rope_stride, 1);
    a.v = check_random(c, "v", c->dtype, rows, s->v_stride, 1);
    a.d_o = check_random(c, "d_o", c->dtype, rows, s->o_stride, 1);
    a.first = check_tensor(c, "first", DTYPE_I32, rows, 1);
    fill_first(c, a.first, l->sequence);
    a.shape.first = l->documents ? a.first.data : NULL;
    a.o = check_tensor(c, "o", c->dtype, rows, s->o_stride);
    a.lse = check_tensor(c, "lse", DTYPE_F32, l->batch * l->heads, l->sequence);
    a.dq = check_tensor(c, "dq", c->dtype, rows, s->q_stride);
    a.dk = check_tensor(c, "dk", c->dtype, rows, s->k_stride);
    a.dk_rope = check_tensor(c, "dk_rope", c->dtype, rows, s->k_rope_stride);
    a.dv = check_tensor(c, "dv", c->dtype, rows, s->v_stride);
    a.in[0] = check_values(c, a.q);
    a.in[1] = check_values(c, a.k);
    a.in[2] = check_values(c, a.v);
    a.in[3] = check_values(c, a.k_rope);
    a.weight = check_values(c, a.d_o);
    check_name(
        c, "attention B=%lld T=%lld H=%lld G=%lld qk=%lld rope=%lld v=%lld window=%lld%s gap=%lld",
        (long long)l->batch, (long long)l->sequence, (long long)l->heads, (long long)l->kv_heads,
        (long long)l->qk, (long long)l->rope, (long long)l->v, (long long)l->window,
        l->documents ? " documents" : "", (long long)l->gap);
    return a;
}

/* --- reference --- */

/* One query: where its rows start and which keys [low, t] it sees. */
struct query {
    int64_t sample, t, low, q, o, lse; /* q, o, lse: first elements */
    int64_t group;
};

static inline struct query find_query(const struct attention_shape *s, int64_t index)
{
    const int64_t t = index % s->sequence, head = index / s->sequence % s->heads,
                  sample = index / s->sequence / s->heads, n = sample * s->sequence + t;
    int64_t low = s->first != NULL ? s->first[n] : 0;
    low = s->window > 0 && t - s->window + 1 > low ? t - s->window + 1 : low;
    return (struct query){.sample = sample,
                          .t = t,
                          .low = low,
                          .q = n * s->q_stride + head * s->qk_dim,
                          .o = n * s->o_stride + head * s->v_dim,
                          .lse = index,
                          .group = head / (s->heads / s->kv_heads)};
}

static inline int64_t key_at(const struct attention_shape *s, const struct query *at, int64_t j)
{
    return (at->sample * s->sequence + j) * s->k_stride + at->group * s->k_head_stride;
}

static inline int64_t value_at(const struct attention_shape *s, const struct query *at, int64_t j)
{
    return (at->sample * s->sequence + j) * s->v_stride + at->group * s->v_head_stride;
}

static inline int64_t rope_at(const struct attention_shape *s, const struct query *at, int64_t j)
{
    return (at->sample * s->sequence + j) * s->k_rope_stride;
}

static inline double dot(const double *a, const double *b, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

/* A result, and what check.mass says of it. */
struct result {
    double *sum, *mass;
};

/* sum[at + i] += factor * in[i], where NaN (untouched so far) counts as 0 */
static inline void axpy(struct result out, int64_t at, double factor, const double *in,
                        int64_t count)
{
    double *sum = out.sum + at, *mass = out.mass + at;
    for (int64_t i = 0; i < count; i++) {
        sum[i] = (isnan(sum[i]) ? 0 : sum[i]) + factor * in[i];
        mass[i] += fabs(factor * in[i]);
    }
}

/* NaN: gaps between rows stay untouched. */
static inline struct result new_result(struct check *c, struct tensor like)
{
    const int64_t count = tensor_count(&like);
    const struct result out = {check_doubles(c, count), check_doubles(c, count)};
    for (int64_t i = 0; i < count; i++) {
        out.sum[i] = (double)NAN;
        out.mass[i] = 0;
    }
    return out;
}

static inline double score(const struct attention *a, const struct query *at, int64_t j)
{
    const struct attention_shape *s = &a->shape;
    const double *q = a->in[0] + at->q;
    const int64_t own = s->qk_dim - s->rope_dim;
    return (double)s->scale * (dot(q, a->in[1] + key_at(s, at, j), own) +
                               dot(q + own, a->in[3] + rope_at(s, at, j), s->rope_dim));
}

static inline int64_t queries_of(const struct attention_shape *s)
{
    return s->batch * s->heads * s->sequence;
}

static inline void reference_forward(const struct attention *a, struct result o, double *lse)
{
    const struct attention_shape *s = &a->shape;
    double *p = malloc((size_t)s->sequence * sizeof *p);
    assert_non_null(p);
    for (int64_t i = 0; i < queries_of(s); i++) {
        const struct query at = find_query(s, i);
        double most = -INFINITY, sum = 0;
        for (int64_t j = at.low; j <= at.t; j++) {
            p[j] = score(a, &at, j);
            most = fmax(most, p[j]);
        }
        for (int64_t j = at.low; j <= at.t; j++) {
            p[j] = exp(p[j] - most);
            sum += p[j];
        }
        for (int64_t j = at.low; j <= at.t; j++) {
            axpy(o, at.o, p[j] / sum, a->in[2] + value_at(s, &at, j), s->v_dim);
        }
        lse[at.lse] = most + log(sum);
    }
    free(p);
}

/* dV = P^T dO; dS = P (dO V^T - rowsum(dO O)); dQ = scale dS K; dK = scale dS^T Q */
static inline void reference_backward(const struct attention *a, const double *o, const double *lse,
                                      const struct result out[4])
{
    const struct attention_shape *s = &a->shape;
    const int64_t own = s->qk_dim - s->rope_dim;
    for (int64_t i = 0; i < queries_of(s); i++) {
        const struct query at = find_query(s, i);
        const double *q = a->in[0] + at.q, *d_o = a->weight + at.o,
                     delta = dot(d_o, o + at.o, s->v_dim);
        for (int64_t j = at.low; j <= at.t; j++) {
            const int64_t k_at = key_at(s, &at, j), v_at = value_at(s, &at, j),
                          r_at = rope_at(s, &at, j);
            const double p = exp(score(a, &at, j) - lse[at.lse]);
            const double ds = (double)s->scale * p * (dot(d_o, a->in[2] + v_at, s->v_dim) - delta);
            axpy(out[0], at.q, ds, a->in[1] + k_at, own);
            axpy(out[0], at.q + own, ds, a->in[3] + r_at, s->rope_dim);
            axpy(out[1], k_at, ds, q, own);
            axpy(out[2], v_at, p, d_o, s->v_dim);
            axpy(out[3], r_at, ds, q + own, s->rope_dim);
        }
    }
}

/* <dO, o> */
static inline double attention_loss(const void *args)
{
    const struct attention *a = args;
    const int64_t count = a->shape.batch * a->shape.sequence * a->shape.o_stride;
    double *o = calloc((size_t)(2 * count), sizeof *o), sum = 0;
    double *lse = calloc((size_t)queries_of(&a->shape), sizeof *lse);
    assert_true(o != NULL && lse != NULL);
    reference_forward(a, (struct result){o, o + count}, lse);
    for (int64_t i = 0; i < count; i++) { /* gaps of o are 0 */
        sum += a->weight[i] * o[i];
    }
    free(o);
    free(lse);
    return sum;
}

static inline void *row_at(struct tensor t, int64_t row)
{
    return tensor_rows(&t, row, t.dim[0] - row).data;
}

#endif
