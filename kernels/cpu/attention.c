/* Attention by tiles (Dao et al. 2022): scores exist for 64 queries x 64 keys at a time. One task
 * is one key/value head of one sample with all its query heads, so every sum has one owner and a
 * fixed order. Tiles are f32 whatever the storage. */
#include <assert.h>
#include <omp.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/tile.h"
#include "kernels/cpu/vector_math.h"

enum { TILE = 64, LANES = 8 };
static const float MASKED =
    -1e30F; /* finite: a row without any visible key yet must not become NaN */

/* f32 copies of what a task needs; rows padded to whole tiles, columns to whole vectors, with
 * zeros. */
struct work {
    int64_t padded, qk, v; /* T, qk_dim, v_dim rounded up */
    float *q, *k, *vals;   /* [T,qk] [T,qk] [T,v] */
    float *k_t, *v_t;      /* [T/TILE, qk, TILE] [T/TILE, v, TILE]: a tile of keys is contiguous */
    float *out, *d_out;    /* [T,v] */
    float *dq, *dk, *dv;   /* [T,qk] [T,qk] [T,v] */
    float *delta;          /* [T] rowsum(dO * O) */
    float score[TILE * TILE], dscore[TILE * TILE];
};

static int64_t up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static int64_t first_visible(const struct attention_shape *shape, int64_t sample, int64_t t)
{
    const int64_t window =
        shape->window > 0 && t - shape->window + 1 > 0 ? t - shape->window + 1 : 0;
    const int64_t document = shape->first != NULL ? shape->first[sample * shape->sequence + t] : 0;
    return window > document ? window : document;
}

static void mask_tile(float *score, const struct attention_shape *shape, int64_t sample, int64_t q0,
                      int64_t k0)
{
    for (int64_t i = 0; i < TILE && q0 + i < shape->sequence; i++) {
        const int64_t low = first_visible(shape, sample, q0 + i) - k0, high = q0 + i - k0;
        for (int64_t j = 0; j < TILE; j++) {
            if (j < low || j > high) {
                score[i * TILE + j] = MASKED;
            }
        }
    }
}

/* The first key tile any query of this tile sees: first_visible never falls along a sample. */
static int64_t first_tile(const struct attention_shape *shape, int64_t sample, int64_t q0)
{
    return first_visible(shape, sample, q0) / TILE * TILE;
}

static bool needs_mask(const struct attention_shape *shape, int64_t q0, int64_t k0)
{
    return k0 == q0 || shape->window > 0 || shape->first != NULL;
}

static void scores(struct work *w, const struct attention_shape *shape, int64_t sample, int64_t q0,
                   int64_t k0)
{
    memset(w->score, 0, sizeof w->score);
    tile_product(w->score, TILE, w->q + q0 * w->qk, w->qk, 1, w->k_t + k0 * w->qk, TILE,
                 (int64_t[]){TILE, TILE, w->qk});
    if (needs_mask(shape, q0, k0)) {
        mask_tile(w->score, shape, sample, q0, k0);
    }
}

/* One row of online softmax: scores become weights, `most` and `sum` advance; returns what the old
 * sums shrink by. */
CPU_CLONES static float softmax_row(float *score, float *most, float *sum)
{
    float partial[LANES] = {0}, high = *most, total = 0;
    for (int j = 0; j < TILE; j++) {
        high = score[j] > high ? score[j] : high;
    }
    for (int j = 0; j < TILE; j++) {
        score[j] = fast_exp(score[j] - high);
    }
    for (int j = 0; j < TILE; j += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            partial[lane] += score[j + lane];
        }
    }
    for (int lane = 0; lane < LANES; lane++) {
        total += partial[lane];
    }
    const float shrink = fast_exp(*most - high);
    *sum = *sum * shrink + total;
    *most = high;
    return shrink;
}

CPU_CLONES static void scale_row(float *row, float scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        row[i] *= scale;
    }
}

