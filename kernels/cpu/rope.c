#include <assert.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

enum { MAX_DIM = 1024 };

CPU_CLONES static void rotate_halves(float *x, const float *cosine, const float *sine, int64_t half,
                                     float sign)
{
    for (int64_t j = 0; j < half; j++) {
        const float a = x[j], b = x[half + j], s = sign * sine[j];
        x[j] = a * cosine[j] - b * s;
        x[half + j] = b * cosine[j] + a * s;
    }
}

CPU_CLONES static void rotate_neighbours(float *x, const float *cosine, const float *sine,
                                         int64_t half, float sign)
{
    for (int64_t j = 0; j < half; j++) {
        const float a = x[2 * j], b = x[2 * j + 1], s = sign * sine[j];
        x[2 * j] = a * cosine[j] - b * s;
        x[2 * j + 1] = b * cosine[j] + a * s;
    }
}

void cpu_rope(struct device *device, struct tensor x, const int32_t *positions, const float *table,
              struct rope_shape shape, bool inverse)
{
    const int64_t half = shape.dim / 2;
    const float sign = inverse ? -1.0F : 1.0F;
    assert(shape.dim <= MAX_DIM && shape.dim % 2 == 0 &&
           shape.first + (shape.heads - 1) * shape.head_stride + shape.dim <= x.dim[1]);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < x.dim[0]; n++) {
        const float *cosine = table + positions[n] * shape.dim;
        float head[MAX_DIM];
        for (int64_t h = 0; h < shape.heads; h++) {
            const int64_t at = n * x.dim[1] + shape.first + h * shape.head_stride;
            row_load(head, x.data, x.dtype, at, shape.dim);
            (shape.interleaved ? rotate_neighbours : rotate_halves)(head, cosine, cosine + half,
                                                                    half, sign);
            row_store(x.data, x.dtype, at, head, shape.dim);
        }
    }
}
