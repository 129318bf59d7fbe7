/* rows_wide: what norms and combining experts do with rows of bf16, in registers of AVX-512, only
 * where tile_has_wide: no rows of f32 on the way, and the bits that norm.c and permute.c give where
 * there are multiply-adds. w: f32. An output may be one of the inputs, but not of
 * rows_wide_combine.
 */
#ifndef KERNELS_CPU_ROWS_WIDE_H
#define KERNELS_CPU_ROWS_WIDE_H

#include <stdint.h>

/* row[count], of f32, = x + delta, rounded to bf16, which is sum[count]; delta NULL: x, and no sum.
 * Returns the sum of row's squares. */
float rows_wide_add(float *row, uint16_t *sum, const uint16_t *x, const uint16_t *delta,
                    int64_t count);
/* y[count] = round(row rstd) w */
void rows_wide_normalize(uint16_t *y, const float *row, const float *w, float rstd, int64_t count);
/* dx += r (g - x r^2 mean(g x)), g = dy w; dw, of f32, += dy x r. */
void rows_wide_norm_backward(uint16_t *dx, float *dw, const uint16_t *dy, const uint16_t *x,
                             const float *w, float r, int64_t count);
/* y[width] = sum over k < top_k of weight[k] times row[k] of x, [width] each; none where row[k] <
 * 0. weight NULL: 1. */
void rows_wide_combine(uint16_t *y, const uint16_t *x, const int32_t *row, const float *weight,
                       int64_t top_k, int64_t width);
/* dx[count] = weight dy, or NULL; returns <dy, x>. */
float rows_wide_combine_backward(uint16_t *dx, const uint16_t *dy, const uint16_t *x, float weight,
                                 int64_t count);

#endif
