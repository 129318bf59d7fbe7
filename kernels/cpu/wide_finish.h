/* wide_finish: where sums of the wide kernel (gemm_wide.h) go: to C as it is stored, or added to
 * it, out of its registers; a tile at a time to integers, as powers to the softmax of a head, or
 * where they had been added up (deep products). x86-64 only. */
#ifndef KERNELS_CPU_WIDE_FINISH_H
#define KERNELS_CPU_WIDE_FINISH_H

#include "kernels/cpu/wide_pack.h"

/* From one row of a tile's sums to the next. A piece of gemm_exp. */
enum { WIDE_TILE_N = GEMM_EXP_COLUMNS };
_Static_assert(WIDE_TILE_N % COLS == 0, "whole panels");

#ifdef __x86_64__
/* 16 bf16 nearest to these f32, ties to even; by AVX512_BF16 those too small for a normal number
 * are 0. */
WIDE_INLINE static __m256i wide_narrow_16(bool pairs, __m512 x)
{
    return pairs ? (__m256i)_mm512_cvtneps_pbh(x)
                 : _mm512_cvtepi32_epi16(_mm512_srli_epi32(wide_round_bf16(x), 16));
}

/* 16 f32, or `count`, past the caches if they can. */
WIDE_INLINE static void wide_put_past(float *at, __m512 x, int64_t count)
{
    if (count >= LANES && (uintptr_t)at % sizeof x == 0) {
        _mm512_stream_ps(at, x);
    } else {
        _mm512_mask_storeu_ps(at, wide_first(count), x);
    }
}

/* `count` of 16 sums of f32 to C, added to it, or past the caches. */
WIDE_INLINE static void wide_put_f32(float *at, __m512 sum, int64_t count, bool add, bool past)
{
    const __mmask16 some = wide_first(count);
    if (past) {
        wide_put_past(at, sum, count);
    } else {
        _mm512_mask_storeu_ps(at, some,
                              add ? _mm512_add_ps(_mm512_maskz_loadu_ps(some, at), sum) : sum);
    }
}

/* The same of bf16. */
WIDE_INLINE static void wide_put_bf16(bool pairs, uint16_t *at, __m512 sum, int64_t count, bool add)
{
    const __mmask16 some = wide_first(count);
    sum = add ? _mm512_add_ps(wide_load_bf16(at, some), sum) : sum;
    _mm256_mask_storeu_epi16(at, some, wide_narrow_16(pairs, sum));
}

/* `count` of 16 sums to C's row, from column j on. */
WIDE_INLINE static void wide_put(const struct gemm *g, bool pairs, char *row, int64_t j, __m512 sum,
                                 int64_t count)
{
    if (g->c_dtype == DTYPE_F32) {
        wide_put_f32((float *)(void *)row + j, sum, count, g->add, g->past);
    } else {
        wide_put_bf16(pairs, (uint16_t *)(void *)row + j, sum, count, g->add);
    }
}

/* Sums acc[m][WIDE_TILE_N], of them n columns, of C's rows from `row` and columns from `col` on. */
void wide_finish_rows(const struct gemm *gemm, int64_t row, int64_t col, const float *acc,
                      int64_t m, int64_t n);
#endif

#endif
