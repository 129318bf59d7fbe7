/* attention_load: rows to what attention_wide.h multiplies, and back: f32 of rows of either dtype,
 * only where tile_has_wide, or of bf16 pairs, side by side in 32 bits, only where tile_has_pairs.
 * Scratch is as there: columns are whole vectors, rows whole tiles, and what lies behind the
 * tensor's is left as it is.
 */
#ifndef KERNELS_CPU_ATTENTION_LOAD_H
#define KERNELS_CPU_ATTENTION_LOAD_H

#include "kernels/cpu/attention_head.h"
#include "kernels/cpu/attention_mask.h"

/* Rows from column `column` on as they are, pairs of columns [rows, cols/2], and as pairs of rows
 * [rows/2, cols]; either may be NULL. Behind the last row of an odd number stands 0. */
void pairs_load(float *by_column, float *by_row, int64_t cols, int64_t column,
                const struct head_rows *from);
/* in [TILE, cols], f32 or pairs, becomes [cols, TILE]; cols a multiple of 16. */
void wide_transpose(float *out, const float *in, int64_t cols);
/* As f32. */
void wide_load(float *out, int64_t cols, const struct head_rows *from);
/* sum[TILE] = row by row of a and b [TILE, cols], added in the order of a tile's scores: where it
 * is subtracted from an equal one, the two cancel. */
void wide_row_dots(float *sum, const float *a, const float *b, int64_t cols);
/* Scaled, rounded to the tensor's dtype. */
void wide_store(const struct head_rows *to, const float *in, int64_t cols, float scale);
/* The same as wide_row_dots of pairs of columns. */
void pairs_row_dots(float *sum, const float *a, const float *b, int64_t words);
/* Scaled, rounded to the nearest bf16. */
void pairs_store(const struct head_rows *to, float *in, int64_t cols, float scale);

#endif
