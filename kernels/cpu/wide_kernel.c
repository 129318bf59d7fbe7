#include "kernels/cpu/wide_kernel.h"

#include <string.h>

#include "kernels/cpu/wide_finish.h"

#ifdef __x86_64__
/* Whole lines of f32, past the caches. */
static inline bool goes_past(const struct wide_sums *to)
{
    return to->gemm->past && to->gemm->c_dtype == DTYPE_F32 && to->columns >= COLS &&
           ((uintptr_t)to->c | (uintptr_t)to->row) % LINE == 0;
}

WIDE_INLINE static void put_sums(bool pairs, int rows, __m512 (*sum)[2], const struct wide_sums *to)
{
    const struct gemm *g = to->gemm;
    const int64_t left = to->columns - LANES;
    if (to->c == NULL) {
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            _mm512_storeu_ps(to->acc + r * WIDE_TILE_N, sum[r][0]);
            _mm512_storeu_ps(to->acc + r * WIDE_TILE_N + LANES, sum[r][1]);
        }
    } else if (goes_past(to)) { /* no test between stores */
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            float *c = (float *)(void *)(to->c + r * to->row);
            _mm512_stream_ps(c, sum[r][0]);
            _mm512_stream_ps(c + LANES, sum[r][1]);
        }
    } else if (g->c_dtype == DTYPE_F32) {
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            float *c = (float *)(void *)(to->c + r * to->row);
            wide_put_f32(c, sum[r][0], to->columns, g->add, g->past);
            wide_put_f32(c + LANES, sum[r][1], left, g->add, g->past);
        }
    } else {
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            uint16_t *c = (uint16_t *)(void *)(to->c + r * to->row);
            wide_put_bf16(pairs, c, sum[r][0], to->columns, g->add);
            wide_put_bf16(pairs, c + LANES, sum[r][1], left, g->add);
        }
    }
}

WIDE_INLINE static void micro(bool pairs, int rows, const struct wide_sums *to,
                              struct wide_left left, const float *b, int64_t words,
                              struct wide_ahead ahead)
{
    __m512 sum[WIDE_ROWS][2];
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) {
        sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    }
    const char *a = left.data;
    for (int64_t w = 0; w < words; w++, a += left.step, b += COLS) {
        if (w % LANES == 0) {
#pragma GCC unroll 14
            for (int r = 0; r < rows; r++) {
                wide_prefetch(a, r * left.row + ahead.a);
            }
#pragma GCC unroll 4
            for (int l = 0; l < WIDE_NEXT_LINES; l++) {
                wide_prefetch(ahead.next, l * LINE);
            }
            if (ahead.twice) {
#pragma GCC unroll 4
                for (int l = WIDE_NEXT_LINES; l < 2 * WIDE_NEXT_LINES; l++) {
                    wide_prefetch(ahead.next, l * LINE);
                }
            }
            ahead.next += ahead.step;
        }
        const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + LANES);
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            float word;
            memcpy(&word, a + r * left.row, sizeof word);
            const __m512 both = _mm512_set1_ps(word);
            if (pairs) {
                sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)both, (__m512bh)b0);
                sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)both, (__m512bh)b1);
            } else {
                sum[r][0] = _mm512_fmadd_ps(both, b0, sum[r][0]);
                sum[r][1] = _mm512_fmadd_ps(both, b1, sum[r][1]);
            }
        }
    }
    if (to->more) {
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            const float *so_far = to->acc + r * WIDE_TILE_N;
            sum[r][0] = _mm512_add_ps(_mm512_loadu_ps(so_far), sum[r][0]);
            sum[r][1] = _mm512_add_ps(_mm512_loadu_ps(so_far + LANES), sum[r][1]);
        }
    }
    put_sums(pairs, rows, sum, to);
}

/* One kernel for every number of rows. */
#define CASE(ROWS_HERE)                                                                            \
    case ROWS_HERE:                                                                                \
        micro(pairs, ROWS_HERE, to, left, b, words, ahead);                                        \
        break

#define KERNEL(NAME, PAIRS)                                                                        \
    WIDE static void NAME(int64_t rows, const struct wide_sums *to, struct wide_left left,         \
                          const float *b, int64_t words, struct wide_ahead ahead)                  \
    {                                                                                              \
        const bool pairs = PAIRS;                                                                  \
        switch (rows) {                                                                            \
            CASE(1);                                                                               \
            CASE(2);                                                                               \
            CASE(3);                                                                               \
            CASE(4);                                                                               \
            CASE(5);                                                                               \
            CASE(6);                                                                               \
            CASE(7);                                                                               \
            CASE(8);                                                                               \
            CASE(9);                                                                               \
            CASE(10);                                                                              \
            CASE(11);                                                                              \
            CASE(12);                                                                              \
            CASE(13);                                                                              \
            CASE(14);                                                                              \
        }                                                                                          \
    }
KERNEL(kernel_pairs, true)
KERNEL(kernel_f32, false)
#undef KERNEL
#undef CASE

void wide_kernel(int64_t rows, const struct wide_sums *to, struct wide_left left, const float *b,
                 int64_t words, struct wide_ahead ahead)
{
    (to->gemm->way == GEMM_PAIRS ? kernel_pairs : kernel_f32)(rows, to, left, b, words, ahead);
}
#endif
