#include "kernels/cpu/attention_tiles.h"

#include <string.h>

#include "kernels/cpu/attention_head.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/tile.h"
#include "kernels/cpu/vector_math.h"

enum { LANES = 16 };

/* A tile on the diagonal is a lower triangle; what lies above it is skipped by blocks of rows. */
enum part { WHOLE, LOWER_C, LOWER_A, UPPER_A };

/* c[TILE,cols] (rows c_row apart) += a[TILE,depth] b[depth,cols], rows of b `b_row` apart; size:
 * cols, depth. */
static void product(enum part part, float *c, int64_t c_row, const float *a,
                    const int64_t a_stride[2], const float *b, int64_t b_row, const int64_t size[2])
{
    const int64_t cols = size[0], depth = size[1], block = part == WHOLE ? TILE : TILE_ROWS;
    for (int64_t i = 0; i < TILE; i += block) {
        const int64_t from = part == UPPER_A ? i : 0, to = part == LOWER_A ? i + block : depth,
                      width = part == LOWER_C ? round_up(i + block, TILE_COLS) : cols;
        tile_product(c + i * c_row, c_row, a + i * a_stride[0] + from * a_stride[1], a_stride[0],
                     a_stride[1], b + from * b_row, b_row, (int64_t[]){block, width, to - from});
    }
}

/* c[TILE,TILE] = rows[TILE,dim] of queries (or dO) times a transposed tile of keys (or values). */
static void row_products(const struct work *w, float *c, const float *rows, const float *tiles,
                         int64_t dim, const int64_t at[2])
{
    const int64_t q0 = at[0], k0 = at[1];
    memset(c, 0, TILE * TILE * sizeof *c);
    product(k0 == w->ahead + q0 ? LOWER_C : WHOLE, c, TILE, rows, (int64_t[]){dim, 1},
            tiles + k0 * dim, TILE, (int64_t[]){TILE, dim});
}

/* What a sum is of: the keys that queries see, or the queries that see keys. */
enum over { KEYS, QUERIES };

/* out[TILE,cols] of a tile of queries += weights (or gradients of scores) [TILE queries, TILE keys]
 * times rows of keys (or values); or, over queries, of a tile of keys += weight^T times rows of
 * queries (or dO). */
static void sum_over(enum over over, const struct work *w, float *out, const float *weight,
                     const float *rows, int64_t cols, const int64_t at[2])
{
    const enum part diagonal = over == KEYS ? LOWER_A : UPPER_A;
    const int64_t by_row[2] = {TILE, 1}, by_column[2] = {1, TILE};
    product(at[1] == w->ahead + at[0] ? diagonal : WHOLE, out, cols, weight,
            over == KEYS ? by_row : by_column, rows, cols, (int64_t[]){cols, TILE});
}

/* Where a tile's queries are in w, and how many elements a factor holds. */
static int64_t per_element(const struct work *w)
{
    return w->pairs ? 2 : 1;
}

static const float *queries_at(const struct work *w, int64_t q0)
{
    const int64_t row = w->backward ? q0 : 0;
    return w->pairs ? w->q_pairs + row * w->qk / 2 : w->q + row * w->qk;
}

