/* Attention of one new token per sequence over a cache. One task is a few heads of one sequence
 * that read the same cached rows: every row is loaded once for all of them. Sums are in f32, in the
 * order of the cached rows, so a sequence's result depends on nothing but the sequence. */
#include <assert.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_math.h"

enum { LANES = 16, MLA_HEADS = 8 }; /* heads of one task of mla_decode */

/* Queries of one task and the cached rows they see. A key is [k: k_dim | k2: k2_dim]. */
struct task {
    int64_t heads, low, length;                       /* rows [low, length) */
    const void *k, *k2, *v;                           /* row 0 */
    int64_t k_dim, k2_dim, v_dim, k_stride, v_stride; /* rows of k2 are k2_dim apart */
    float *q;                                         /* [heads, k_dim + k2_dim] scaled */
    float *score, *out, *row;                         /* [heads, length], [heads, v_dim], one row */
    enum dtype dtype;
};

typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));

static inline float dot(const float *a, const float *b, int64_t count)
{
    lanes sum = {0};
    float total = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        sum += *(const lanes *)(a + i) * *(const lanes *)(b + i);
    }
    for (; i < count; i++) {
        total += a[i] * b[i];
    }
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; lane++) {
            sum[lane] += sum[lane + half];
        }
    }
    return total + sum[0];
}

static inline void axpy(float *out, float factor, const float *in, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] += factor * in[i];
    }
}

static inline void softmax(float *score, int64_t low, int64_t length)
{
    float most = score[low], sum = 0;
    for (int64_t j = low; j < length; j++) {
        most = score[j] > most ? score[j] : most;
    }
    for (int64_t j = low; j < length; j++) {
        score[j] = fast_exp(score[j] - most);
    }
    for (int64_t j = low; j < length; j++) {
        sum += score[j];
    }
    for (int64_t j = low; j < length; j++) {
        score[j] *= 1.0F / sum;
    }
}

/* task->out = softmax(q k^T) v, head by head. */
CPU_CLONES static void attend(const struct task *t)
{
    const int64_t dim = t->k_dim + t->k2_dim;
    for (int64_t j = t->low; j < t->length; j++) {
        row_load(t->row, t->k, t->dtype, j * t->k_stride, t->k_dim);
        if (t->k2_dim > 0) {
            row_load(t->row + t->k_dim, t->k2, t->dtype, j * t->k2_dim, t->k2_dim);
        }
        for (int64_t h = 0; h < t->heads; h++) {
            t->score[h * t->length + j] = dot(t->q + h * dim, t->row, dim);
        }
    }
    memset(t->out, 0, (size_t)(t->heads * t->v_dim) * sizeof *t->out);
    for (int64_t h = 0; h < t->heads; h++) {
        softmax(t->score + h * t->length, t->low, t->length);
    }
    for (int64_t j = t->low; j < t->length; j++) {
        row_load(t->row, t->v, t->dtype, j * t->v_stride, t->v_dim);
        for (int64_t h = 0; h < t->heads; h++) {
            axpy(t->out + h * t->v_dim, t->score[h * t->length + j], t->row, t->v_dim);
        }
    }
}

/* One thread's scratch. */
struct buffers {
    float *q, *score, *out, *row;
};

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Floats a thread needs for `heads` heads with keys of `k` and values of `v` elements; hands them
 * out from `memory` if that is not NULL. */
static int64_t buffers_layout(struct buffers *buffers, float *memory, int64_t heads, int64_t k,
                              int64_t v, const struct decode_shape *shape)
{
    float **const fields[] = {&buffers->q, &buffers->score, &buffers->out, &buffers->row};
    const int64_t counts[] = {heads * k, heads * shape->capacity, heads * v,
                              most(most(k, v), shape->qk_dim)};
    int64_t used = 0;
    for (int i = 0; i < 4; i++) {
        *fields[i] = memory != NULL ? memory + used : NULL;
        used += (counts[i] + LANES - 1) / LANES * LANES;
    }
    return used;
}

static void zero_row(void *o, const struct decode_shape *shape, int64_t first, int64_t count)
{
    memset((char *)o + (size_t)first * dtype_bytes(shape->dtype), 0,
           (size_t)count * dtype_bytes(shape->dtype));
}

static const void *at(const void *data, enum dtype dtype, int64_t element)
{
    return (const char *)data + (size_t)element * dtype_bytes(dtype);
}

/* Heads [first, first + t->heads) of the queries of sequence b, scaled: columns [from, from +
 * count) of a head become columns [to, ...) of t->q's rows. */
static void load_queries(const struct task *t, const void *q, const struct decode_shape *shape,
                         int64_t b, int64_t first, const int64_t part[3])
{
    const int64_t dim = t->k_dim + t->k2_dim, from = part[0], count = part[1], to = part[2];
    for (int64_t h = 0; h < t->heads; h++) {
        float *out = t->q + h * dim + to;
        row_load(out, q, shape->dtype, b * shape->q_stride + (first + h) * shape->qk_dim + from,
                 count);
        for (int64_t i = 0; i < count; i++) {
            out[i] *= shape->scale;
        }
    }
}

