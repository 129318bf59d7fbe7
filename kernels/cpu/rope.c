#include <assert.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

enum { MAX_HEAD_DIM = 1024 };

CPU_CLONES static void rotate(float *x, const float *cosine, const float *sine, int64_t half,
                              float sign)
{
    for (int64_t j = 0; j < half; j++) {
        const float a = x[j], b = x[half + j], s = sign * sine[j];
        x[j] = a * cosine[j] - b * s;
        x[half + j] = b * cosine[j] + a * s;
    }
}

void cpu_rope(struct device *device, struct tensor x, const int32_t *positions, const float *table,
              int64_t heads, int64_t head_dim, bool inverse)
{
    const int64_t half = head_dim / 2;
    assert(head_dim <= MAX_HEAD_DIM && head_dim % 2 == 0 && heads * head_dim <= x.dim[1]);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < x.dim[0]; n++) {
        const float *cosine = table + positions[n] * head_dim;
        float head[MAX_HEAD_DIM];
        for (int64_t h = 0; h < heads; h++) {
            const int64_t at = n * x.dim[1] + h * head_dim;
            row_load(head, x.data, x.dtype, at, head_dim);
            rotate(head, cosine, cosine + half, half, inverse ? -1.0F : 1.0F);
            row_store(x.data, x.dtype, at, head, head_dim);
        }
    }
}
