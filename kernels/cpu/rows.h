/* rows: a row of f32 or bf16 as f32, for loops that compute in f32 whatever the storage. */
#ifndef KERNELS_CPU_ROWS_H
#define KERNELS_CPU_ROWS_H

#include <string.h>

#include "kernels/base/tensor.h"

/* Elements [first, first + count) of `data`. */
static inline void row_load(float *out, const void *data, enum dtype dtype, int64_t first,
                            int64_t count)
{
    if (dtype == DTYPE_F32) {
        memcpy(out, (const float *)data + first, (size_t)count * sizeof *out);
        return;
    }
    const uint16_t *in = (const uint16_t *)data + first;
    for (int64_t i = 0; i < count; i++) {
        out[i] = bf16_to_float(in[i]);
    }
}

static inline void row_store(void *data, enum dtype dtype, int64_t first, const float *in,
                             int64_t count)
{
    if (dtype == DTYPE_F32) {
        memcpy((float *)data + first, in, (size_t)count * sizeof *in);
        return;
    }
    uint16_t *out = (uint16_t *)data + first;
    for (int64_t i = 0; i < count; i++) {
        out[i] = bf16_from_float(in[i]);
    }
}

/* What a store rounds to. */
static inline void row_round(float *row, enum dtype dtype, int64_t count)
{
    for (int64_t i = 0; i < count && dtype == DTYPE_BF16; i++) {
        row[i] = bf16_to_float(bf16_from_float(row[i]));
    }
}

#endif