/* 64 queries of one head against all keys they see; out rows normalised, lse stored. */
static void forward_tile(struct work *w, const struct attention_shape *shape, int64_t sample,
                         int64_t q0, float *lse)
{
    float most[TILE], sum[TILE] = {0};
    for (int i = 0; i < TILE; i++) {
        most[i] = MASKED;
    }
    memset(w->out + q0 * w->v, 0, (size_t)(TILE * w->v) * sizeof *w->out);
    for (int64_t k0 = first_tile(shape, sample, q0); k0 <= q0; k0 += TILE) {
        scores(w, shape, sample, q0, k0);
        for (int64_t i = 0; i < TILE; i++) {
            const float shrink = softmax_row(w->score + i * TILE, &most[i], &sum[i]);
            scale_row(w->out + (q0 + i) * w->v, shrink, w->v);
        }
        tile_product(w->out + q0 * w->v, w->v, w->score, TILE, 1, w->vals + k0 * w->v, w->v,
                     (int64_t[]){TILE, w->v, TILE});
    }
    for (int64_t i = 0; i < TILE && q0 + i < shape->sequence; i++) {
        scale_row(w->out + (q0 + i) * w->v, 1.0F / sum[i], w->v);
        lse[q0 + i] = most[i] + __builtin_logf(sum[i]);
    }
}

/* Rows of one head into a padded f32 matrix, scaled. */
static void load(float *out, int64_t cols, const void *data, const struct attention_shape *shape,
                 int64_t first, int64_t stride, int64_t dim, float scale)
{
    for (int64_t t = 0; t < shape->sequence; t++) {
        row_load(out + t * cols, data, shape->dtype, first + t * stride, dim);
        if (scale != 1.0F) {
            scale_row(out + t * cols, scale, dim);
        }
    }
}

static void store(void *data, const float *in, int64_t cols, const struct attention_shape *shape,
                  int64_t first, int64_t stride, int64_t dim)
{
    for (int64_t t = 0; t < shape->sequence; t++) {
        row_store(data, shape->dtype, first + t * stride, in + t * cols, dim);
    }
}

/* Each tile of rows [TILE, cols] becomes [cols, TILE]. */
CPU_CLONES static void transpose(float *out, const float *in, int64_t rows, int64_t cols)
{
    for (int64_t r0 = 0; r0 < rows; r0 += TILE) {
        float *tile = out + r0 * cols;
        const float *from = in + r0 * cols;
        for (int64_t c = 0; c < cols; c++) {
            for (int64_t r = 0; r < TILE; r++) {
                tile[c * TILE + r] = from[r * cols + c];
            }
        }
    }
}

static size_t work_floats(const struct attention_shape *shape)
{
    const int64_t t = up(shape->sequence, TILE), qk = up(shape->qk_dim, TILE_COLS),
                  v = up(shape->v_dim, TILE_COLS);
    return (size_t)(5 * t * qk + 5 * t * v + t) + sizeof(struct work) / sizeof(float) + 64;
}

/* Per-thread scratch, zeroed: padding stays zero because only real rows and columns are loaded. */
static struct work *work_init(float *memory, const struct attention_shape *shape)
{
    struct work *w = (struct work *)(void *)memory;
    memset(memory, 0, work_floats(shape) * sizeof *memory);
    w->padded = up(shape->sequence, TILE);
    w->qk = up(shape->qk_dim, TILE_COLS);
    w->v = up(shape->v_dim, TILE_COLS);
    float *next = memory + (sizeof *w / sizeof *memory + 15) / 16 * 16;
    float **wide[] = {&w->q, &w->k, &w->k_t, &w->dq, &w->dk},
          **narrow[] = {&w->vals, &w->v_t, &w->out, &w->d_out, &w->dv};
    for (int i = 0; i < 5; i++) {
        *wide[i] = next;
        next += w->padded * w->qk;
        *narrow[i] = next;
        next += w->padded * w->v;
    }
    w->delta = next;
    return w;
}

static void load_keys(struct work *w, const struct attention_shape *shape, const void *k,
                      const void *k_rope, const void *v, int64_t sample, int64_t group)
{
    const int64_t row = sample * shape->sequence, own = shape->qk_dim - shape->rope_dim;
    load(w->k, w->qk, k, shape, row * shape->k_stride + group * shape->k_head_stride,
         shape->k_stride, own, 1);
    if (shape->rope_dim > 0) {
        load(w->k + own, w->qk, k_rope, shape, row * shape->k_rope_stride, shape->k_rope_stride,
             shape->rope_dim, 1);
    }
    load(w->vals, w->v, v, shape, row * shape->v_stride + group * shape->v_head_stride,
         shape->v_stride, shape->v_dim, 1);
    transpose(w->k_t, w->k, w->padded, w->qk);
}

