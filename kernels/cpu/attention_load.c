#include "kernels/cpu/attention_load.h"

#include <assert.h>

#include "kernels/cpu/wide_math.h"
#ifdef __x86_64__

/* AHEAD: rows are far apart in their tensor, where no processor expects the next one. */
enum { LANES = WIDE_LANES, AHEAD = 12 };
#define WIDE __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define WIDE_INLINE __attribute__((target("arch=x86-64-v4,avx512bf16"), always_inline)) inline

/* The first `count` of 32 lanes. */
WIDE_INLINE static __mmask32 first_32(int64_t count)
{
    return count >= 32 ? 0xffffffffU : (1U << count) - 1;
}

/* The first `count` of 32 or 16 elements; masked stores of 16 bits take many times as long. */
WIDE_INLINE static void store_16_bits(uint16_t *out, __m512i x, int64_t count)
{
    if (count >= 2 * LANES) {
        _mm512_storeu_si512(out, x);
    } else {
        _mm512_mask_storeu_epi16(out, first_32(count), x);
    }
}

WIDE_INLINE static void store_words(float *out, __m512i x, int64_t count)
{
    if (count >= LANES) {
        _mm512_storeu_si512(out, x);
    } else {
        _mm512_mask_storeu_epi32(out, wide_first(count), x);
    }
}

/* 32 columns at most of two rows; `odd` NULL: of one. */
WIDE_INLINE static void load_two(uint16_t *by_column, float *by_row, int64_t cols,
                                 const uint16_t *even, const uint16_t *odd, int64_t count)
{
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const __mmask32 some = first_32(count);
    const __m512i a = _mm512_maskz_loadu_epi16(some, even),
                  b = odd != NULL ? _mm512_maskz_loadu_epi16(some, odd) : _mm512_setzero_si512();
    if (by_column != NULL) {
        store_16_bits(by_column, a, count);
        if (odd != NULL) {
            store_16_bits(by_column + cols, b, count);
        }
    }
    if (by_row != NULL) {
        store_words(by_row, _mm512_permutex2var_epi16(a, low, b), count);
        store_words(by_row + LANES, _mm512_permutex2var_epi16(a, high, b), count - LANES);
    }
}

WIDE void pairs_load(float *by_column, float *by_row, int64_t cols, int64_t column,
                     const struct head_rows *from)
{
    const uint16_t *in = (const uint16_t *)from->data + from->first;
    uint16_t *columns = by_column != NULL ? (uint16_t *)(void *)by_column + column : NULL;
    for (int64_t t = 0; t < from->rows; t += 2) {
        const uint16_t *even = in + t * from->stride,
                       *odd = t + 1 < from->rows ? even + from->stride : NULL;
        const bool more = t + AHEAD + 1 < from->rows;
        for (int64_t i = 0; i < from->dim; i += 2 * LANES) {
            if (more) {
                _mm_prefetch(even + AHEAD * from->stride + i, _MM_HINT_T0);
                _mm_prefetch(even + (AHEAD + 1) * from->stride + i, _MM_HINT_T0);
            }
            load_two(columns != NULL ? columns + t * cols + i : NULL,
                     by_row != NULL ? by_row + t / 2 * cols + column + i : NULL, cols, even + i,
                     odd != NULL ? odd + i : NULL, from->dim - i);
        }
    }
}

/* 16 rows of 16 words, `row` words apart, become 16 words of 16 rows. */
WIDE_MATH void transpose(__m512i r[LANES], const float *in, int64_t row)
{
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        r[i] = _mm512_loadu_si512(in + i * row);
    }
    wide_transpose_words(r);
}

/* 16 elements of a row of either dtype as f32. */
WIDE_MATH __m512 load_16(const void *data, enum dtype dtype, int64_t at, __mmask16 some)
{
    return dtype == DTYPE_BF16 ? wide_load_bf16((const uint16_t *)data + at, some)
                               : _mm512_maskz_loadu_ps(some, (const float *)data + at);
}

/* Of a row that is `AHEAD` before its turn. */
WIDE_MATH void expect_row(const struct head_rows *from, int64_t t)
{
    const size_t width = dtype_bytes(from->dtype), line = 64;
    const char *row =
        (const char *)from->data + (size_t)(from->first + (t + AHEAD) * from->stride) * width;
    for (size_t i = 0; t + AHEAD < from->rows && i < (size_t)from->dim * width; i += line) {
        _mm_prefetch(row + i, _MM_HINT_T0);
    }
}

WIDE_FUNCTION void wide_load(float *out, int64_t cols, const struct head_rows *from)
{
    for (int64_t t = 0; t < from->rows; t++, out += cols) {
        const int64_t at = from->first + t * from->stride;
        expect_row(from, t);
        for (int64_t i = 0; i < from->dim; i += LANES) {
            const __mmask16 some = wide_first(from->dim - i);
            _mm512_mask_storeu_ps(out + i, some, load_16(from->data, from->dtype, at + i, some));
        }
    }
}

