/* Attention by tiles (Dao et al. 2022): scores exist for 64 queries x 64 keys at a time. One task
 * is one query head of one sample, so that small batches fill many cores; gradients that several
 * heads share are added in the order of the heads, whatever the number of threads. Sums are f32
 * whatever the storage. Factors are f32 too, but for bf16 where the processor can: it multiplies
 * pairs (tile.h), whose products are exact; inputs are taken as they are stored, and weights and
 * gradients of scores are rounded to bf16 when they are factors, as FlashAttention does on GPUs. */
#include <assert.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/attention_head.h"
#include "kernels/cpu/attention_load.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/share.h"

/* One query head of one sample, and where its rows begin. */
struct head {
    int64_t sample, head, group;
    int64_t q, o, lse, k, k_rope, v; /* first elements */
};

static struct head find_head(const struct attention_shape *shape, int64_t task)
{
    const int64_t sample = task / shape->heads, head = task % shape->heads,
                  group = head / (shape->heads / shape->kv_heads), row = sample * shape->sequence,
                  key = sample * keys_of(shape);
    return (struct head){.sample = sample,
                         .head = head,
                         .group = group,
                         .q = row * shape->q_stride + head * shape->qk_dim,
                         .o = row * shape->o_stride + head * shape->v_dim,
                         .lse = task * shape->sequence,
                         .k = key * shape->k_stride + group * shape->k_head_stride,
                         .k_rope = key * shape->k_rope_stride,
                         .v = key * shape->v_stride + group * shape->v_head_stride};
}

/* What an op reads beside queries. */
struct inputs {
    const void *k, *k_rope, *v, *d_o, *o;
};

/* `rows` of them from row `from` of a head's on. */
static struct head_rows rows_from(const void *data, enum dtype dtype, int64_t first, int64_t stride,
                                  int64_t from, int64_t rows, int64_t dim)
{
    return (struct head_rows){.data = (void *)data,
                              .dtype = dtype,
                              .first = first + from * stride,
                              .stride = stride,
                              .rows = rows,
                              .dim = dim};
}

static int64_t rows_left(int64_t from, int64_t all)
{
    return all - from < TILE ? all - from : TILE;
}

/* Rows [from, from + rows) of a head's queries, keys, their shared part, values and outputs. */
static struct head_rows q_rows(const void *q, const struct attention_shape *s, const struct head *h,
                               int64_t from, int64_t rows)
{
    return rows_from(q, s->dtype, h->q, s->q_stride, from, rows, s->qk_dim);
}

static struct head_rows k_rows(const void *k, const struct attention_shape *s, const struct head *h,
                               int64_t from, int64_t rows)
{
    return rows_from(k, s->dtype, h->k, s->k_stride, from, rows, s->qk_dim - s->rope_dim);
}

static struct head_rows k_rope_rows(const void *k_rope, const struct attention_shape *s,
                                    const struct head *h, int64_t from, int64_t rows)
{
    return rows_from(k_rope, s->dtype, h->k_rope, s->k_rope_stride, from, rows, s->rope_dim);
}

static struct head_rows v_rows(const void *v, const struct attention_shape *s, const struct head *h,
                               int64_t from, int64_t rows)
{
    return rows_from(v, s->dtype, h->v, s->v_stride, from, rows, s->v_dim);
}

static struct head_rows o_rows(const void *o, const struct attention_shape *s, const struct head *h,
                               int64_t from, int64_t rows)
{
    return rows_from(o, s->dtype, h->o, s->o_stride, from, rows, s->v_dim);
}

/* Of a part: a head's f32 results, in rows of `dim` for each head. */
static struct head_rows part_rows(void *data, const struct attention_shape *s, const struct head *h,
                                  int64_t from, int64_t rows, int64_t dim)
{
    return rows_from(data, DTYPE_F32, (h->sample * s->sequence * s->heads + h->head) * dim,
                     s->heads * dim, from, rows, dim);
}