static void scores(struct work *w, const struct attention_shape *shape, int64_t sample, int64_t q0,
                   int64_t k0)
{
    row_products(w, w->score, queries_at(w, q0), w->k_t, w->qk, (int64_t[]){q0, k0});
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

/* 64 queries of one head against all keys they see, which may be none: their outputs and, by query,
 * what `most` and `sum` are of. */
static void attend(struct work *w, const struct attention_shape *shape, int64_t sample, int64_t q0)
{
    float *out = w->out, *most = w->softmax.most, *sum = w->softmax.sum;
    memset(out, 0, (size_t)(TILE * w->v) * sizeof *out);
    for (int64_t k0 = first_tile(shape, sample, q0); k0 < end_visible(shape, q0); k0 += TILE) {
        scores(w, shape, sample, q0, k0);
        for (int64_t i = 0; i < TILE; i++) {
            const float shrink = softmax_row(w->score + i * TILE, &most[i], &sum[i]);
            head_scale(out + i * w->v, shrink, w->v);
        }
        sum_over(KEYS, w, out, w->score, w->vals + k0 * w->v, w->v, (int64_t[]){q0, k0});
    }
}

/* Base 2, as wide scores count. */
static const float LOG2_E = 1.44269504F, LN_2 = 0.693147181F;

/* The tile's scores; `seen` is filled if some of them don't count. */
static struct wide_scores scores_of(const struct work *w, const struct attention_shape *shape,
                                    int64_t sample, const int64_t at[2], struct seen seen[TILE])
{
    const bool some = needs_mask(shape, at[0], at[1]);
    if (some) {
        seen_tile(seen, shape, sample, at[0], at[1]);
    }
    return (struct wide_scores){.q = queries_at(w, at[0]),
                                .k_t = w->k_t + at[1] * w->qk / per_element(w),
                                .depth = w->qk / per_element(w),
                                .scale = shape->scale * LOG2_E,
                                .seen = some ? seen : NULL};
}

/* The same as attend. */
static void attend_wide(struct work *w, const struct attention_shape *shape, int64_t sample,
                        int64_t q0)
{
    const float *shrink = NULL;
    float *out = w->out, *weight = w->factors.weight;
    struct seen seen[TILE];
    for (int64_t k0 = first_tile(shape, sample, q0); k0 < end_visible(shape, q0); k0 += TILE) {
        const struct wide_scores from = scores_of(w, shape, sample, (int64_t[]){q0, k0}, seen);
        wide_weights(w->pairs, weight, &w->softmax, &from);
        wide_add_values(w->pairs, out, w->v, shrink, weight, w->vals + k0 / per_element(w) * w->v,
                        from.seen);
        shrink = w->softmax.shrink;
    }
    if (shrink == NULL) {
        memset(out, 0, (size_t)(TILE * w->v) * sizeof *out);
    }
}

void work_forward_tile(struct work *w, const struct attention_shape *shape, int64_t sample,
                       int64_t q0, float *lse)
{
    struct wide_softmax *s = &w->softmax;
    for (int i = 0; i < TILE; i++) {
        s->most[i] = MASKED;
        s->sum[i] = 0;
    }
    (w->wide ? attend_wide : attend)(w, shape, sample, q0);
    for (int64_t i = 0; i < TILE; i++) {
        const float sum = s->sum[i], most = w->wide ? s->most[i] * LN_2 : s->most[i];
        head_scale(w->out + i * w->v, sum == 0 ? 0 : 1.0F / sum, w->v);
        lse[i] = sum == 0 ? MASKED : most + __builtin_logf(sum);
    }
}

/* Floats of w's arrays; these follow one another from `memory` on, if it isn't NULL. */
static size_t work_layout(struct work *w, float *memory, const struct attention_shape *shape)
{
    const int64_t t = round_up(most_rows(shape), TILE), qk = round_up(shape->qk_dim, TILE_COLS),
                  v = round_up(shape->v_dim, TILE_COLS), half = w->pairs ? 2 : 1,
                  back = w->backward ? 1 : 0, f32 = w->pairs ? 0 : 1;
    const int64_t queries = w->backward ? t : TILE, pairs = w->pairs ? 1 : 0,
                  keys = w->shared ? t : TILE;
    const struct {
        float **array;
        int64_t floats;
    } arrays[] = {{&w->q_pairs, pairs * queries * qk / 2},
                  {&w->do_pairs, pairs * back * t * v / 2},
                  {&w->k_tile, pairs * TILE * qk / 2},
                  {&w->v_tile, pairs * TILE * v / 2},
                  {&w->q, (back | f32) * queries * qk / half},
                  {&w->k, (back | f32) * t * qk / half},
                  {&w->k_t, t * qk / half},
                  {&w->vals, (f32 | (1 - back)) * t * v / half},
                  {&w->v_t, back * t * v / half},
                  {&w->d_out, back * t * v / half},
                  {&w->out, (f32 | (1 - back)) * queries * v},
                  {&w->dq, back * t * qk},
                  {&w->dk, back * keys * qk},
                  {&w->dv, back * keys * v},
                  {&w->rope, w->shared ? 0 : back * t * round_up(shape->rope_dim, LANES)},
                  {&w->delta, back * t},
                  {&w->log_sum, back * t}};
    int64_t floats = 0;
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        *arrays[i].array = memory != NULL ? memory + floats : NULL;
        floats += arrays[i].floats;
    }
    return (size_t)floats;
}

static struct work work_of(const struct attention_shape *shape, bool backward,
                           enum cpu_attention way)
{
    return (struct work){.padded = round_up(most_rows(shape), TILE),
                         .qk = round_up(shape->qk_dim, TILE_COLS),
                         .v = round_up(shape->v_dim, TILE_COLS),
                         .ahead = shape->ahead,
                         .loaded = -1,
                         .backward = backward,
                         .shared = shape->heads > shape->kv_heads,
                         .wide = way != ATTENTION_NARROW,
                         .pairs = way == ATTENTION_PAIRS};
}