void cpu_attention_forward(struct device *device, void *o, float *lse, const void *q, const void *k,
                           const void *k_rope, const void *v, const struct attention_shape *shape)
{
    const int64_t per_group = shape->heads / shape->kv_heads, rows = shape->sequence;
    const size_t floats = work_floats(shape);
    float *scratch =
        cpu_scratch(device, CPU_SLOT_ATTENTION, floats * (size_t)device->threads * sizeof *scratch);
    assert(shape->heads % shape->kv_heads == 0);
#pragma omp parallel num_threads(device->threads)
    {
        struct work *w = work_init(scratch + floats * (size_t)omp_get_thread_num(), shape);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < shape->batch * shape->kv_heads; task++) {
            const int64_t sample = task / shape->kv_heads, group = task % shape->kv_heads,
                          row = sample * rows;
            load_keys(w, shape, k, k_rope, v, sample, group);
            for (int64_t h = group * per_group; h < (group + 1) * per_group; h++) {
                load(w->q, w->qk, q, shape, row * shape->q_stride + h * shape->qk_dim,
                     shape->q_stride, shape->qk_dim, shape->scale);
                for (int64_t q0 = 0; q0 < rows; q0 += TILE) {
                    forward_tile(w, shape, sample, q0, lse + (sample * shape->heads + h) * rows);
                }
                store(o, w->out, w->v, shape, row * shape->o_stride + h * shape->v_dim,
                      shape->o_stride, shape->v_dim);
            }
        }
    }
}

/* P = exp(S - lse); dS = P (dP - delta). q carries the scale, so S needs none, and dK = dS^T q is
 * scaled already. */
CPU_CLONES static void gradient_row(float *p, float *ds, float lse, float delta)
{
    for (int j = 0; j < TILE; j++) {
        p[j] = fast_exp(p[j] - lse);
        ds[j] = p[j] * (ds[j] - delta);
    }
}

static void backward_tile(struct work *w, const struct attention_shape *shape, int64_t sample,
                          int64_t q0, int64_t k0, const float *lse)
{
    scores(w, shape, sample, q0, k0);
    memset(w->dscore, 0, sizeof w->dscore);
    tile_product(w->dscore, TILE, w->d_out + q0 * w->v, w->v, 1, w->v_t + k0 * w->v, TILE,
                 (int64_t[]){TILE, TILE, w->v});
    for (int64_t i = 0; i < TILE; i++) {
        const bool real = q0 + i < shape->sequence;
        gradient_row(w->score + i * TILE, w->dscore + i * TILE, real ? lse[q0 + i] : -MASKED,
                     w->delta[q0 + i]);
    }
    tile_product(w->dv + k0 * w->v, w->v, w->score, 1, TILE, w->d_out + q0 * w->v, w->v,
                 (int64_t[]){TILE, w->v, TILE});
    tile_product(w->dk + k0 * w->qk, w->qk, w->dscore, 1, TILE, w->q + q0 * w->qk, w->qk,
                 (int64_t[]){TILE, w->qk, TILE});
    tile_product(w->dq + q0 * w->qk, w->qk, w->dscore, TILE, 1, w->k + k0 * w->qk, w->qk,
                 (int64_t[]){TILE, w->qk, TILE});
}

static void backward_head(struct work *w, const struct attention_shape *shape, int64_t sample,
                          const float *lse)
{
    for (int64_t t = 0; t < shape->sequence; t++) {
        float sum = 0;
        for (int64_t i = 0; i < w->v; i++) {
            sum += w->d_out[t * w->v + i] * w->out[t * w->v + i];
        }
        w->delta[t] = sum;
    }
    memset(w->dq, 0, (size_t)(w->padded * w->qk) * sizeof *w->dq);
    for (int64_t q0 = 0; q0 < shape->sequence; q0 += TILE) {
        for (int64_t k0 = first_tile(shape, sample, q0); k0 <= q0; k0 += TILE) {
            backward_tile(w, shape, sample, q0, k0, lse);
        }
    }
    for (int64_t t = 0; t < shape->sequence; t++) {
        scale_row(w->dq + t * w->qk, shape->scale, w->qk);
    }
}