/* A tile of keys and values at a time, by way of one in the first cache. */
static void load_key_pairs(struct work *w, const struct attention_shape *shape,
                           const struct head *h, const struct inputs *in)
{
    const int64_t own = shape->qk_dim - shape->rope_dim, keys = keys_of(shape);
    for (int64_t k0 = 0; k0 < keys; k0 += TILE) {
        const int64_t rows = rows_left(k0, keys);
        const struct head_rows k = k_rows(in->k, shape, h, k0, rows),
                               rope = k_rope_rows(in->k_rope, shape, h, k0, rows),
                               v = v_rows(in->v, shape, h, k0, rows);
        float *by_row = w->backward ? w->k + k0 / 2 * w->qk : NULL;
        if (rows < TILE) { /* of another tile's */
            memset(w->k_tile, 0, (size_t)(TILE * w->qk / 2) * sizeof *w->k_tile);
            memset(w->v_tile, 0, (size_t)(TILE * w->v / 2) * sizeof *w->v_tile);
        }
        pairs_load(w->k_tile, by_row, w->qk, 0, &k);
        if (rope.dim > 0) {
            pairs_load(w->k_tile, by_row, w->qk, own, &rope);
        }
        wide_transpose(w->k_t + k0 * w->qk / 2, w->k_tile, w->qk / 2);
        if (w->backward) {
            pairs_load(w->v_tile, NULL, w->v, 0, &v);
            wide_transpose(w->v_t + k0 * w->v / 2, w->v_tile, w->v / 2);
        } else {
            pairs_load(NULL, w->vals + k0 / 2 * w->v, w->v, 0, &v);
        }
    }
}

/* As f32. */
static void load_rows(const struct work *w, float *out, int64_t cols, const struct head_rows *from,
                      float scale)
{
    if (w->wide) {
        wide_load(out, cols, from);
    } else {
        head_load(out, cols, from, scale);
    }
}

/* Of all tiles. */
static void transpose_rows(const struct work *w, float *out, const float *in, int64_t cols)
{
    if (!w->wide) {
        head_transpose(out, in, w->padded, cols);
        return;
    }
    for (int64_t row = 0; row < w->padded; row += TILE) {
        wide_transpose(out + row * cols, in + row * cols, cols);
    }
}

/* Nothing to do when the thread's last head read the same keys. */
static void load_keys(struct work *w, const struct attention_shape *shape, const struct head *h,
                      const struct inputs *in)
{
    const int64_t own = shape->qk_dim - shape->rope_dim, keys = keys_of(shape),
                  wanted = h->sample * shape->kv_heads + h->group;
    const struct head_rows k = k_rows(in->k, shape, h, 0, keys),
                           rope = k_rope_rows(in->k_rope, shape, h, 0, keys),
                           v = v_rows(in->v, shape, h, 0, keys);
    if (w->loaded == wanted) {
        return;
    }
    w->loaded = wanted;
    if (w->pairs) {
        load_key_pairs(w, shape, h, in);
        return;
    }
    load_rows(w, w->vals, w->v, &v, 1);
    load_rows(w, w->k, w->qk, &k, 1);
    if (rope.dim > 0) {
        load_rows(w, w->k + own, w->qk, &rope, 1);
    }
    transpose_rows(w, w->k_t, w->k, w->qk);
    if (w->backward) {
        transpose_rows(w, w->v_t, w->vals, w->v);
    }
}

/* To the beginning of w's. */
static void load_queries(struct work *w, const struct attention_shape *shape,
                         const struct head_rows *q)
{
    if (w->pairs) {
        pairs_load(w->q_pairs, w->backward ? w->q : NULL, w->qk, 0, q);
    } else {
        load_rows(w, w->q, w->qk, q, shape->scale);
    }
}

static void store_rows(const struct work *w, const struct head_rows *to, float *in, int64_t cols,
                       float scale)
{
    if (w->pairs) {
        pairs_store(to, in, cols, scale);
    } else if (w->wide) {
        wide_store(to, in, cols, scale);
    } else {
        head_store(to, in, cols, scale);
    }
}

