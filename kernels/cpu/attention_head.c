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

void head_load(float *out, int64_t cols, const struct head_rows *from, float scale)
{
    for (int64_t t = 0; t < from->rows; t++) {
        row_load(out + t * cols, from->data, from->dtype, from->first + t * from->stride,
                 from->dim);
        if (scale != 1.0F) {
            head_scale(out + t * cols, scale, from->dim);
        }
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

void head_store(const struct head_rows *to, float *in, int64_t cols, float scale)
{
    for (int64_t t = 0; t < to->rows; t++) {
        if (scale != 1.0F) {
            head_scale(in + t * cols, scale, to->dim);
        }
        row_store(to->data, to->dtype, to->first + t * to->stride, in + t * cols, to->dim);
    }
}

CPU_CLONES void head_add(const struct head_rows *to, const float *in, int64_t cols, float scale)
{
    for (int64_t t = 0; t < to->rows; t++) {
        float *out = (float *)to->data + to->first + t * to->stride;
        for (int64_t i = 0; i < to->dim; i++) {
            out[i] += scale * in[t * cols + i];
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

void head_merge(const struct head_rows *out, float *lse, const float *in, int64_t cols,
                const float *in_lse, bool merges)
{
    for (int64_t t = 0; t < out->rows; t++) {
        const float before = merges ? lse[t] : MASKED, own = in_lse[t],
                    high = before > own ? before : own, keep = merges ? fast_exp(before - high) : 0,
                    take = fast_exp(own - high), sum = keep + take;
        mix_row((float *)out->data + out->first + t * out->stride, keep / sum, in + t * cols,
                take / sum, out->dim);
        lse[t] = merges ? high + __builtin_logf(sum) : own;
    }
}
