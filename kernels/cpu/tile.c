#include "kernels/cpu/tile.h"

#include "kernels/cpu/cpu.h"

typedef float lanes __attribute__((vector_size(32), aligned(4), may_alias));

/* c[4,16] += a[4,k] b[k,16] */
CPU_CLONES static void block(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_col,
                             const float *b, int64_t b_row, int64_t k)
{
    enum { ROWS = 4, LANES = 8 };
    lanes sum[ROWS][2];
    for (int r = 0; r < ROWS; r++) {
        sum[r][0] = *(const lanes *)(c + r * c_row);
        sum[r][1] = *(const lanes *)(c + r * c_row + LANES);
    }
    for (int64_t p = 0; p < k; p++) {
        const lanes b0 = *(const lanes *)(b + p * b_row);
        const lanes b1 = *(const lanes *)(b + p * b_row + LANES);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const float factor = a[r * a_row + p * a_col];
            sum[r][0] += factor * b0;
            sum[r][1] += factor * b1;
        }
    }
    for (int r = 0; r < ROWS; r++) {
        *(lanes *)(c + r * c_row) = sum[r][0];
        *(lanes *)(c + r * c_row + LANES) = sum[r][1];
    }
}

void tile_product(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_col,
                  const float *b, int64_t b_row, const int64_t size[3])
{
    for (int64_t i = 0; i < size[0]; i += 4) {
        for (int64_t j = 0; j < size[1]; j += 16) {
            block(c + i * c_row + j, c_row, a + i * a_row, a_row, a_col, b + j, b_row, size[2]);
        }
    }
}

bool tile_has_wide(void)
{
#ifdef __x86_64__
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#else
    return false;
#endif
}

bool tile_has_pairs(void)
{
#ifdef __x86_64__
    return tile_has_wide() && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

bool tile_pairs_pay(void)
{
#ifdef __x86_64__
    return tile_has_pairs() && (!__builtin_cpu_is("intel") || __builtin_cpu_is("cooperlake"));
#else
    return false;
#endif
}
