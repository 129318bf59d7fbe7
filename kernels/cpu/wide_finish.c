#include "kernels/cpu/wide_finish.h"

#include <float.h>
#include <math.h>

#ifdef __x86_64__
/* A row of sums to where it belongs. */
WIDE static void finish_row(void *c, const struct gemm *g, const float *acc, int64_t count)
{
    for (int64_t j = 0; j < count; j += LANES) {
        wide_put(g, g->way == GEMM_PAIRS, c, j, _mm512_loadu_ps(acc + j), count - j);
    }
}

/* What fixed_ops.add leaves out. */
struct left_out {
    int64_t saturated, bad;
};

/* A row of sums to integers, as fixed_ops.add takes them (kernels/cpu/fixed.c). */
WIDE static void finish_fixed(int64_t *c, const float *acc, int64_t count,
                              const struct fixed_point *fixed, struct left_out *left_out)
{
    const __m512 scale = _mm512_set1_ps(fixed->scale), limit = _mm512_set1_ps(fixed->limit),
                 most = _mm512_set1_ps(FLT_MAX);
    for (int64_t j = 0; j < count; j += LANES) {
        const __mmask16 some = wide_first(count - j);
        const __m512 sum = _mm512_loadu_ps(acc + j), value = _mm512_mul_ps(sum, scale);
        const __mmask16 kept =
            _mm512_mask_cmp_ps_mask(some, _mm512_abs_ps(value), limit, _CMP_LE_OQ);
        const __mmask8 half[2] = {(__mmask8)(kept & 0xff), (__mmask8)(kept >> 8)};
        const __m256 part[2] = {_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1)};
        for (int h = 0; h < 2; h++) {
            int64_t *const to = c + j + h * LANES / 2;
            const __m512i more = _mm512_maskz_cvtps_epi64(half[h], part[h]);
            _mm512_mask_storeu_epi64(to, half[h],
                                     _mm512_add_epi64(_mm512_maskz_loadu_epi64(half[h], to), more));
        }
        if (kept != some) {
            const __mmask16 finite =
                _mm512_mask_cmp_ps_mask(some, _mm512_abs_ps(sum), most, _CMP_LE_OQ);
            left_out->saturated += __builtin_popcount((unsigned)(finite & ~kept));
            left_out->bad += __builtin_popcount((unsigned)(some & ~finite));
        }
    }
}

/* 16 bf16, or `count`, past the caches if they can. */
WIDE_INLINE static void put_past_bf16(uint16_t *at, __m256i bf16, int64_t count)
{
    if (count >= LANES && (uintptr_t)at % sizeof bf16 == 0) {
        _mm256_stream_si256((__m256i *)(void *)at, bf16);
    } else {
        _mm256_mask_storeu_epi16(at, wide_first(count), bf16);
    }
}

/* Powers, of which so many follow that none would stay in the caches. */
WIDE_INLINE static void put_powers(const struct gemm *g, void *c, int64_t col, __m512 power,
                                   int64_t count)
{
    if (g->c_dtype == DTYPE_F32) {
        wide_put_past((float *)c + col, power, count);
    } else {
        put_past_bf16((uint16_t *)c + col, wide_narrow_16(g->way == GEMM_PAIRS, power), count);
    }
}

/* Powers of a row's columns [col, col + count), and what gemm_exp says of them; c may be NULL. */
WIDE static void finish_exp(void *c, const struct gemm *g, const float *acc, int64_t row,
                            int64_t col, int64_t count)
{
    const struct gemm_exp *e = g->exp;
    const int64_t own = (int64_t)e->label[row] - col,
                  piece = row * gemm_exp_pieces(g->n) + col / GEMM_EXP_COLUMNS;
    const bool counted = e->label[row] >= 0;
    const __m512 shift = _mm512_set1_ps(e->shift[row]);
    __m512 sum = _mm512_setzero_ps(), most = _mm512_set1_ps(-INFINITY);
    for (int64_t j = 0; j < count; j += LANES) {
        const __mmask16 some = wide_first(counted ? count - j : 0),
                        out = (__mmask16)(own >= j && own < j + LANES ? 1U << (own - j) : 0);
        const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(acc + j), shift),
                     power = _mm512_maskz_mov_ps(some, wide_exp(x)),
                     kept = _mm512_maskz_mov_ps((__mmask16)~out, power);
        sum = _mm512_add_ps(sum, power);
        most = _mm512_mask_max_ps(most, some, most, x);
        if (c != NULL) {
            put_powers(g, c, j, kept, count - j);
        }
    }
    e->sum[piece] = _mm512_reduce_add_ps(sum);
    e->most[piece] = _mm512_reduce_max_ps(most);
    if (counted && own >= 0 && own < count) {
        e->own[row] = acc[own];
    }
}

void wide_finish_rows(const struct gemm *g, int64_t row, int64_t col, const float *acc, int64_t m,
                      int64_t n)
{
    const int64_t element = (int64_t)dtype_bytes(g->c_dtype);
    struct left_out left_out = {0};
    for (int64_t r = 0; r < m; r++, acc += WIDE_TILE_N) {
        char *c = g->c == NULL ? NULL : (char *)g->c + ((row + r) * g->c_row + col) * element;
        if (g->fixed != NULL) {
            finish_fixed((int64_t *)(void *)c, acc, n, g->fixed, &left_out);
        } else if (g->exp != NULL) {
            finish_exp(c, g, acc, row + r, col, n);
        } else {
            finish_row(c, g, acc, n);
        }
    }
    if (left_out.saturated + left_out.bad > 0) {
#pragma omp atomic
        g->fixed->saturated += left_out.saturated;
#pragma omp atomic
        g->fixed->bad += left_out.bad;
    }
}
#endif
