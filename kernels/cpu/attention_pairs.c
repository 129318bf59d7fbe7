#include "kernels/cpu/attention_pairs.h"

#include <assert.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>

/* Register tile: 4 rows x 4 vectors are 16 chains, which hide an instruction's latency; 4 vectors
 * and 4 broadcasts are loaded for 16 products. */
enum { LANES = 16, ROWS = 4, VECTORS = TILE / LANES };
#define WIDE __attribute__((target("arch=x86-64-v4,avx512bf16,prefer-vector-width=512")))
#define WIDE_INLINE                                                                                \
    __attribute__((target("arch=x86-64-v4,avx512bf16,prefer-vector-width=512"),                    \
                   always_inline)) inline

/* sum[ROWS][vectors] += a[ROWS,depth] b[depth,vectors] */
WIDE_INLINE static void multiply(__m512 sum[ROWS][VECTORS], int vectors, const float *a,
                                 int64_t a_row, int64_t a_col, const float *b, int64_t b_row,
                                 int64_t depth)
{
    for (int64_t p = 0; p < depth; p++, a += a_col, b += b_row) {
        __m512bh right[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            right[v] = (__m512bh)_mm512_loadu_ps(b + v * LANES);
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const __m512bh left = (__m512bh)_mm512_set1_ps(a[r * a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                sum[r][v] = _mm512_dpbf16_ps(sum[r][v], left, right[v]);
            }
        }
    }
}

/* Scores of ROWS queries with the first `end` keys of a tile; others are 0. */
WIDE_INLINE static void dots(__m512 sum[ROWS][VECTORS], const float *a, const float *b,
                             int64_t depth, int64_t end)
{
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            sum[r][v] = _mm512_setzero_ps();
        }
    }
    if (end > 48) {
        multiply(sum, 4, a, depth, 1, b, TILE, depth);
    } else if (end > 32) {
        multiply(sum, 3, a, depth, 1, b, TILE, depth);
    } else if (end > 16) {
        multiply(sum, 2, a, depth, 1, b, TILE, depth);
    } else if (end > 0) {
        multiply(sum, 1, a, depth, 1, b, TILE, depth);
    }
}

/* 2^x: 2^round(x) times a polynomial of degree 5 in the rest, off by 1.5e-7 at most, exact at 0.
 * Far below 0 it is 0, and NaN stays NaN. */
WIDE_INLINE static __m512 power(__m512 x)
{
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.327647217e-3F);
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(9.675541331e-3F));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(5.550713273e-2F));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(2.402211972e-1F));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(6.931469671e-1F));
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.0F));
    return _mm512_scalef_ps(p, whole);
}

/* Which of the 16 keys from `first` on a query sees. */
WIDE_INLINE static __mmask16 lanes_seen(const struct seen *seen, int first)
{
    const int from = seen->first - first, to = seen->end - first;
    const uint32_t below = to >= LANES ? 0xffffU
                           : to <= 0   ? 0
                                       : (1U << to) - 1,
                   before = from >= LANES ? 0xffffU
                            : from <= 0   ? 0
                                          : (1U << from) - 1;
    return (__mmask16)(below & ~before);
}

/* Behind the last key that one of ROWS queries sees. */
static int64_t end_of(const struct seen *seen, int64_t row)
{
    int32_t end = 0;
    for (int64_t i = row; seen != NULL && i < row + ROWS; i++) {
        end = seen[i].end > end ? seen[i].end : end;
    }
    return seen == NULL ? TILE : end;
}

/* Lane r of `first`: op of all lanes of in[r]. */
#define ACROSS(NAME, OP)                                                                           \
    WIDE_INLINE static __m128 NAME(__m512 in[ROWS])                                                \
    {                                                                                              \
        const __m512 a = _mm512_##OP##_ps(_mm512_unpacklo_ps(in[0], in[1]),                        \
                                          _mm512_unpackhi_ps(in[0], in[1])),                       \
                     b = _mm512_##OP##_ps(_mm512_unpacklo_ps(in[2], in[3]),                        \
                                          _mm512_unpackhi_ps(in[2], in[3])),                       \
                     c = _mm512_##OP##_ps(_mm512_shuffle_ps(a, b, 0x44),                           \
                                          _mm512_shuffle_ps(a, b, 0xee));                          \
        const __m256 d =                                                                           \
            _mm256_##OP##_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));             \
        return _mm_##OP##_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));              \
    }
ACROSS(most_across, max)
ACROSS(sum_across, add)
#undef ACROSS

WIDE_INLINE static __m512 lane(__m128 x, int r)
{
    return _mm512_permutexvar_ps(_mm512_set1_epi32(r), _mm512_castps128_ps512(x));
}

