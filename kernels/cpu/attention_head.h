/* attention_head: rows of one head, between tensors and the scratch of an attention's task
 * (attention.c): f32 or pairs of bf16 in, results out.
 *
 * A row is `dim` elements of a tensor, `stride` from the next, the first one at element `first`; in
 * scratch rows are `cols` apart. Rows are shape->sequence but where they are given.
 */
#ifndef KERNELS_CPU_ATTENTION_HEAD_H
#define KERNELS_CPU_ATTENTION_HEAD_H

#include "kernels/ops.h"

void head_scale(float *row, float scale, int64_t count);

/* As f32, scaled. */
void head_load(float *out, int64_t cols, const void *data, const struct attention_shape *shape,
               int64_t first, int64_t stride, int64_t dim, float scale);
/* Rows of bf16 as they are: pairs of columns, from column `column` on; or pairs of rows, where
 * `out` is the first element of such a pair, `cols` from the next. */
void head_load_pairs(float *out, int64_t cols, int64_t column, const void *data,
                     const struct attention_shape *shape, int64_t first, int64_t stride,
                     int64_t dim);
void head_load_row_pairs(float *out, int64_t cols, const void *data,
                         const struct attention_shape *shape, int64_t first, int64_t stride,
                         int64_t dim);
/* Each tile of rows [TILE, cols] becomes [cols, TILE]. */
void head_transpose(float *out, const float *in, int64_t rows, int64_t cols);

/* Rounded to the tensor's dtype. */
void head_store(void *data, const float *in, int64_t cols, const struct attention_shape *shape,
                int64_t first, int64_t stride, int64_t dim);
/* out[rows, dim], rows `stride` apart, += in. */
void head_add(float *out, int64_t stride, const float *in, int64_t cols, int64_t rows, int64_t dim);
/* Outputs of a part, out [T, v_dim] in rows heads * v_dim apart and lse [T], from those of its
 * keys; with shape->merges both become those of these keys and of the ones before. */
void head_merge(float *out, float *lse, const float *in, int64_t cols, const float *in_lse,
                const struct attention_shape *shape);

#endif
