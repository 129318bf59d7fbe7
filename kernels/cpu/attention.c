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
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/tile.h"
#include "kernels/cpu/vector_math.h"

enum { LANES = 16 };

/* What a task needs; rows padded to whole tiles, columns to whole vectors, with zeros (T: keys or
 * queries, what there are more of): f32, or pairs of bf16, side by side in 32 bits, of which there
 * are half as many. Pairs are of columns in what is multiplied along a row, of rows in what is
 * multiplied along tokens. */
struct work {
    int64_t padded, qk, v; /* T, qk_dim, v_dim rounded up */
    int64_t ahead;         /* of attention_shape */
    int64_t loaded;        /* sample * kv_heads + group of the keys and values held; -1: none */
    bool backward;
    bool pairs;
    float *q, *k, *vals, *d_out; /* [T,qk] scaled, [T,qk], [T,v], [T,v]; pairs of rows (q as it is):
                                    [T/2,qk] ... */
    float *k_t, *v_t;            /* [T/TILE, qk, TILE] [T/TILE, v, TILE]: a tile of keys is
                                    contiguous; pairs of columns, [T/TILE, qk/2, TILE] ... */
    float *q_pairs, *do_pairs;   /* [T,qk/2] [T,v/2] pairs of columns of q and dO */
    float *out;                  /* [T,v] */
    float *dq, *dk, *dv;         /* [T,qk] [T,qk] [T,v] */
    float *delta;                /* [T] rowsum(dO * O); of forward: lse of a part */
    float score[TILE * TILE], dscore[TILE * TILE];
    float paired[TILE * TILE / 2]; /* one of the two as pairs */
};

static int64_t up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* A tile on the diagonal is a lower triangle; what lies above it is skipped by blocks of rows. */
enum part { WHOLE, LOWER_C, LOWER_A, UPPER_A };

/* c[TILE,cols] (rows c_row apart) += a[TILE,depth] b[depth,cols], rows of b `b_row` apart; size:
 * cols, depth. With pairs an element of a or b is two steps of depth. */
static void product(bool pairs, enum part part, float *c, int64_t c_row, const float *a,
                    const int64_t a_stride[2], const float *b, int64_t b_row, const int64_t size[2])
{
    const int64_t cols = size[0], depth = size[1], block = part == WHOLE ? TILE : TILE_ROWS;
    const int64_t unit = pairs ? 2 : 1;
    for (int64_t i = 0; i < TILE; i += block) {
        const int64_t from = (part == UPPER_A ? i : 0) / unit,
                      to = (part == LOWER_A ? i + block : depth) / unit,
                      width = part == LOWER_C ? up(i + block, TILE_COLS) : cols;
        (pairs ? tile_product_pairs : tile_product)(
            c + i * c_row, c_row, a + i * a_stride[0] + from * a_stride[1], a_stride[0],
            a_stride[1], b + from * b_row, b_row, (int64_t[]){block, width, to - from});
    }
}

/* c[TILE,TILE] = rows[TILE,dim] of queries (or dO) times a transposed tile of keys (or values). */
static void row_products(const struct work *w, float *c, const float *rows, const float *tiles,
                         int64_t dim, const int64_t at[2])
{
    const int64_t q0 = at[0], k0 = at[1], stride = w->pairs ? dim / 2 : dim;
    memset(c, 0, TILE * TILE * sizeof *c);
    product(w->pairs, k0 == w->ahead + q0 ? LOWER_C : WHOLE, c, TILE, rows + q0 * stride,
            (int64_t[]){stride, 1}, tiles + k0 * stride, TILE, (int64_t[]){TILE, dim});
}

/* What a sum is of: the keys that queries see, or the queries that see keys. */
enum over { KEYS, QUERIES };

/* out[TILE,cols] of query tile q0 += weights (or gradients of scores) [TILE queries, TILE keys]
 * times the rows of keys (or values) from k0 on; or, over queries, of key tile k0 += weight^T times
 * the rows of queries (or dO) from q0 on. */
static void sum_over(enum over over, struct work *w, float *out, const float *weight,
                     const float *rows, int64_t cols, const int64_t at[2])
{
    const int64_t q0 = at[0], k0 = at[1], to = over == KEYS ? q0 : k0,
                  from = over == KEYS ? k0 : q0, unit = w->pairs ? 2 : 1;
    const enum part diagonal = over == KEYS ? LOWER_A : UPPER_A;
    const int64_t by_row[2] = {TILE / unit, 1}, by_column[2] = {1, TILE};
    const float *factor = w->pairs ? w->paired : weight;
    if (w->pairs) {
        (over == KEYS ? tile_pair_columns : tile_pair_rows)(w->paired, weight, TILE, TILE);
    }
    product(w->pairs, k0 == w->ahead + q0 ? diagonal : WHOLE, out + to * cols, cols, factor,
            over == KEYS ? by_row : by_column, rows + from / unit * cols, cols,
            (int64_t[]){cols, TILE});
}

static void scores(struct work *w, const struct attention_shape *shape, int64_t sample, int64_t q0,
                   int64_t k0)
{
    row_products(w, w->score, w->pairs ? w->q_pairs : w->q, w->k_t, w->qk, (int64_t[]){q0, k0});
    if (w->pairs) { /* else q carries the scale */
        head_scale(w->score, shape->scale, TILE * TILE);
    }
    if (needs_mask(shape, q0, k0)) {
        mask_tile(w->score, shape, sample, q0, k0);
    }
}

/* One row of online softmax: scores become weights, `most` and `sum` advance; returns what the old
 * sums shrink by. */
