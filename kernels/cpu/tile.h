/* tile: the inner product loop of attention on machines without AVX-512 (with: attention_wide.h):
 * small f32 matrices that live in the first caches. And what of that a machine has.
 */
#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H

#include <stdbool.h>
#include <stdint.h>

enum { TILE_ROWS = 8, TILE_COLS = 32 };

/* c[m,n] (row stride c_row) += a[m,k] b[k,n]; m a multiple of TILE_ROWS, n of TILE_COLS. a's
 * strides are free: transposes cost nothing. Every element is a chain of multiply-adds over k. */
void tile_product(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_col,
                  const float *b, int64_t b_row, const int64_t size[3]);

/* Whether this processor has AVX-512 (x86-64-v4), */
bool tile_has_wide(void);
/* and multiplies pairs of bf16, with a sum in f32. */
bool tile_has_pairs(void);
/* and does so faster than by multiply-adds of f32, of which it takes two for a pair: Intel's do
 * them at half the rate (Emerald Rapids: 153 against 320 GFLOP/s) but for Cooper Lake; AMD's at the
 * same. */
bool tile_pairs_pay(void);

#endif