size_t work_floats(const struct attention_shape *shape, bool backward, enum cpu_attention way)
{
    struct work w = work_of(shape, backward, way);
    return sizeof w / sizeof(float) + work_layout(&w, NULL, shape);
}

struct work *work_init(float *memory, const struct attention_shape *shape, bool backward,
                       enum cpu_attention way)
{
    struct work *w = (struct work *)(void *)memory;
    memset(memory, 0, work_floats(shape, backward, way) * sizeof *memory);
    *w = work_of(shape, backward, way);
    work_layout(w, memory + sizeof *w / sizeof *memory, shape);
    return w;
}

/* P = exp(S - lse); dS = P (dP - delta). S is scaled, and so is q. */
CPU_CLONES static void gradient_row(float *p, float *ds, float lse, float delta)
{
    for (int j = 0; j < TILE; j++) {
        p[j] = fast_exp(p[j] - lse);
        ds[j] = p[j] * (ds[j] - delta);
    }
}

static void backward_tile(struct work *w, const struct attention_shape *shape, int64_t sample,
                          int64_t q0, int64_t k0)
{
    const int64_t at[2] = {q0, k0};
    scores(w, shape, sample, q0, k0);
    row_products(w, w->dscore, w->d_out + q0 * w->v, w->v_t, w->v, at);
    for (int64_t i = 0; i < TILE; i++) {
        gradient_row(w->score + i * TILE, w->dscore + i * TILE, w->log_sum[q0 + i],
                     w->delta[q0 + i]);
    }
    sum_over(QUERIES, w, work_dv(w, k0), w->score, w->d_out + q0 * w->v, w->v, at);
    sum_over(QUERIES, w, work_dk(w, k0), w->dscore, w->q + q0 * w->qk, w->qk, at);
    sum_over(KEYS, w, w->dq + q0 * w->qk, w->dscore, w->k + k0 * w->qk, w->qk, at);
}

/* fresh: the tile's dk and dv are 0, whatever stands there. */
static void backward_tile_wide(struct work *w, const struct attention_shape *shape, int64_t sample,
                               int64_t q0, int64_t k0, bool fresh)
{
    const int64_t half = per_element(w);
    struct wide_factors *f = &w->factors;
    struct seen seen[TILE];
    const struct wide_scores from = scores_of(w, shape, sample, (int64_t[]){q0, k0}, seen);
    const float *d_out = w->d_out + q0 / half * w->v;
    const struct wide_back back = {.d_o = w->pairs ? w->do_pairs + q0 * w->v / 2 : d_out,
                                   .v_t = w->v_t + k0 * w->v / half,
                                   .depth = w->v / half,
                                   .log_sum = w->log_sum + q0,
                                   .delta = w->delta + q0};
    wide_gradients(w->pairs, f, &from, &back);
    wide_add_to_keys(w->pairs, work_dv(w, k0), w->v, fresh, f->weight, d_out, from.seen);
    wide_add_to_keys(w->pairs, work_dk(w, k0), w->qk, fresh, f->gradient, w->q + q0 / half * w->qk,
                     from.seen);
    wide_add_to_queries(w->pairs, w->dq + q0 * w->qk, w->qk, w->pairs ? f->by_key : f->gradient,
                        w->k + k0 / half * w->qk, from.seen);
}

void work_begin_backward(struct work *w, const struct attention_shape *shape, const float *lse)
{
    memset(w->dq, 0, (size_t)(w->padded * w->qk) * sizeof *w->dq);
    for (int64_t t = 0; t < w->padded; t++) {
        const float sum = t < shape->sequence ? lse[t] : -MASKED;
        w->log_sum[t] = w->wide ? sum * LOG2_E : sum;
    }
}

void work_backward_tile(struct work *w, const struct attention_shape *shape, int64_t sample,
                        int64_t k0)
{
    int64_t q0 = k0 > shape->ahead ? (k0 - shape->ahead) / TILE * TILE : 0;
    bool fresh = true;
    if (!w->wide || q0 >= shape->sequence || first_tile(shape, sample, q0) > k0) {
        memset(work_dk(w, k0), 0, (size_t)(TILE * w->qk) * sizeof *w->dk);
        memset(work_dv(w, k0), 0, (size_t)(TILE * w->v) * sizeof *w->dv);
    }
    for (; q0 < shape->sequence && first_tile(shape, sample, q0) <= k0; q0 += TILE) {
        if (w->wide) {
            backward_tile_wide(w, shape, sample, q0, k0, fresh);
        } else {
            backward_tile(w, shape, sample, q0, k0);
        }
        fresh = false;
    }
}