CPU_CLONES static float softmax_row(float *score, float *most, float *sum)
{
    float partial[LANES] = {0}, highest[LANES], high = *most, total = 0;
    memcpy(highest, score, sizeof highest);
    for (int j = LANES; j < TILE; j += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            highest[lane] = score[j + lane] > highest[lane] ? score[j + lane] : highest[lane];
        }
    }
    for (int lane = 0; lane < LANES; lane++) {
        high = highest[lane] > high ? highest[lane] : high;
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

/* 64 queries of one head against all keys they see, which may be none; out rows normalised, lse
 * stored. */
static void forward_tile(struct work *w, const struct attention_shape *shape, int64_t sample,
                         int64_t q0, float *lse)
{
    float most[TILE], sum[TILE] = {0};
    for (int i = 0; i < TILE; i++) {
        most[i] = MASKED;
    }
    memset(w->out + q0 * w->v, 0, (size_t)(TILE * w->v) * sizeof *w->out);
    for (int64_t k0 = first_tile(shape, sample, q0); k0 < end_visible(shape, q0); k0 += TILE) {
        scores(w, shape, sample, q0, k0);
        for (int64_t i = 0; i < TILE; i++) {
            const float shrink = softmax_row(w->score + i * TILE, &most[i], &sum[i]);
            head_scale(w->out + (q0 + i) * w->v, shrink, w->v);
        }
        sum_over(KEYS, w, w->out, w->score, w->vals, w->v, (int64_t[]){q0, k0});
    }
    for (int64_t i = 0; i < TILE && q0 + i < shape->sequence; i++) {
        head_scale(w->out + (q0 + i) * w->v, sum[i] == 0 ? 0 : 1.0F / sum[i], w->v);
        lse[q0 + i] = sum[i] == 0 ? MASKED : most[i] + __builtin_logf(sum[i]);
    }
}

static size_t work_floats(const struct attention_shape *shape)
{
    const int64_t t = up(most_rows(shape), TILE), qk = up(shape->qk_dim, TILE_COLS),
                  v = up(shape->v_dim, TILE_COLS);
    return (size_t)(5 * t * qk + 5 * t * v + t * (qk + v) / 2 + t) +
           sizeof(struct work) / sizeof(float) + 64;
}

/* Per-thread scratch, zeroed: padding stays zero because only real rows and columns are loaded. */
static struct work *work_init(float *memory, const struct attention_shape *shape, bool backward)
{
    struct work *w = (struct work *)(void *)memory;
    memset(memory, 0, work_floats(shape) * sizeof *memory);
    w->padded = up(most_rows(shape), TILE);
    w->ahead = shape->ahead;
    w->qk = up(shape->qk_dim, TILE_COLS);
    w->v = up(shape->v_dim, TILE_COLS);
    w->loaded = -1;
    w->backward = backward;
    w->pairs = shape->dtype == DTYPE_BF16 && tile_has_pairs();
    float *next = memory + (sizeof *w / sizeof *memory + 15) / 16 * 16;
    float **wide[] = {&w->q, &w->k, &w->k_t, &w->dq, &w->dk},
          **narrow[] = {&w->vals, &w->v_t, &w->out, &w->d_out, &w->dv};
    for (int i = 0; i < 5; i++) {
        *wide[i] = next;
        next += w->padded * w->qk;
        *narrow[i] = next;
        next += w->padded * w->v;
    }
    w->q_pairs = next;
    w->do_pairs = w->q_pairs + w->padded * w->qk / 2;
    w->delta = w->do_pairs + w->padded * w->v / 2;
    return w;
}

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
    const int64_t behind = up(shape->sequence, TILE) - shape->sequence;
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
        forward_tile(w, shape, h->sample, q0, own);
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
    const size_t floats = work_floats(shape);
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

/* P = exp(S - lse); dS = P (dP - delta). S is scaled; so is q, but for pairs. */
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
    const int64_t at[2] = {q0, k0};
    scores(w, shape, sample, q0, k0);
    row_products(w, w->dscore, w->pairs ? w->do_pairs : w->d_out, w->v_t, w->v, at);
    for (int64_t i = 0; i < TILE; i++) {
        const bool real = q0 + i < shape->sequence;
        gradient_row(w->score + i * TILE, w->dscore + i * TILE, real ? lse[q0 + i] : -MASKED,
                     w->delta[q0 + i]);
    }
    sum_over(QUERIES, w, w->dv, w->score, w->d_out, w->v, at);
    sum_over(QUERIES, w, w->dk, w->dscore, w->q, w->qk, at);
    sum_over(KEYS, w, w->dq, w->dscore, w->k, w->qk, at);
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
        tile_row_dots_pairs(w->delta, w->do_pairs, w->out, up(shape->sequence, TILE), w->v / 2);
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

static void backward_head(struct work *w, const struct attention_shape *shape, int64_t sample,
                          const float *lse)
{
    memset(w->dq, 0, (size_t)(w->padded * w->qk) * sizeof *w->dq);
    memset(w->dk, 0, (size_t)(w->padded * w->qk) * sizeof *w->dk);
    memset(w->dv, 0, (size_t)(w->padded * w->v) * sizeof *w->dv);
    for (int64_t q0 = 0; q0 < shape->sequence; q0 += TILE) {
        for (int64_t k0 = first_tile(shape, sample, q0); k0 < end_visible(shape, q0); k0 += TILE) {
            backward_tile(w, shape, sample, q0, k0, lse);
        }
    }
    head_scale(w->dq, shape->scale, w->padded * w->qk);
    if (w->pairs) {
        head_scale(w->dk, shape->scale, w->padded * w->qk);
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
    const size_t floats = work_floats(shape),
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
            backward_head(w, shape, h.sample, lse + h.lse);
            store_queries(dq, w, shape, &h);
#pragma omp ordered
            add_shared(&sums, w, shape, &h);
            store_shared(&out, &sums, w, shape, &h);
        }
    }
}
