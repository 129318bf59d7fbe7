#include "kernels/cpu/rows.h"

#include <string.h>

#include "kernels/cpu/cpu.h"

/* Not inline: callers are bodies of parallel loops, which are compiled for the oldest level only.
 */

CPU_CLONES static void widen(float *out, const uint16_t *in, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] = bf16_to_float(in[i]);
    }
}

CPU_CLONES static void narrow(uint16_t *out, const float *in, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] = bf16_from_float(in[i]);
    }
}

CPU_CLONES static void round_bf16(float *row, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        row[i] = bf16_to_float(bf16_from_float(row[i]));
    }
}

void row_load(float *out, const void *data, enum dtype dtype, int64_t first, int64_t count)
{
    if (dtype == DTYPE_F32) {
        memcpy(out, (const float *)data + first, (size_t)count * sizeof *out);
    } else {
        widen(out, (const uint16_t *)data + first, count);
    }
}

void row_store(void *data, enum dtype dtype, int64_t first, const float *in, int64_t count)
{
    if (dtype == DTYPE_F32) {
        memcpy((float *)data + first, in, (size_t)count * sizeof *in);
    } else {
        narrow((uint16_t *)data + first, in, count);
    }
}

void row_round(float *row, enum dtype dtype, int64_t count)
{
    if (dtype == DTYPE_BF16) {
        round_bf16(row, count);
    }
}

CPU_CLONES float row_dot(const float *a, const float *b, int64_t count)
{
    enum { LANES = 16 };
    float sum[LANES] = {0}, total = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            sum[j] += a[i + j] * b[i + j];
        }
    }
    for (int j = 0; i + j < count; j++) {
        sum[j] += a[i + j] * b[i + j];
    }
    for (int j = 0; j < LANES; j++) {
        total += sum[j];
    }
    return total;
}

CPU_CLONES void row_scale(float *x, float scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        x[i] *= scale;
    }
}

CPU_CLONES void row_add_scaled(float *out, const float *in, float scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] += scale * in[i];
    }
}

CPU_CLONES static void add_scaled_bf16(float *out, const uint16_t *in, float scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] += scale * bf16_to_float(in[i]);
    }
}

void row_add_scaled_of(float *out, const void *data, enum dtype dtype, int64_t first, float scale,
                       int64_t count)
{
    if (dtype == DTYPE_F32) {
        row_add_scaled(out, (const float *)data + first, scale, count);
    } else {
        add_scaled_bf16(out, (const uint16_t *)data + first, scale, count);
    }
}