/* One head's share of the shared rope key's gradient: sum[T, rope_dim] += its columns of dk. */
static void add_rope(float *sum, const struct work *w, const struct attention_shape *shape)
{
    const float *dk = w->dk + shape->qk_dim - shape->rope_dim;
    for (int64_t t = 0; t < shape->sequence; t++) {
        for (int64_t i = 0; i < shape->rope_dim; i++) {
            sum[t * shape->rope_dim + i] += dk[t * w->qk + i];
        }
    }
}

/* What a backward task reads and writes; pointers to the first element of the first sample. */
struct backward {
    void *dq, *dk, *dv;
    const void *d_o, *o, *q, *k, *k_rope, *v;
    const float *lse;
};

/* All of one key/value head of one sample but dk_rope: its rope columns stay in w->dk. */
static void backward_group(struct work *w, const struct attention_shape *shape,
                           const struct backward *b, int64_t sample, int64_t group)
{
    const int64_t per_group = shape->heads / shape->kv_heads, row = sample * shape->sequence;
    load_keys(w, shape, b->k, b->k_rope, b->v, sample, group);
    transpose(w->v_t, w->vals, w->padded, w->v);
    memset(w->dk, 0, (size_t)(w->padded * w->qk) * sizeof *w->dk);
    memset(w->dv, 0, (size_t)(w->padded * w->v) * sizeof *w->dv);
    for (int64_t h = group * per_group; h < (group + 1) * per_group; h++) {
        const int64_t q_at = row * shape->q_stride + h * shape->qk_dim,
                      o_at = row * shape->o_stride + h * shape->v_dim;
        load(w->q, w->qk, b->q, shape, q_at, shape->q_stride, shape->qk_dim, shape->scale);
        load(w->out, w->v, b->o, shape, o_at, shape->o_stride, shape->v_dim, 1);
        load(w->d_out, w->v, b->d_o, shape, o_at, shape->o_stride, shape->v_dim, 1);
        backward_head(w, shape, sample, b->lse + (sample * shape->heads + h) * shape->sequence);
        store(b->dq, w->dq, w->qk, shape, q_at, shape->q_stride, shape->qk_dim);
    }
    store(b->dk, w->dk, w->qk, shape, row * shape->k_stride + group * shape->k_head_stride,
          shape->k_stride, shape->qk_dim - shape->rope_dim);
    store(b->dv, w->dv, w->v, shape, row * shape->v_stride + group * shape->v_head_stride,
          shape->v_stride, shape->v_dim);
}

/* The threads add to dk_rope one after another, in the order of the tasks: the same sum for every
 * number of threads, and no head waits long, as all of them cost the same. */
void cpu_attention_backward(struct device *device, void *dq, void *dk, void *dk_rope, void *dv,
                            const void *d_o, const void *o, const float *lse, const void *q,
                            const void *k, const void *k_rope, const void *v,
                            const struct attention_shape *shape)
{
    const struct backward b = {dq, dk, dv, d_o, o, q, k, k_rope, v, lse};
    const int64_t rows = shape->batch * shape->sequence;
    const size_t floats = work_floats(shape), rope_floats = (size_t)(rows * shape->rope_dim);
    float *rope = cpu_scratch(device, CPU_SLOT_ATTENTION,
                              (rope_floats + 16 + floats * (size_t)device->threads) * sizeof *rope);
    float *scratch = rope + (rope_floats + 15) / 16 * 16;
    memset(rope, 0, rope_floats * sizeof *rope);
#pragma omp parallel num_threads(device->threads)
    {
        struct work *w = work_init(scratch + floats * (size_t)omp_get_thread_num(), shape);
#pragma omp for schedule(dynamic, 1) ordered
        for (int64_t task = 0; task < shape->batch * shape->kv_heads; task++) {
            const int64_t sample = task / shape->kv_heads, group = task % shape->kv_heads;
            backward_group(w, shape, &b, sample, group);
#pragma omp ordered
            add_rope(rope + sample * shape->sequence * shape->rope_dim, w, shape);
        }
#pragma omp for
        for (int64_t n = 0; n < rows * (shape->rope_dim > 0 ? 1 : 0); n++) {
            row_store(dk_rope, shape->dtype, n * shape->k_rope_stride, rope + n * shape->rope_dim,
                      shape->rope_dim);
        }
    }
}
