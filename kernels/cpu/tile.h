/* tile: the inner product loop of attention: small f32 matrices that live in the first caches. */
#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H

#include <stdbool.h>
#include <stdint.h>

enum { TILE_ROWS = 8, TILE_COLS = 32 };

/* c[m,n] (row stride c_row) += a[m,k] b[k,n]; m a multiple of TILE_ROWS, n of TILE_COLS. a's
 * strides are free: transposes cost nothing. Every element is a chain of multiply-adds over k. */
void tile_product(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_col,
                  const float *b, int64_t b_row, const int64_t size[3]);

/* Whether this processor multiplies pairs of bf16. */
bool tile_has_pairs(void);
/* The same sum where an element of a [m,k] and b [k,n] holds the bits of two bf16: both products
 * count. Products are exact, sums f32. Only where tile_has_pairs, as all below. */
void tile_product_pairs(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_col,
                        const float *b, int64_t b_row, const int64_t size[3]);
/* in [m,n] f32 to the nearest bf16, two in an element of out: neighbours in a row, out [m,n/2], n a
 * multiple of 32; or in a column, out [m/2,n], m even, n a multiple of 16. */
void tile_pair_columns(float *out, const float *in, int64_t m, int64_t n);
void tile_pair_rows(float *out, const float *in, int64_t m, int64_t n);
/* sum[m] = row by row of a and b [m,k], rounded as tile_product_pairs does: where it is subtracted
 * from one of its elements, equal ones cancel. */
void tile_row_dots_pairs(float *sum, const float *a, const float *b, int64_t m, int64_t k);

#endif