void cpu_attention_decode(struct device *device, void *o, const void *q, const void *k_cache,
                          const void *v_cache, const int32_t *lengths,
                          const struct decode_shape *shape)
{
    const int64_t per_group = shape->heads / shape->kv_heads, qk = shape->qk_dim, v = shape->v_dim,
                  groups = shape->kv_heads;
    struct buffers none;
    const int64_t floats = buffers_layout(&none, NULL, per_group, qk, v, shape);
    float *scratch = cpu_scratch(device, CPU_SLOT_ATTENTION,
                                 (size_t)(floats * device->threads) * sizeof *scratch);
    assert(shape->heads % shape->kv_heads == 0);
#pragma omp parallel for schedule(dynamic, 1) num_threads(device->threads)
    for (int64_t i = 0; i < shape->batch * groups; i++) {
        const int64_t b = i / groups, g = i % groups, length = lengths[b],
                      low = shape->window > 0 ? most(length - shape->window, 0) : 0,
                      row = b * shape->capacity, out = b * shape->o_stride + g * per_group * v;
        struct buffers own;
        buffers_layout(&own, scratch + omp_get_thread_num() * floats, per_group, qk, v, shape);
        const struct task task = {.heads = per_group,
                                  .low = low,
                                  .length = length,
                                  .k = at(k_cache, shape->dtype, (row * groups + g) * qk),
                                  .v = at(v_cache, shape->dtype, (row * groups + g) * v),
                                  .k_dim = qk,
                                  .v_dim = v,
                                  .k_stride = groups * qk,
                                  .v_stride = groups * v,
                                  .q = own.q,
                                  .score = own.score,
                                  .out = own.out,
                                  .row = own.row,
                                  .dtype = shape->dtype};
        assert(length <= shape->capacity);
        if (length == 0) {
            zero_row(o, shape, out, per_group * v);
            continue;
        }
        load_queries(&task, q, shape, b, g * per_group, (int64_t[]){0, qk, 0});
        attend(&task);
        row_store(o, shape->dtype, out, own.out, per_group * v);
    }
}

/* q~_h = W_uk,h^T q_nope, W_uk,h = rows [h (dn+dv), h (dn+dv) + dn) of w_kv_b. */
CPU_CLONES static void absorb(const struct task *t, const void *q, const void *w_kv_b,
                              const struct decode_shape *shape, int64_t b, int64_t first)
{
    const int64_t nope = shape->qk_dim - shape->rope_dim, rank = shape->rank;
    load_queries(t, q, shape, b, first, (int64_t[]){nope, shape->rope_dim, rank});
    for (int64_t h = 0; h < t->heads; h++) {
        float *out = t->q + h * (rank + shape->rope_dim), *query = t->out; /* free until attend */
        row_load(query, q, shape->dtype, b * shape->q_stride + (first + h) * shape->qk_dim, nope);
        memset(out, 0, (size_t)rank * sizeof *out);
        for (int64_t i = 0; i < nope; i++) {
            row_load(t->row, w_kv_b, shape->dtype, ((first + h) * (nope + shape->v_dim) + i) * rank,
                     rank);
            axpy(out, query[i] * shape->scale, t->row, rank);
        }
    }
}

/* o_h = W_uv,h (sum P c'), W_uv,h = the dv rows of w_kv_b behind W_uk,h. */
CPU_CLONES static void expand(const struct task *t, void *o, const void *w_kv_b,
                              const struct decode_shape *shape, int64_t b, int64_t first)
{
    const int64_t nope = shape->qk_dim - shape->rope_dim, rank = shape->rank, v = shape->v_dim;
    float *out = t->q; /* the queries are used up */
    for (int64_t h = first; h < first + t->heads; h++) {
        for (int64_t i = 0; i < v; i++) {
            row_load(t->row, w_kv_b, shape->dtype, (h * (nope + v) + nope + i) * rank, rank);
            out[i] = dot(t->row, t->out + (h - first) * rank, rank);
        }
        row_store(o, shape->dtype, b * shape->o_stride + h * v, out, v);
    }
}

void cpu_mla_decode(struct device *device, void *o, const void *q, const void *w_kv_b,
                    const void *c_cache, const void *rope_cache, const int32_t *lengths,
                    const struct decode_shape *shape)
{
    const int64_t rank = shape->rank, chunks = (shape->heads + MLA_HEADS - 1) / MLA_HEADS,
                  room =
                      most(most(rank, shape->qk_dim), shape->v_dim); /* also for q, o of a head */
    struct buffers none;
    const int64_t floats =
        buffers_layout(&none, NULL, MLA_HEADS, room + shape->rope_dim, room, shape);
    float *scratch = cpu_scratch(device, CPU_SLOT_ATTENTION,
                                 (size_t)(floats * device->threads) * sizeof *scratch);
#pragma omp parallel for schedule(dynamic, 1) num_threads(device->threads)
    for (int64_t i = 0; i < chunks * shape->batch; i++) { /* a chunk's weights stay in the caches */
        const int64_t b = i % shape->batch, first = i / shape->batch * MLA_HEADS,
                      row = b * shape->capacity, left = shape->heads - first;
        struct buffers own;
        buffers_layout(&own, scratch + omp_get_thread_num() * floats, MLA_HEADS,
                       room + shape->rope_dim, room, shape);
        const struct task task = {.heads = left < MLA_HEADS ? left : MLA_HEADS,
                                  .length = lengths[b],
                                  .k = at(c_cache, shape->dtype, row * rank),
                                  .k2 = at(rope_cache, shape->dtype, row * shape->rope_dim),
                                  .v = at(c_cache, shape->dtype, row * rank),
                                  .k_dim = rank,
                                  .k2_dim = shape->rope_dim,
                                  .v_dim = rank,
                                  .k_stride = rank,
                                  .v_stride = rank,
                                  .q = own.q,
                                  .score = own.score,
                                  .out = own.out,
                                  .row = own.row,
                                  .dtype = shape->dtype};
        assert(task.length <= shape->capacity);
        if (task.length == 0) {
            zero_row(o, shape, b * shape->o_stride + first * shape->v_dim,
                     task.heads * shape->v_dim);
            continue;
        }
        absorb(&task, q, w_kv_b, shape, b, first);
        attend(&task);
        expand(&task, o, w_kv_b, shape, b, first);
    }
}
