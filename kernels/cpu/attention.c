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
#include "kernels/cpu/attention_mask.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/tile.h"

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

/* Of a part: where a head's f32 results begin in rows of `dim` for each head. */
static float *part_rows(void *data, const struct attention_shape *shape, const struct head *h,
                        int64_t dim)
{
    return (float *)data + (h->sample * shape->sequence * shape->heads + h->head) * dim;
}

/* Pairs of all keys and values; q_pairs and do_pairs serve on the way. */
static void load_key_pairs(struct work *w, const struct attention_shape *shape,
                           const struct head *h, const void *k, const void *k_rope, const void *v)
{
    const int64_t own = shape->qk_dim - shape->rope_dim;
    const struct attention_shape rows = key_rows(shape);
    head_load_pairs(w->q_pairs, w->qk, 0, k, &rows, h->k, shape->k_stride, own);
    if (shape->rope_dim > 0) {
        head_load_pairs(w->q_pairs, w->qk, own, k_rope, &rows, h->k_rope, shape->k_rope_stride,
                        shape->rope_dim);
    }
    head_transpose(w->k_t, w->q_pairs, w->padded, w->qk / 2);
    head_load_row_pairs(w->vals, w->v, v, &rows, h->v, shape->v_stride, shape->v_dim);
    if (!w->backward) {
        return;
    }
    head_load_pairs(w->do_pairs, w->v, 0, v, &rows, h->v, shape->v_stride, shape->v_dim);
    head_transpose(w->v_t, w->do_pairs, w->padded, w->v / 2);
    head_load_row_pairs(w->k, w->qk, k, &rows, h->k, shape->k_stride, own);
    if (shape->rope_dim > 0) {
        head_load_row_pairs(w->k + own, w->qk, k_rope, &rows, h->k_rope, shape->k_rope_stride,
                            shape->rope_dim);
    }
}

/* Nothing to do when the thread's last head read the same keys. */
static void load_keys(struct work *w, const struct attention_shape *shape, const struct head *h,
                      const void *k, const void *k_rope, const void *v)
{
    const int64_t own = shape->qk_dim - shape->rope_dim,
                  wanted = h->sample * shape->kv_heads + h->group;
    const struct attention_shape rows = key_rows(shape);
    if (w->loaded == wanted) {
        return;
    }
    w->loaded = wanted;
    if (w->pairs) {
        load_key_pairs(w, shape, h, k, k_rope, v);
        return;
    }
    head_load(w->vals, w->v, v, &rows, h->v, shape->v_stride, shape->v_dim, 1);
    head_load(w->k, w->qk, k, &rows, h->k, shape->k_stride, own, 1);
    if (shape->rope_dim > 0) {
        head_load(w->k + own, w->qk, k_rope, &rows, h->k_rope, shape->k_rope_stride,
                  shape->rope_dim, 1);
    }
    head_transpose(w->k_t, w->k, w->padded, w->qk);
    if (w->backward) {
        head_transpose(w->v_t, w->vals, w->padded, w->v);
    }
}

/* Rows of keys that stood where queries stand now, in the last tile of these. */
static void clear_behind(float *rows, int64_t cols, const struct attention_shape *shape)
{
    const int64_t behind = round_up(shape->sequence, TILE) - shape->sequence;
    memset(rows + shape->sequence * cols, 0, (size_t)(behind * cols) * sizeof *rows);
}

static void load_queries(struct work *w, const struct attention_shape *shape, const struct head *h,
                         const void *q)
{
    if (!w->pairs) {
        head_load(w->q, w->qk, q, shape, h->q, shape->q_stride, shape->qk_dim, shape->scale);
        return;
    }
    head_load_pairs(w->q_pairs, w->qk, 0, q, shape, h->q, shape->q_stride, shape->qk_dim);
    clear_behind(w->q_pairs, w->qk / 2, shape);
    if (w->backward) {
        head_load_row_pairs(w->q, w->qk, q, shape, h->q, shape->q_stride, shape->qk_dim);
    }
}

/* All queries of a head, which w holds. */
static void forward_head(struct work *w, const struct attention_shape *shape, const struct head *h,
                         void *o, float *lse)
{
    const bool part = shape->keys > 0;
    float *own = part ? w->delta : lse;
    for (int64_t q0 = 0; q0 < shape->sequence; q0 += TILE) {
        work_forward_tile(w, shape, h->sample, q0, own);
    }
    if (part) {
        head_merge(part_rows(o, shape, h, shape->v_dim), lse, w->out, w->v, own, shape);
    } else {
        head_store(o, w->out, w->v, shape, h->o, shape->o_stride, shape->v_dim);
    }
}

void cpu_attention_forward(struct device *device, void *o, float *lse, const void *q, const void *k,
                           const void *k_rope, const void *v, const struct attention_shape *shape)
{
    const size_t floats = work_floats(shape, false);
    float *scratch =
        cpu_scratch(device, CPU_SLOT_ATTENTION, floats * (size_t)device->threads * sizeof *scratch);
    assert(shape->heads % shape->kv_heads == 0 && shape->ahead >= 0);
#pragma omp parallel num_threads(device->threads)
    {
        struct work *w = work_init(scratch + floats * (size_t)omp_get_thread_num(), shape, false);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < shape->batch * shape->heads; task++) {
            const struct head h = find_head(shape, task);
            load_keys(w, shape, &h, k, k_rope, v);
            load_queries(w, shape, &h, q);
            forward_head(w, shape, &h, o, lse + h.lse);
        }
    }
}