/* All queries of a head whose keys w holds. */
static void forward_head(struct work *w, const struct attention_shape *shape, const struct head *h,
                         void *o, float *lse, const void *q)
{
    for (int64_t q0 = 0; q0 < shape->sequence; q0 += TILE) {
        const int64_t rows = rows_left(q0, shape->sequence);
        const struct head_rows from = q_rows(q, shape, h, q0, rows),
                               part = part_rows(o, shape, h, q0, rows, shape->v_dim),
                               to = o_rows(o, shape, h, q0, rows);
        float own[TILE];
        load_queries(w, shape, &from);
        work_forward_tile(w, shape, h->sample, q0, own);
        if (shape->keys > 0) {
            head_merge(&part, lse + q0, w->out, w->v, own, shape->merges);
        } else {
            store_rows(w, &to, w->out, w->v, 1);
            memcpy(lse + q0, own, (size_t)rows * sizeof *own);
        }
    }
}

static enum cpu_attention way_of(struct device *device, const struct attention_shape *shape)
{
    const enum cpu_attention widest = cpu_device_of(device)->attention;
    return widest == ATTENTION_PAIRS && shape->dtype != DTYPE_BF16 ? ATTENTION_WIDE : widest;
}

void cpu_attention_forward(struct device *device, void *o, float *lse, const void *q, const void *k,
                           const void *k_rope, const void *v, const struct attention_shape *shape)
{
    const enum cpu_attention way = way_of(device, shape);
    const struct inputs in = {.k = k, .k_rope = k_rope, .v = v};
    const size_t floats = work_floats(shape, false, way);
    float *scratch =
        cpu_scratch(device, CPU_SLOT_ATTENTION, floats * (size_t)device->threads * sizeof *scratch);
    struct share *shares =
        cpu_scratch(device, CPU_SLOT_SHARE, (size_t)device->threads * sizeof *shares);
    assert(shape->heads % shape->kv_heads == 0 && shape->ahead >= 0);
#pragma omp parallel num_threads(device->threads)
    {
        const int threads = omp_get_num_threads(), self = omp_get_thread_num();
        struct work *w = work_init(scratch + floats * (size_t)self, shape, false, way);
        shares[self] = share_even(shape->batch * shape->heads, threads, self);
#pragma omp barrier
        int64_t task;
        while ((task = share_take(shares, threads, self)) >= 0) {
            const struct head h = find_head(shape, task);
            load_keys(w, shape, &h, &in);
            forward_head(w, shape, &h, o, lse + h.lse, q);
        }
    }
}

/* dO, and delta = rowsum(dO * O). */
static void load_output_pairs(struct work *w, const struct attention_shape *shape,
                              const struct head *h, const struct inputs *in)
{
    for (int64_t q0 = 0; q0 < shape->sequence; q0 += TILE) {
        const int64_t rows = rows_left(q0, shape->sequence);
        const struct head_rows o = o_rows(in->o, shape, h, q0, rows),
                               d_o = o_rows(in->d_o, shape, h, q0, rows);
        float *by_column = w->do_pairs + q0 * w->v / 2;
        if (rows < TILE) {
            memset(w->v_tile, 0, (size_t)(TILE * w->v / 2) * sizeof *w->v_tile);
        }
        pairs_load(by_column, w->d_out + q0 / 2 * w->v, w->v, 0, &d_o);
        pairs_load(w->v_tile, NULL, w->v, 0, &o);
        pairs_row_dots(w->delta + q0, by_column, w->v_tile, w->v / 2);
    }
}

/* The same in f32: of O a tile at a time is enough. */
static void load_output_rows(struct work *w, const struct attention_shape *shape,
                             const struct head *h, const struct inputs *in)
{
    for (int64_t q0 = 0; q0 < shape->sequence; q0 += TILE) {
        const int64_t rows = rows_left(q0, shape->sequence);
        const struct head_rows o = o_rows(in->o, shape, h, q0, rows),
                               d_o = o_rows(in->d_o, shape, h, q0, rows);
        if (rows < TILE) {
            memset(w->out, 0, (size_t)(TILE * w->v) * sizeof *w->out);
        }
        wide_load(w->d_out + q0 * w->v, w->v, &d_o);
        wide_load(w->out, w->v, &o);
        wide_row_dots(w->delta + q0, w->d_out + q0 * w->v, w->out, w->v);
    }
}

