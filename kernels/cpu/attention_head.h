/* attention_head: rows of one head, between tensors and the scratch of an attention's task
 * (attention.c): f32 in, results out. As pairs of bf16: attention_load.h.
 */
#ifndef KERNELS_CPU_ATTENTION_HEAD_H
#define KERNELS_CPU_ATTENTION_HEAD_H

#include "kernels/ops.h"

/* `dim` elements of a tensor, `stride` from the next row, the first one at element `first`. In
 * scratch rows are `cols` apart. */
struct head_rows {
    void *data; /* read or written, as the function says */
    enum dtype dtype;
    int64_t first, stride, rows, dim;
};

void head_scale(float *row, float scale, int64_t count);

/* As f32, scaled. */
void head_load(float *out, int64_t cols, const struct head_rows *from, float scale);
/* Each tile of rows [TILE, cols] becomes [cols, TILE]. */
void head_transpose(float *out, const float *in, int64_t rows, int64_t cols);

/* Scaled and rounded to the tensor's dtype; `in` is scaled where it stands. */
void head_store(const struct head_rows *to, float *in, int64_t cols, float scale);
/* f32 rows += scale * in */
void head_add(const struct head_rows *to, const float *in, int64_t cols, float scale);
/* Outputs of a part, f32, and their lse [rows], from those of its keys; with `merges` both become
 * those of these keys and of the ones before. */
void head_merge(const struct head_rows *out, float *lse, const float *in, int64_t cols,
                const float *in_lse, bool merges);

#endif