/* Scores of ROWS queries become weights; `most` advances, sum[ROWS] is of this tile. */
WIDE_INLINE static void weigh(float *weight, float most[ROWS], float sum[ROWS],
                              const struct pairs_scores *from, int64_t row, const struct seen *seen)
{
    __m512 s[ROWS][VECTORS], high[ROWS], total[ROWS];
    __mmask16 in[ROWS][VECTORS];
    dots(s, from->q + row * from->depth, from->k_t, from->depth,
         seen == NULL ? TILE : end_of(seen, 0));
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS && seen != NULL; v++) {
            in[r][v] = lanes_seen(seen + r, v * LANES);
            s[r][v] = _mm512_mask_mov_ps(_mm512_set1_ps(MASKED), in[r][v], s[r][v]);
        }
        high[r] = _mm512_max_ps(_mm512_max_ps(s[r][0], s[r][1]), _mm512_max_ps(s[r][2], s[r][3]));
    }
    const __m512 scale = _mm512_set1_ps(from->scale);
    const __m128 all = _mm_max_ps(_mm_mul_ps(most_across(high), _mm512_castps512_ps128(scale)),
                                  _mm_loadu_ps(most));
    _mm_storeu_ps(most, all);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        const __m512 by = lane(all, r);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            s[r][v] = power(_mm512_fmsub_ps(s[r][v], scale, by));
            if (seen != NULL) {
                s[r][v] = _mm512_maskz_mov_ps(in[r][v], s[r][v]);
            }
        }
        total[r] = _mm512_add_ps(_mm512_add_ps(s[r][0], s[r][1]), _mm512_add_ps(s[r][2], s[r][3]));
        _mm512_storeu_ps(weight + r * TILE_PAIRS, (__m512)_mm512_cvtne2ps_pbh(s[r][1], s[r][0]));
        _mm512_storeu_ps(weight + r * TILE_PAIRS + LANES,
                         (__m512)_mm512_cvtne2ps_pbh(s[r][3], s[r][2]));
    }
    _mm_storeu_ps(sum, sum_across(total));
}

WIDE void pairs_weights(float *weight, struct pairs_softmax *softmax,
                        const struct pairs_scores *from)
{
    float before[TILE], sum[TILE];
    memcpy(before, softmax->most, sizeof before);
    for (int64_t i = 0; i < TILE; i += ROWS) {
        if (from->seen == NULL) {
            weigh(weight + i * TILE_PAIRS, softmax->most + i, sum + i, from, i, NULL);
        } else {
            weigh(weight + i * TILE_PAIRS, softmax->most + i, sum + i, from, i, from->seen + i);
        }
    }
    for (int i = 0; i < TILE; i += LANES) {
        const __m512 shrink =
            power(_mm512_sub_ps(_mm512_loadu_ps(before + i), _mm512_loadu_ps(softmax->most + i)));
        _mm512_storeu_ps(softmax->shrink + i, shrink);
        _mm512_storeu_ps(softmax->sum + i, _mm512_fmadd_ps(_mm512_loadu_ps(softmax->sum + i),
                                                           shrink, _mm512_loadu_ps(sum + i)));
    }
}

/* out[ROWS][vectors] = shrink * out, or 0 without, += a b */
WIDE_INLINE static void update(float *out, int64_t cols, int vectors, const float *shrink,
                               bool fresh, const float *a, int64_t a_row, int64_t a_col,
                               const float *b, int64_t depth)
{
    __m512 sum[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++) {
        for (int v = 0; v < vectors; v++) {
            sum[r][v] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(out + r * cols + v * LANES);
            sum[r][v] =
                shrink != NULL ? _mm512_mul_ps(sum[r][v], _mm512_set1_ps(shrink[r])) : sum[r][v];
        }
    }
    multiply(sum, vectors, a, a_row, a_col, b, cols, depth);
    for (int r = 0; r < ROWS; r++) {
        for (int v = 0; v < vectors; v++) {
            _mm512_storeu_ps(out + r * cols + v * LANES, sum[r][v]);
        }
    }
}

WIDE void pairs_add_values(float *out, int64_t cols, const float *shrink, const float *weight,
                           const float *rows, const struct seen *seen)
{
    for (int64_t i = 0; i < TILE; i += ROWS) {
        const float *a = weight + i * TILE_PAIRS;
        const int64_t depth = (end_of(seen, i) + 1) / 2;
        for (int64_t j = 0; j < cols; j += TILE) {
            float *c = out + i * cols + j;
            const bool whole = j + TILE <= cols;
            if (shrink == NULL && whole) {
                update(c, cols, 4, NULL, true, a, TILE_PAIRS, 1, rows + j, depth);
            } else if (shrink == NULL) {
                update(c, cols, 2, NULL, true, a, TILE_PAIRS, 1, rows + j, depth);
            } else if (whole) {
                update(c, cols, 4, shrink + i, false, a, TILE_PAIRS, 1, rows + j, depth);
            } else {
                update(c, cols, 2, shrink + i, false, a, TILE_PAIRS, 1, rows + j, depth);
            }
        }
    }
}

WIDE void pairs_add_to_queries(float *out, int64_t cols, const float *factor, const float *rows,
                               const struct seen *seen)
{
    for (int64_t i = 0; i < TILE; i += ROWS) {
        const float *a = factor + i * TILE_PAIRS;
        const int64_t depth = (end_of(seen, i) + 1) / 2;
        for (int64_t j = 0; j < cols; j += TILE) {
            float *c = out + i * cols + j;
            if (j + TILE <= cols) {
                update(c, cols, 4, NULL, false, a, TILE_PAIRS, 1, rows + j, depth);
            } else {
                update(c, cols, 2, NULL, false, a, TILE_PAIRS, 1, rows + j, depth);
            }
        }
    }
}

