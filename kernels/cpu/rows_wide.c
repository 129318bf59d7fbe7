#include "kernels/cpu/rows_wide.h"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

#include "kernels/cpu/wide_math.h"

#ifdef __x86_64__
/* 16 running sums, one after another. */
WIDE_MATH float add_lanes(__m512 sums)
{
    float lane[WIDE_LANES], total = 0;
    _mm512_storeu_ps(lane, sums);
    for (int i = 0; i < WIDE_LANES; i++) {
        total += lane[i];
    }
    return total;
}

/* To the nearest bf16, as f32. */
WIDE_MATH __m512 rounded(__m512 x)
{
    return _mm512_castsi512_ps(
        _mm512_and_si512(wide_round_bf16(x), _mm512_set1_epi32((int)0xffff0000U)));
}

WIDE_FUNCTION float rows_wide_add(float *row, uint16_t *sum, const uint16_t *x,
                                  const uint16_t *delta, int64_t count)
{
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += WIDE_LANES) {
        const __mmask16 some = wide_first(count - i);
        __m512 value = wide_load_bf16(x + i, some);
        if (delta != NULL) {
            value = rounded(_mm512_add_ps(value, wide_load_bf16(delta + i, some)));
            wide_store_some(sum + i, value, some);
        }
        _mm512_mask_storeu_ps(row + i, some, value);
        squares = _mm512_fmadd_ps(value, value, squares);
    }
    return add_lanes(squares);
}

WIDE_FUNCTION void rows_wide_normalize(uint16_t *y, const float *row, const float *w, float rstd,
                                       int64_t count)
{
    const __m512 scale = _mm512_set1_ps(rstd);
    for (int64_t i = 0; i < count; i += WIDE_LANES) {
        const __mmask16 some = wide_first(count - i);
        const __m512 value = rounded(_mm512_mul_ps(_mm512_maskz_loadu_ps(some, row + i), scale));
        wide_store_some(y + i, _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, w + i)), some);
    }
}

WIDE_FUNCTION void rows_wide_norm_backward(uint16_t *dx, float *dw, const uint16_t *dy,
                                           const uint16_t *x, const float *w, float r,
                                           int64_t count)
{
    const __m512 rstd = _mm512_set1_ps(r);
    __m512 products = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += WIDE_LANES) {
        const __mmask16 some = wide_first(count - i);
        const __m512 grad = wide_load_bf16(dy + i, some), in = wide_load_bf16(x + i, some),
                     g = _mm512_mul_ps(grad, _mm512_maskz_loadu_ps(some, w + i)),
                     sum = _mm512_maskz_loadu_ps(some, dw + i);
        _mm512_mask_storeu_ps(dw + i, some, _mm512_fmadd_ps(_mm512_mul_ps(grad, in), rstd, sum));
        products = _mm512_fmadd_ps(g, in, products);
    }
    const __m512 mean = _mm512_set1_ps(add_lanes(products) / (float)count * r * r);
    for (int64_t i = 0; i < count; i += WIDE_LANES) {
        const __mmask16 some = wide_first(count - i);
        const __m512 g = _mm512_mul_ps(wide_load_bf16(dy + i, some),
                                       _mm512_maskz_loadu_ps(some, w + i)),
                     own = _mm512_fnmadd_ps(wide_load_bf16(x + i, some), mean, g);
        wide_store_some(dx + i, _mm512_fmadd_ps(rstd, own, wide_load_bf16(dx + i, some)), some);
    }
}

WIDE_FUNCTION void rows_wide_combine(uint16_t *y, const uint16_t *x, const int32_t *row,
                                     const float *weight, int64_t top_k, int64_t width)
{
    for (int64_t i = 0; i < width; i += WIDE_LANES) {
        const __mmask16 some = wide_first(width - i);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < top_k; k++) {
            if (row[k] >= 0) {
                const __m512 part = wide_load_bf16(x + row[k] * width + i, some);
                sum = _mm512_fmadd_ps(_mm512_set1_ps(weight != NULL ? weight[k] : 1.0F), part, sum);
            }
        }
        wide_store_some(y + i, sum, some);
    }
}

WIDE_FUNCTION float rows_wide_combine_backward(uint16_t *dx, const uint16_t *dy, const uint16_t *x,
                                               float weight, int64_t count)
{
    const __m512 scale = _mm512_set1_ps(weight);
    __m512 products = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += WIDE_LANES) {
        const __mmask16 some = wide_first(count - i);
        const __m512 grad = wide_load_bf16(dy + i, some);
        products = _mm512_fmadd_ps(grad, wide_load_bf16(x + i, some), products);
        if (dx != NULL) {
            wide_store_some(dx + i, _mm512_mul_ps(scale, grad), some);
        }
    }
    return add_lanes(products);
}
#else
float rows_wide_add(float *row, uint16_t *sum, const uint16_t *x, const uint16_t *delta,
                    int64_t count)
{
    (void)row, (void)sum, (void)x, (void)delta, (void)count;
    assert(false);
    return 0;
}

void rows_wide_normalize(uint16_t *y, const float *row, const float *w, float rstd, int64_t count)
{
    (void)y, (void)row, (void)w, (void)rstd, (void)count;
    assert(false);
}

void rows_wide_norm_backward(uint16_t *dx, float *dw, const uint16_t *dy, const uint16_t *x,
                             const float *w, float r, int64_t count)
{
    (void)dx, (void)dw, (void)dy, (void)x, (void)w, (void)r, (void)count;
    assert(false);
}

void rows_wide_combine(uint16_t *y, const uint16_t *x, const int32_t *row, const float *weight,
                       int64_t top_k, int64_t width)
{
    (void)y, (void)x, (void)row, (void)weight, (void)top_k, (void)width;
    assert(false);
}

float rows_wide_combine_backward(uint16_t *dx, const uint16_t *dy, const uint16_t *x, float weight,
                                 int64_t count)
{
    (void)dx, (void)dy, (void)x, (void)weight, (void)count;
    assert(false);
    return 0;
}
#endif
