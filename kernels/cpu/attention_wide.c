#include "kernels/cpu/attention_wide.h"

#include <assert.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>

/* Compiled for pairs and for f32: machines with AVX-512 but without pairs run the latter, of which
 * no instruction is of AVX512_BF16. Register tile: 4 rows x 4 vectors are 16 chains, which hide an
 * instruction's latency; 4 vectors and 4 broadcasts are loaded for 16 products. */
enum { LANES = 16, ROWS = 4, VECTORS = TILE / LANES };
#define WIDE __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define WIDE_INLINE __attribute__((target("arch=x86-64-v4,avx512bf16"), always_inline)) inline

/* sum[ROWS][vectors] += a[ROWS,depth] b[depth,vectors] */
WIDE_INLINE static void multiply(bool pairs, __m512 sum[ROWS][VECTORS], int vectors, const float *a,
                                 int64_t a_row, int64_t a_col, const float *b, int64_t b_row,
                                 int64_t depth)
{
    for (int64_t p = 0; p < depth; p++, a += a_col, b += b_row) {
        __m512 right[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            right[v] = _mm512_loadu_ps(b + v * LANES);
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const __m512 left = _mm512_set1_ps(a[r * a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                sum[r][v] = pairs ? _mm512_dpbf16_ps(sum[r][v], (__m512bh)left, (__m512bh)right[v])
                                  : _mm512_fmadd_ps(left, right[v], sum[r][v]);
            }
        }
    }
}

/* Scores of ROWS queries with the first `end` keys of a tile; others are 0. */
WIDE_INLINE static void dots(bool pairs, __m512 sum[ROWS][VECTORS], const float *a, const float *b,
                             int64_t depth, int64_t end)
{
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            sum[r][v] = _mm512_setzero_ps();
        }
    }
    if (end > 3 * LANES) {
        multiply(pairs, sum, 4, a, depth, 1, b, TILE, depth);
    } else if (end > 2 * LANES) {
        multiply(pairs, sum, 3, a, depth, 1, b, TILE, depth);
    } else if (end > LANES) {
        multiply(pairs, sum, 2, a, depth, 1, b, TILE, depth);
    } else if (end > 0) {
        multiply(pairs, sum, 1, a, depth, 1, b, TILE, depth);
    }
}

/* 2^x of what is 0 at most but for rounding, which of huge scores is huge, too: above 0 it is 1.
 * 2^round(x) times a polynomial of degree 5 in the rest, off by 1.5e-7 at most, exact at 0. Far
 * below 0 it is 0, and NaN, as the second operand of both bounds, stays NaN. */
