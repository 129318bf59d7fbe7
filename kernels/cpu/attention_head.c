#include "kernels/cpu/attention_head.h"

#include <string.h>

#include "kernels/cpu/attention_mask.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_math.h"

CPU_CLONES void head_scale(float *row, float scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        row[i] *= scale;
    }
}

void head_load(float *out, int64_t cols, const void *data, const struct attention_shape *shape,
               int64_t first, int64_t stride, int64_t dim, float scale)
{
    for (int64_t t = 0; t < shape->sequence; t++) {
        row_load(out + t * cols, data, shape->dtype, first + t * stride, dim);
        if (scale != 1.0F) {
            head_scale(out + t * cols, scale, dim);
        }
    }
}

void head_load_pairs(float *out, int64_t cols, int64_t column, const void *data,
                     const struct attention_shape *shape, int64_t first, int64_t stride,
                     int64_t dim)
{
    const uint16_t *in = data;
    for (int64_t t = 0; t < shape->sequence; t++) {
        memcpy((char *)(out + t * cols / 2) + (size_t)column * sizeof *in, in + first + t * stride,
               (size_t)dim * sizeof *in);
    }
}

CPU_CLONES void head_load_row_pairs(float *out, int64_t cols, const void *data,
                                    const struct attention_shape *shape, int64_t first,
                                    int64_t stride, int64_t dim)
{
    const uint16_t *in = (const uint16_t *)data + first;
    for (int64_t t = 0; t < shape->sequence; t += 2) {
        uint32_t *pairs = (uint32_t *)(void *)(out + t / 2 * cols);
        const bool both = t + 1 < shape->sequence;
        const uint16_t *even = in + t * stride, *odd = both ? even + stride : even;
        const uint32_t keep = both ? ~0U : 0xffffU;
        for (int64_t i = 0; i < dim; i++) {
            pairs[i] = ((uint32_t)even[i] | (uint32_t)odd[i] << 16) & keep;
        }
    }
}

void head_store(void *data, const float *in, int64_t cols, const struct attention_shape *shape,
                int64_t first, int64_t stride, int64_t dim)
{
    for (int64_t t = 0; t < shape->sequence; t++) {
        row_store(data, shape->dtype, first + t * stride, in + t * cols, dim);
    }
}

CPU_CLONES void head_transpose(float *out, const float *in, int64_t rows, int64_t cols)
{
    for (int64_t r0 = 0; r0 < rows; r0 += TILE) {
        float *tile = out + r0 * cols;
        const float *from = in + r0 * cols;
        for (int64_t c = 0; c < cols; c++) {
            for (int64_t r = 0; r < TILE; r++) {
                tile[c * TILE + r] = from[r * cols + c];
            }
        }
    }
}

void head_add(float *out, int64_t stride, const float *in, int64_t cols, int64_t rows, int64_t dim)
{
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t i = 0; i < dim; i++) {
            out[t * stride + i] += in[t * cols + i];
        }
    }
}

/* out = keep * out + take * in; keep 0: whatever out was. */
CPU_CLONES static void mix_row(float *out, float keep, const float *in, float take, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] = (keep > 0 ? keep * out[i] : 0) + take * in[i];
    }
}

void head_merge(float *out, float *lse, const float *in, int64_t cols, const float *in_lse,
                const struct attention_shape *shape)
{
    const int64_t stride = shape->heads * shape->v_dim;
    for (int64_t t = 0; t < shape->sequence; t++) {
        const float before = shape->merges ? lse[t] : MASKED, own = in_lse[t],
                    high = before > own ? before : own,
                    keep = shape->merges ? fast_exp(before - high) : 0, take = fast_exp(own - high),
                    sum = keep + take;
        mix_row(out + t * stride, keep / sum, in + t * cols, take / sum, shape->v_dim);
        lse[t] = shape->merges ? high + __builtin_logf(sum) : own;
    }
}