WIDE_FUNCTION void wide_row_dots(float *sum, const float *a, const float *b, int64_t cols)
{
    __m512i left[LANES], right[LANES];
    for (int64_t t = 0; t < TILE; t += LANES) {
        __m512 dots = _mm512_setzero_ps();
        for (int64_t c = 0; c < cols; c += LANES) {
            transpose(left, a + t * cols + c, cols);
            transpose(right, b + t * cols + c, cols);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                dots = _mm512_fmadd_ps(_mm512_castsi512_ps(left[i]), _mm512_castsi512_ps(right[i]),
                                       dots);
            }
        }
        _mm512_storeu_ps(sum + t, dots);
    }
}

/* Rows of bf16: 32 elements at a time, and what is left. */
WIDE_MATH void store_bf16(uint16_t *out, const float *in, __m512 scale, int64_t dim)
{
    int64_t i = 0;
    for (; i + 2 * LANES <= dim; i += 2 * LANES) {
        _mm512_storeu_si512(out + i,
                            wide_narrow(_mm512_mul_ps(_mm512_loadu_ps(in + i), scale),
                                        _mm512_mul_ps(_mm512_loadu_ps(in + i + LANES), scale)));
    }
    for (; i < dim; i += LANES) {
        const __mmask16 some = wide_first(dim - i);
        wide_store_some(out + i, _mm512_mul_ps(_mm512_maskz_loadu_ps(some, in + i), scale), some);
    }
}

WIDE_FUNCTION void wide_store(const struct head_rows *to, const float *in, int64_t cols,
                              float scale)
{
    const __m512 factor = _mm512_set1_ps(scale);
    for (int64_t t = 0; t < to->rows; t++, in += cols) {
        const int64_t at = to->first + t * to->stride;
        float *out = (float *)to->data + at;
        if (to->dtype == DTYPE_BF16) {
            store_bf16((uint16_t *)to->data + at, in, factor, to->dim);
            continue;
        }
        for (int64_t i = 0; i < to->dim; i += LANES) {
            const __mmask16 some = wide_first(to->dim - i);
            _mm512_mask_storeu_ps(out + i, some,
                                  _mm512_mul_ps(_mm512_maskz_loadu_ps(some, in + i), factor));
        }
    }
}

WIDE_FUNCTION void wide_transpose(float *out, const float *in, int64_t cols)
{
    __m512i r[LANES];
    for (int64_t t = 0; t < TILE; t += LANES) {
        for (int64_t c = 0; c < cols; c += LANES) {
            transpose(r, in + t * cols + c, cols);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                _mm512_storeu_si512(out + (c + i) * TILE + t, r[i]);
            }
        }
    }
}

WIDE void pairs_row_dots(float *sum, const float *a, const float *b, int64_t words)
{
    __m512i left[LANES], right[LANES];
    for (int64_t t = 0; t < TILE; t += LANES) {
        __m512 dots = _mm512_setzero_ps();
        for (int64_t w = 0; w < words; w += LANES) {
            transpose(left, a + t * words + w, words);
            transpose(right, b + t * words + w, words);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                dots = _mm512_dpbf16_ps(dots, (__m512bh)left[i], (__m512bh)right[i]);
            }
        }
        _mm512_storeu_ps(sum + t, dots);
    }
}

WIDE void pairs_store(const struct head_rows *to, float *in, int64_t cols, float scale)
{
    const __m512 factor = _mm512_set1_ps(scale);
    for (int64_t t = 0; t < to->rows; t++, in += cols) {
        uint16_t *out = (uint16_t *)to->data + to->first + t * to->stride;
        for (int64_t i = 0; i < to->dim; i += 2 * LANES) {
            const int64_t left = to->dim - i;
            const __m512 low = _mm512_maskz_loadu_ps(wide_first(left), in + i),
                         high = _mm512_maskz_loadu_ps(wide_first(left - LANES), in + i + LANES);
            store_16_bits(out + i,
                          (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, factor),
                                                       _mm512_mul_ps(low, factor)),
                          left);
        }
    }
}
#else
void pairs_load(float *by_column, float *by_row, int64_t cols, int64_t column,
                const struct head_rows *from)
{
    (void)by_column, (void)by_row, (void)cols, (void)column, (void)from;
    assert(false);
}

void wide_transpose(float *out, const float *in, int64_t cols)
{
    (void)out, (void)in, (void)cols;
    assert(false);
}

void wide_load(float *out, int64_t cols, const struct head_rows *from)
{
    (void)out, (void)cols, (void)from;
    assert(false);
}

void wide_row_dots(float *sum, const float *a, const float *b, int64_t cols)
{
    (void)sum, (void)a, (void)b, (void)cols;
    assert(false);
}

void wide_store(const struct head_rows *to, const float *in, int64_t cols, float scale)
{
    (void)to, (void)in, (void)cols, (void)scale;
    assert(false);
}

void pairs_row_dots(float *sum, const float *a, const float *b, int64_t words)
{
    (void)sum, (void)a, (void)b, (void)words;
    assert(false);
}

void pairs_store(const struct head_rows *to, float *in, int64_t cols, float scale)
{
    (void)to, (void)in, (void)cols, (void)scale;
    assert(false);
}
#endif