WIDE_INLINE static __m512 power(__m512 above)
{
    const __m512 x =
        _mm512_max_ps(_mm512_set1_ps(-200.0F), _mm512_min_ps(_mm512_setzero_ps(), above));
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

/* A product with a rounding of its own, whatever follows: the largest score less itself is 0, and
 * not what rounding took of it, which of huge scores would leave no weight at all. */
WIDE_INLINE static __m512 scaled(__m512 score, __m512 scale)
{
    return _mm512_mul_round_ps(score, scale, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
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

/* Of a tile's factors, a query's. */
WIDE_INLINE static int64_t row_floats(bool pairs)
{
    return pairs ? TILE_PAIRS : TILE;
}

WIDE_INLINE static void store_row(bool pairs, float *out, __m512 in[VECTORS])
{
    if (pairs) {
        _mm512_storeu_ps(out, (__m512)_mm512_cvtne2ps_pbh(in[1], in[0]));
        _mm512_storeu_ps(out + LANES, (__m512)_mm512_cvtne2ps_pbh(in[3], in[2]));
        return;
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        _mm512_storeu_ps(out + v * LANES, in[v]);
    }
}

/* Scores of ROWS queries become weights; `most` advances, sum[ROWS] is of this tile. */
WIDE_INLINE static void weigh(bool pairs, float *weight, float most[ROWS], float sum[ROWS],
                              const struct wide_scores *from, int64_t row, const struct seen *seen)
{
    __m512 s[ROWS][VECTORS], high[ROWS], total[ROWS];
    __mmask16 in[ROWS][VECTORS];
    dots(pairs, s, from->q + row * from->depth, from->k_t, from->depth,
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
            s[r][v] = power(_mm512_sub_ps(scaled(s[r][v], scale), by));
            if (seen != NULL) {
                s[r][v] = _mm512_maskz_mov_ps(in[r][v], s[r][v]);
            }
        }
        total[r] = _mm512_add_ps(_mm512_add_ps(s[r][0], s[r][1]), _mm512_add_ps(s[r][2], s[r][3]));
        store_row(pairs, weight + r * row_floats(pairs), s[r]);
    }
    _mm_storeu_ps(sum, sum_across(total));
}

WIDE_INLINE static void weigh_tile(bool pairs, float *weight, float most[TILE], float sum[TILE],
                                   const struct wide_scores *from)
{
    for (int64_t i = 0; i < TILE; i += ROWS) {
        float *to = weight + i * row_floats(pairs);
        if (from->seen == NULL) {
            weigh(pairs, to, most + i, sum + i, from, i, NULL);
        } else {
            weigh(pairs, to, most + i, sum + i, from, i, from->seen + i);
        }
    }
}

WIDE void wide_weights(bool pairs, float *weight, struct wide_softmax *softmax,
                       const struct wide_scores *from)
{
    float before[TILE], sum[TILE];
    memcpy(before, softmax->most, sizeof before);
    if (pairs) {
        weigh_tile(true, weight, softmax->most, sum, from);
    } else {
        weigh_tile(false, weight, softmax->most, sum, from);
    }
    for (int i = 0; i < TILE; i += LANES) {
        const __m512 shrink =
            power(_mm512_sub_ps(_mm512_loadu_ps(before + i), _mm512_loadu_ps(softmax->most + i)));
        _mm512_storeu_ps(softmax->shrink + i, shrink);
        _mm512_storeu_ps(softmax->sum + i, _mm512_fmadd_ps(_mm512_loadu_ps(softmax->sum + i),
                                                           shrink, _mm512_loadu_ps(sum + i)));
    }
}

/* out[ROWS][vectors] = shrink * out, or 0 if fresh, += a b */
WIDE_INLINE static void update_vectors(bool pairs, int vectors, float *out, int64_t cols,
                                       const float *shrink, bool fresh, const float *a,
                                       int64_t a_row, int64_t a_col, const float *b, int64_t depth)
{
    __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            sum[r][v] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(out + r * cols + v * LANES);
            sum[r][v] =
                shrink != NULL ? _mm512_mul_ps(sum[r][v], _mm512_set1_ps(shrink[r])) : sum[r][v];
        }
    }
    multiply(pairs, sum, vectors, a, a_row, a_col, b, cols, depth);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            _mm512_storeu_ps(out + r * cols + v * LANES, sum[r][v]);
        }
    }
}

/* The same over all columns, a multiple of 32. */
WIDE_INLINE static void update(bool pairs, float *out, int64_t cols, const float *shrink,
                               bool fresh, const float *a, int64_t a_row, int64_t a_col,
                               const float *b, int64_t depth)
{
    for (int64_t j = 0; j < cols; j += TILE) {
        if (j + TILE <= cols) {
            update_vectors(pairs, 4, out + j, cols, shrink, fresh, a, a_row, a_col, b + j, depth);
        } else {
            update_vectors(pairs, 2, out + j, cols, shrink, fresh, a, a_row, a_col, b + j, depth);
        }
    }
}

/* How far a sum over a tile's keys goes for ROWS queries. */
static int64_t depth_of(bool pairs, const struct seen *seen, int64_t row)
{
    const int64_t end = end_of(seen, row);
    return pairs ? (end + 1) / 2 : end;
}

WIDE_INLINE static void add_rows(bool pairs, float *out, int64_t cols, const float *shrink,
                                 bool fresh, const float *factor, const float *rows,
                                 const struct seen *seen)
{
    for (int64_t i = 0; i < TILE; i += ROWS) {
        update(pairs, out + i * cols, cols, shrink != NULL ? shrink + i : NULL, fresh,
               factor + i * row_floats(pairs), row_floats(pairs), 1, rows,
               depth_of(pairs, seen, i));
    }
}

WIDE void wide_add_values(bool pairs, float *out, int64_t cols, const float *shrink,
                          const float *weight, const float *rows, const struct seen *seen)
{
    if (pairs && shrink != NULL) {
        add_rows(true, out, cols, shrink, false, weight, rows, seen);
    } else if (pairs) {
        add_rows(true, out, cols, NULL, true, weight, rows, seen);
    } else if (shrink != NULL) {
        add_rows(false, out, cols, shrink, false, weight, rows, seen);
    } else {
        add_rows(false, out, cols, NULL, true, weight, rows, seen);
    }
}

WIDE void wide_add_to_queries(bool pairs, float *out, int64_t cols, const float *factor,
                              const float *rows, const struct seen *seen)
{
    if (pairs) {
        add_rows(true, out, cols, NULL, false, factor, rows, seen);
    } else {
        add_rows(false, out, cols, NULL, false, factor, rows, seen);
    }
}

/* The first query (or pair) that sees a key of the tile from `key` on. */
static int64_t first_row(bool pairs, const struct seen *seen, int64_t key)
{
    int64_t i = 0;
    while (seen != NULL && i < TILE && seen[i].end <= key) {
        i++;
    }
    return pairs ? i / 2 : i;
}

