#include "kernels/cpu/tile.h"

#include <assert.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "kernels/cpu/cpu.h"

/* Two widths of the same loop: vectors of 8 for 16 registers, of 16 for 32. */
typedef float narrow __attribute__((vector_size(32), aligned(4), may_alias));
typedef float wide __attribute__((vector_size(64), aligned(4), may_alias));

/* c[4,16] += a[4,k] b[k,16] */
CPU_CLONES static void block_narrow(float *c, int64_t c_row, const float *a, int64_t a_row,
                                    int64_t a_col, const float *b, int64_t b_row, int64_t k)
{
    enum { ROWS = 4, LANES = 8 };
    narrow sum[ROWS][2];
    for (int r = 0; r < ROWS; r++) {
        sum[r][0] = *(const narrow *)(c + r * c_row);
        sum[r][1] = *(const narrow *)(c + r * c_row + LANES);
    }
    for (int64_t p = 0; p < k; p++) {
        const narrow b0 = *(const narrow *)(b + p * b_row);
        const narrow b1 = *(const narrow *)(b + p * b_row + LANES);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const float factor = a[r * a_row + p * a_col];
            sum[r][0] += factor * b0;
            sum[r][1] += factor * b1;
        }
    }
    for (int r = 0; r < ROWS; r++) {
        *(narrow *)(c + r * c_row) = sum[r][0];
        *(narrow *)(c + r * c_row + LANES) = sum[r][1];
    }
}

static void product_narrow(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_col,
                           const float *b, int64_t b_row, const int64_t size[3])
{
    for (int64_t i = 0; i < size[0]; i += 4) {
        for (int64_t j = 0; j < size[1]; j += 16) {
            block_narrow(c + i * c_row + j, c_row, a + i * a_row, a_row, a_col, b + j, b_row,
                         size[2]);
        }
    }
}

#ifdef __x86_64__
/* c[8,32] += a[8,k] b[k,32] */
__attribute__((target("arch=x86-64-v4"))) static void block_wide(float *c, int64_t c_row,
                                                                 const float *a, int64_t a_row,
                                                                 int64_t a_col, const float *b,
                                                                 int64_t b_row, int64_t k)
{
    enum { LANES = 16 };
    wide sum[TILE_ROWS][2];
    for (int r = 0; r < TILE_ROWS; r++) {
        sum[r][0] = *(const wide *)(c + r * c_row);
        sum[r][1] = *(const wide *)(c + r * c_row + LANES);
    }
    for (int64_t p = 0; p < k; p++) {
        const wide b0 = *(const wide *)(b + p * b_row);
        const wide b1 = *(const wide *)(b + p * b_row + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++) {
            const float factor = a[r * a_row + p * a_col];
            sum[r][0] += factor * b0;
            sum[r][1] += factor * b1;
        }
    }
    for (int r = 0; r < TILE_ROWS; r++) {
        *(wide *)(c + r * c_row) = sum[r][0];
        *(wide *)(c + r * c_row + LANES) = sum[r][1];
    }
}

static void product_wide(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_col,
                         const float *b, int64_t b_row, const int64_t size[3])
{
    for (int64_t i = 0; i < size[0]; i += TILE_ROWS) {
        for (int64_t j = 0; j < size[1]; j += TILE_COLS) {
            block_wide(c + i * c_row + j, c_row, a + i * a_row, a_row, a_col, b + j, b_row,
                       size[2]);
        }
    }
}

bool tile_has_pairs(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
}
#else
bool tile_has_pairs(void)
{
    return false;
}
#endif

void tile_product(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_col,
                  const float *b, int64_t b_row, const int64_t size[3])
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
        product_wide(c, c_row, a, a_row, a_col, b, b_row, size);
        return;
    }
#endif
    product_narrow(c, c_row, a, a_row, a_col, b, b_row, size);
}