static void load_outputs(struct work *w, const struct attention_shape *shape, const struct head *h,
                         const struct inputs *in)
{
    const struct head_rows o = o_rows(in->o, shape, h, 0, shape->sequence),
                           d_o = o_rows(in->d_o, shape, h, 0, shape->sequence);
    if (w->pairs) {
        load_output_pairs(w, shape, h, in);
        return;
    }
    if (w->wide) {
        load_output_rows(w, shape, h, in);
        return;
    }
    head_load(w->d_out, w->v, &d_o, 1);
    head_load(w->out, w->v, &o, 1);
    for (int64_t t = 0; t < shape->sequence; t++) {
        float sum = 0;
        for (int64_t i = 0; i < w->v; i++) {
            sum += w->d_out[t * w->v + i] * w->out[t * w->v + i];
        }
        w->delta[t] = sum;
    }
}

/* Sums over heads, f32: of dk_rope over all of them, of dk and dv over a group's; NULL where there
 * is nothing to sum. */
struct sums {
    float *rope;     /* [N, rope_dim] */
    float *own, *dv; /* [B*G, T, qk_dim - rope_dim], [B*G, T, v_dim] */
    size_t floats;   /* all together */
};

/* `memory` NULL: only how many floats it takes. */
static struct sums sums_layout(float *memory, const struct attention_shape *shape)
{
    const int64_t rows = shape->batch * keys_of(shape),
                  shared = shape->heads > shape->kv_heads ? rows * shape->kv_heads : 0,
                  rope = rows * shape->rope_dim, own = shared * (shape->qk_dim - shape->rope_dim);
    struct sums sums = {.floats = (size_t)(rope + own + shared * shape->v_dim)};
    if (memory != NULL) {
        sums.rope = rope > 0 ? memory : NULL;
        sums.own = shared > 0 ? memory + rope : NULL;
        sums.dv = shared > 0 ? memory + rope + own : NULL;
    }
    return sums;
}

/* Where a head's keys begin in sums, and how far apart they are. */
static struct head_rows sum_rows(float *sum, const struct attention_shape *shape, int64_t index,
                                 int64_t dim)
{
    const int64_t keys = keys_of(shape);
    return rows_from(sum, DTYPE_F32, index * keys * dim, dim, 0, keys, dim);
}

/* What dk lacks in w: queries may carry the scale. */
static float key_scale(const struct work *w, const struct attention_shape *shape)
{
    return w->wide ? shape->scale : 1;
}

/* Called in the order of the heads. */
static void add_shared(const struct sums *sums, const struct work *w,
                       const struct attention_shape *shape, const struct head *h)
{
    const int64_t own = shape->qk_dim - shape->rope_dim,
                  group = h->sample * shape->kv_heads + h->group;
    if (sums->rope != NULL) {
        const struct head_rows rope = sum_rows(sums->rope, shape, h->sample, shape->rope_dim);
        head_add(&rope, w->shared ? w->dk + own : w->rope, w->shared ? w->qk : shape->rope_dim,
                 key_scale(w, shape));
    }
    if (sums->own != NULL) {
        const struct head_rows dk = sum_rows(sums->own, shape, group, own),
                               dv = sum_rows(sums->dv, shape, group, shape->v_dim);
        head_add(&dk, w->dk, w->qk, key_scale(w, shape));
        head_add(&dv, w->dv, w->v, 1);
    }
}

/* Gradients of what a backward op was given. */
struct gradients {
    void *dq, *dk, *dk_rope, *dv;
};

/* Gradients of a part of an attention add, in f32. */
static void store(const struct work *w, const struct attention_shape *shape,
                  const struct head_rows *to, float *in, int64_t cols, float scale)
{
    if (shape->keys > 0) {
        head_add(to, in, cols, scale);
    } else {
        store_rows(w, to, in, cols, scale);
    }
}

static void store_queries(void *dq, const struct work *w, const struct attention_shape *shape,
                          const struct head *h)
{
    const int64_t rows = shape->sequence;
    const struct head_rows to = shape->keys == 0 ? q_rows(dq, shape, h, 0, rows)
                                                 : part_rows(dq, shape, h, 0, rows, shape->qk_dim);
    store(w, shape, &to, w->dq, w->qk, shape->scale);
}