/* dO, and delta = rowsum(dO * O). With pairs, w->out holds O as pairs. */
static void load_outputs(struct work *w, const struct attention_shape *shape, const struct head *h,
                         const void *o, const void *d_o)
{
    if (w->pairs) {
        head_load_row_pairs(w->d_out, w->v, d_o, shape, h->o, shape->o_stride, shape->v_dim);
        head_load_pairs(w->out, w->v, 0, o, shape, h->o, shape->o_stride, shape->v_dim);
        head_load_pairs(w->do_pairs, w->v, 0, d_o, shape, h->o, shape->o_stride, shape->v_dim);
        clear_behind(w->do_pairs, w->v / 2, shape);
        tile_row_dots_pairs(w->delta, w->do_pairs, w->out, round_up(shape->sequence, TILE),
                            w->v / 2);
        return;
    }
    head_load(w->d_out, w->v, d_o, shape, h->o, shape->o_stride, shape->v_dim, 1);
    head_load(w->out, w->v, o, shape, h->o, shape->o_stride, shape->v_dim, 1);
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

/* Called in the order of the heads. */
static void add_shared(const struct sums *sums, const struct work *w,
                       const struct attention_shape *shape, const struct head *h)
{
    const int64_t t = keys_of(shape), own = shape->qk_dim - shape->rope_dim,
                  rows = (h->sample * shape->kv_heads + h->group) * t;
    if (sums->rope != NULL) {
        head_add(sums->rope + h->sample * t * shape->rope_dim, shape->rope_dim, w->dk + own, w->qk,
                 t, shape->rope_dim);
    }
    if (sums->own != NULL) {
        head_add(sums->own + rows * own, own, w->dk, w->qk, t, own);
        head_add(sums->dv + rows * shape->v_dim, shape->v_dim, w->dv, w->v, t, shape->v_dim);
    }
}

/* Gradients of what a backward op was given. */
struct gradients {
    void *dq, *dk, *dk_rope, *dv;
};

/* Gradients of keys or values: of a part of an attention they add, in f32. */
static void store_keys(void *data, const float *in, int64_t cols,
                       const struct attention_shape *shape, int64_t first, int64_t stride,
                       int64_t dim)
{
    const struct attention_shape rows = key_rows(shape);
    if (shape->keys == 0) {
        head_store(data, in, cols, &rows, first, stride, dim);
    } else {
        head_add((float *)data + first, stride, in, cols, rows.sequence, dim);
    }
}

static void store_queries(void *dq, const struct work *w, const struct attention_shape *shape,
                          const struct head *h)
{
    if (shape->keys == 0) {
        head_store(dq, w->dq, w->qk, shape, h->q, shape->q_stride, shape->qk_dim);
    } else {
        head_add(part_rows(dq, shape, h, shape->qk_dim), shape->heads * shape->qk_dim, w->dq, w->qk,
                 shape->sequence, shape->qk_dim);
    }
}

/* Behind the last head of a group: dk, dv; behind the last head of a sample: dk_rope. */
static void store_shared(const struct gradients *out, const struct sums *sums, const struct work *w,
                         const struct attention_shape *shape, const struct head *h)
{
    const int64_t t = keys_of(shape), own = shape->qk_dim - shape->rope_dim,
                  per_group = shape->heads / shape->kv_heads,
                  rows = (h->sample * shape->kv_heads + h->group) * t;
    if (h->head % per_group == per_group - 1) {
        const bool shared = sums->own != NULL;
        store_keys(out->dk, shared ? sums->own + rows * own : w->dk, shared ? own : w->qk, shape,
                   h->k, shape->k_stride, own);
        store_keys(out->dv, shared ? sums->dv + rows * shape->v_dim : w->dv,
                   shared ? shape->v_dim : w->v, shape, h->v, shape->v_stride, shape->v_dim);
    }
    if (h->head == shape->heads - 1 && sums->rope != NULL) {
        store_keys(out->dk_rope, sums->rope + h->sample * t * shape->rope_dim, shape->rope_dim,
                   shape, h->k_rope, shape->k_rope_stride, shape->rope_dim);
    }
}

/* All heads cost the same, so none waits long for its turn to add. */
void cpu_attention_backward(struct device *device, void *dq, void *dk, void *dk_rope, void *dv,
                            const void *d_o, const void *o, const float *lse, const void *q,
                            const void *k, const void *k_rope, const void *v,
                            const struct attention_shape *shape)
{
    const struct gradients out = {dq, dk, dk_rope, dv};
    const size_t floats = work_floats(shape, true),
                 shared = (sums_layout(NULL, shape).floats + 15) / 16 * 16;
    float *memory = cpu_scratch(device, CPU_SLOT_ATTENTION,
                                (shared + floats * (size_t)device->threads) * sizeof *memory);
    const struct sums sums = sums_layout(memory, shape);
    memset(memory, 0, shared * sizeof *memory);
#pragma omp parallel num_threads(device->threads)
    {
        struct work *w =
            work_init(memory + shared + floats * (size_t)omp_get_thread_num(), shape, true);
#pragma omp for schedule(dynamic, 1) ordered
        for (int64_t task = 0; task < shape->batch * shape->heads; task++) {
            const struct head h = find_head(shape, task);
            load_keys(w, shape, &h, k, k_rope, v);
            load_queries(w, shape, &h, q);
            load_outputs(w, shape, &h, o, d_o);
            work_backward(w, shape, h.sample, lse + h.lse);
            store_queries(dq, w, shape, &h);
#pragma omp ordered
            add_shared(&sums, w, shape, &h);
            store_shared(&out, &sums, w, shape, &h);
        }
    }
}