/* The first pair of queries of which one sees a key of the tile from `key` on. */
static int64_t first_pair(const struct seen *seen, int64_t key)
{
    int64_t i = 0;
    while (seen != NULL && i < TILE && seen[i].end <= key) {
        i++;
    }
    return i / 2;
}

WIDE void pairs_add_to_keys(float *out, int64_t cols, bool fresh, const float *factor,
                            const float *rows, const struct seen *seen)
{
    for (int64_t i = 0; i < TILE; i += ROWS) {
        const int64_t from = first_pair(seen, i), depth = TILE_PAIRS - from;
        const float *a = factor + from * TILE + i, *b = rows + from * cols;
        for (int64_t j = 0; j < cols; j += TILE) {
            float *c = out + i * cols + j;
            if (j + TILE > cols) {
                update(c, cols, 2, NULL, fresh, a, 1, TILE, b + j, depth);
            } else if (fresh) {
                update(c, cols, 4, NULL, true, a, 1, TILE, b + j, depth);
            } else {
                update(c, cols, 4, NULL, false, a, 1, TILE, b + j, depth);
            }
        }
    }
}

/* Two rows side by side: pairs of an element of `even` and one of `odd`. */
WIDE_INLINE static __m512 pair_rows(__m512 even, __m512 odd)
{
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (__m512)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

WIDE_INLINE static void store_row_pairs(float *out, __m512 in[ROWS][VECTORS])
{
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        _mm512_storeu_ps(out + v * LANES, pair_rows(in[0][v], in[1][v]));
        _mm512_storeu_ps(out + TILE + v * LANES, pair_rows(in[2][v], in[3][v]));
    }
}

/* Of ROWS queries: P = 2^(scaled score - log_sum), dS = P (dP - delta). */
WIDE_INLINE static void differentiate(struct pairs_factors *to, int64_t row,
                                      const struct pairs_scores *from,
                                      const struct pairs_back *back, const struct seen *seen)
{
    const int64_t end = seen == NULL ? TILE : end_of(seen, 0);
    __m512 p[ROWS][VECTORS], ds[ROWS][VECTORS];
    dots(p, from->q + row * from->depth, from->k_t, from->depth, end);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        const __m512 by = _mm512_set1_ps(back->log_sum[row + r]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            p[r][v] = power(_mm512_fmsub_ps(p[r][v], _mm512_set1_ps(from->scale), by));
            if (seen != NULL) {
                p[r][v] = _mm512_maskz_mov_ps(lanes_seen(seen + r, v * LANES), p[r][v]);
            }
        }
    }
    store_row_pairs(to->weight + row / 2 * TILE, p);
    dots(ds, back->d_o + row * back->depth, back->v_t, back->depth, end);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        const __m512 delta = _mm512_set1_ps(back->delta[row + r]);
        float *by_key = to->by_key + (row + r) * TILE_PAIRS;
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            ds[r][v] = _mm512_mul_ps(p[r][v], _mm512_sub_ps(ds[r][v], delta));
        }
        _mm512_storeu_ps(by_key, (__m512)_mm512_cvtne2ps_pbh(ds[r][1], ds[r][0]));
        _mm512_storeu_ps(by_key + LANES, (__m512)_mm512_cvtne2ps_pbh(ds[r][3], ds[r][2]));
    }
    store_row_pairs(to->gradient + row / 2 * TILE, ds);
}

WIDE void pairs_gradients(struct pairs_factors *to, const struct pairs_scores *from,
                          const struct pairs_back *back)
{
    for (int64_t i = 0; i < TILE; i += ROWS) {
        if (from->seen == NULL) {
            differentiate(to, i, from, back, NULL);
        } else {
            differentiate(to, i, from, back, from->seen + i);
        }
    }
}
#else
void pairs_weights(float *weight, struct pairs_softmax *softmax, const struct pairs_scores *from)
{
    (void)weight, (void)softmax, (void)from;
    assert(false);
}

void pairs_add_values(float *out, int64_t cols, const float *shrink, const float *weight,
                      const float *rows, const struct seen *seen)
{
    (void)out, (void)cols, (void)shrink, (void)weight, (void)rows, (void)seen;
    assert(false);
}

void pairs_gradients(struct pairs_factors *to, const struct pairs_scores *from,
                     const struct pairs_back *back)
{
    (void)to, (void)from, (void)back;
    assert(false);
}

void pairs_add_to_keys(float *out, int64_t cols, bool fresh, const float *factor, const float *rows,
                       const struct seen *seen)
{
    (void)out, (void)cols, (void)fresh, (void)factor, (void)rows, (void)seen;
    assert(false);
}

void pairs_add_to_queries(float *out, int64_t cols, const float *factor, const float *rows,
                          const struct seen *seen)
{
    (void)out, (void)cols, (void)factor, (void)rows, (void)seen;
    assert(false);
}
#endif
