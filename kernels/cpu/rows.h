/* rows: a row of f32 or bf16 as f32, for loops that compute in f32 whatever the storage. */
#ifndef KERNELS_CPU_ROWS_H
#define KERNELS_CPU_ROWS_H

#include "kernels/base/tensor.h"

/* Elements [first, first + count) of `data`. */
void row_load(float *out, const void *data, enum dtype dtype, int64_t first, int64_t count);
void row_store(void *data, enum dtype dtype, int64_t first, const float *in, int64_t count);
/* The same elements: where they stand if they are f32, else in `room`. */
static inline const float *row_view(float *room, const void *data, enum dtype dtype, int64_t first,
                                    int64_t count)
{
    if (dtype == DTYPE_F32) {
        return (const float *)data + first;
    }
    row_load(room, data, dtype, first, count);
    return room;
}

/* What a store rounds to. */
void row_round(float *row, enum dtype dtype, int64_t count);

/* Sum of products in a fixed tree: 16 running sums, then one after another. */
float row_dot(const float *a, const float *b, int64_t count);
void row_scale(float *x, float scale, int64_t count);
/* out += scale * in */
void row_add_scaled(float *out, const float *in, float scale, int64_t count);
/* The same of elements [first, first + count) of `data`. */
void row_add_scaled_of(float *out, const void *data, enum dtype dtype, int64_t first, float scale,
                       int64_t count);

#endif