WIDE_INLINE static void add_columns(bool pairs, float *out, int64_t cols, bool fresh,
                                    const float *factor, const float *rows, const struct seen *seen)
{
    for (int64_t i = 0; i < TILE; i += ROWS) {
        const int64_t from = first_row(pairs, seen, i);
        update(pairs, out + i * cols, cols, NULL, fresh, factor + from * TILE + i, 1, TILE,
               rows + from * cols, row_floats(pairs) - from);
    }
}

WIDE void wide_add_to_keys(bool pairs, float *out, int64_t cols, bool fresh, const float *factor,
                           const float *rows, const struct seen *seen)
{
    if (pairs && fresh) {
        add_columns(true, out, cols, true, factor, rows, seen);
    } else if (pairs) {
        add_columns(true, out, cols, false, factor, rows, seen);
    } else if (fresh) {
        add_columns(false, out, cols, true, factor, rows, seen);
    } else {
        add_columns(false, out, cols, false, factor, rows, seen);
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

/* Rows of a factor, two a pair. */
WIDE_INLINE static void store_rows(bool pairs, float *factor, int64_t row, __m512 in[ROWS][VECTORS])
{
    float *out = factor + (pairs ? row / 2 : row) * TILE;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        if (pairs) {
            _mm512_storeu_ps(out + v * LANES, pair_rows(in[0][v], in[1][v]));
            _mm512_storeu_ps(out + TILE + v * LANES, pair_rows(in[2][v], in[3][v]));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS && !pairs; r++) {
        store_row(false, out + r * TILE, in[r]);
    }
}

/* Of ROWS queries: P = 2^(scaled score - log_sum), dS = P (dP - delta). */
WIDE_INLINE static void differentiate(bool pairs, struct wide_factors *to, int64_t row,
                                      const struct wide_scores *from, const struct wide_back *back,
                                      const struct seen *seen)
{
    const int64_t end = seen == NULL ? TILE : end_of(seen, 0);
    __m512 p[ROWS][VECTORS], ds[ROWS][VECTORS];
    dots(pairs, p, from->q + row * from->depth, from->k_t, from->depth, end);
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
    store_rows(pairs, to->weight, row, p);
    dots(pairs, ds, back->d_o + row * back->depth, back->v_t, back->depth, end);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        const __m512 delta = _mm512_set1_ps(back->delta[row + r]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            ds[r][v] = _mm512_mul_ps(p[r][v], _mm512_sub_ps(ds[r][v], delta));
        }
        if (pairs) {
            store_row(true, to->by_key + (row + r) * TILE_PAIRS, ds[r]);
        }
    }
    store_rows(pairs, to->gradient, row, ds);
}

WIDE_INLINE static void differentiate_tile(bool pairs, struct wide_factors *to,
                                           const struct wide_scores *from,
                                           const struct wide_back *back)
{
    for (int64_t i = 0; i < TILE; i += ROWS) {
        if (from->seen == NULL) {
            differentiate(pairs, to, i, from, back, NULL);
        } else {
            differentiate(pairs, to, i, from, back, from->seen + i);
        }
    }
}

WIDE void wide_gradients(bool pairs, struct wide_factors *to, const struct wide_scores *from,
                         const struct wide_back *back)
{
    if (pairs) {
        differentiate_tile(true, to, from, back);
    } else {
        differentiate_tile(false, to, from, back);
    }
}
#else
void wide_weights(bool pairs, float *weight, struct wide_softmax *softmax,
                  const struct wide_scores *from)
{
    (void)pairs, (void)weight, (void)softmax, (void)from;
    assert(false);
}

void wide_add_values(bool pairs, float *out, int64_t cols, const float *shrink, const float *weight,
                     const float *rows, const struct seen *seen)
{
    (void)pairs, (void)out, (void)cols, (void)shrink, (void)weight, (void)rows, (void)seen;
    assert(false);
}

void wide_gradients(bool pairs, struct wide_factors *to, const struct wide_scores *from,
                    const struct wide_back *back)
{
    (void)pairs, (void)to, (void)from, (void)back;
    assert(false);
}

void wide_add_to_keys(bool pairs, float *out, int64_t cols, bool fresh, const float *factor,
                      const float *rows, const struct seen *seen)
{
    (void)pairs, (void)out, (void)cols, (void)fresh, (void)factor, (void)rows, (void)seen;
    assert(false);
}

void wide_add_to_queries(bool pairs, float *out, int64_t cols, const float *factor,
                         const float *rows, const struct seen *seen)
{
    (void)pairs, (void)out, (void)cols, (void)factor, (void)rows, (void)seen;
    assert(false);
}
#endif