/* dk and dv of a tile of keys that no other head reads; the part of dk that all read is kept. */
static void store_keys(const struct gradients *out, const struct work *w,
                       const struct attention_shape *shape, const struct head *h, int64_t k0)
{
    const int64_t rows = rows_left(k0, keys_of(shape)), rope = shape->rope_dim;
    const struct head_rows dk = k_rows(out->dk, shape, h, k0, rows),
                           dv = v_rows(out->dv, shape, h, k0, rows);
    for (int64_t i = 0; i < rows && rope > 0; i++) {
        memcpy(w->rope + (k0 + i) * rope, w->dk + i * w->qk + dk.dim,
               (size_t)rope * sizeof *w->rope);
    }
    store(w, shape, &dk, w->dk, w->qk, key_scale(w, shape));
    store(w, shape, &dv, w->dv, w->v, 1);
}

/* Behind the last head of a group: dk, dv; behind the last head of a sample: dk_rope. */
static void store_shared(const struct gradients *out, const struct sums *sums, const struct work *w,
                         const struct attention_shape *shape, const struct head *h)
{
    const int64_t keys = keys_of(shape), own = shape->qk_dim - shape->rope_dim,
                  per_group = shape->heads / shape->kv_heads,
                  row = (h->sample * shape->kv_heads + h->group) * keys;
    if (sums->own != NULL && h->head % per_group == per_group - 1) {
        const struct head_rows dk = k_rows(out->dk, shape, h, 0, keys),
                               dv = v_rows(out->dv, shape, h, 0, keys);
        store(w, shape, &dk, sums->own + row * own, own, 1);
        store(w, shape, &dv, sums->dv + row * shape->v_dim, shape->v_dim, 1);
    }
    if (h->head == shape->heads - 1 && sums->rope != NULL) {
        const struct head_rows rope = k_rope_rows(out->dk_rope, shape, h, 0, keys);
        store(w, shape, &rope, sums->rope + h->sample * keys * shape->rope_dim, shape->rope_dim, 1);
    }
}

/* Queries of a head whose keys w holds; what heads share stays in w. */
static void backward_head(struct work *w, const struct attention_shape *shape, const struct head *h,
                          const struct gradients *out, const float *lse)
{
    work_begin_backward(w, shape, lse);
    for (int64_t k0 = 0; k0 < keys_of(shape); k0 += TILE) {
        work_backward_tile(w, shape, h->sample, k0);
        if (!w->shared) {
            store_keys(out, w, shape, h, k0);
        }
    }
    store_queries(out->dq, w, shape, h);
}

/* All heads cost the same, so none waits long for its turn to add. */
void cpu_attention_backward(struct device *device, void *dq, void *dk, void *dk_rope, void *dv,
                            const void *d_o, const void *o, const float *lse, const void *q,
                            const void *k, const void *k_rope, const void *v,
                            const struct attention_shape *shape)
{
    const enum cpu_attention way = way_of(device, shape);
    const struct inputs in = {.k = k, .k_rope = k_rope, .v = v, .d_o = d_o, .o = o};
    const struct gradients out = {dq, dk, dk_rope, dv};
    const size_t floats = work_floats(shape, true, way),
                 shared = (sums_layout(NULL, shape).floats + 15) / 16 * 16;
    float *memory = cpu_scratch(device, CPU_SLOT_ATTENTION,
                                (shared + floats * (size_t)device->threads) * sizeof *memory);
    const struct sums sums = sums_layout(memory, shape);
    memset(memory, 0, shared * sizeof *memory);
#pragma omp parallel num_threads(device->threads)
    {
        struct work *w =
            work_init(memory + shared + floats * (size_t)omp_get_thread_num(), shape, true, way);
#pragma omp for schedule(dynamic, 1) ordered
        for (int64_t task = 0; task < shape->batch * shape->heads; task++) {
            const struct head h = find_head(shape, task);
            const struct head_rows from = q_rows(q, shape, &h, 0, shape->sequence);
            load_keys(w, shape, &h, &in);
            load_queries(w, shape, &from);
            load_outputs(w, shape, &h, &in);
            backward_head(w, shape, &h, &out, lse + h.lse);
#pragma omp ordered
            add_shared(&sums, w, shape, &h);
            store_shared(&out, &sums, w, shape, &h);
        }
    }
}
