#include "kernels/base/rng.h"
#include "kernels/cpu/cpu.h"

void cpu_init_normal(struct device *device, float *x, uint64_t key, uint64_t first, int64_t count,
                     float std)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        x[i] = std * (float)rng_normal(key, first + (uint64_t)i);
    }
}

void cpu_jitter(struct device *device, struct tensor x, uint64_t key, uint64_t first, float eps)
{
    const int64_t count = tensor_count(&x);
    float *f32 = x.data;
    uint16_t *bf16 = x.data;
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        const double u = rng_uniform(key, first + (uint64_t)i);
        const float factor = 1.0F + eps * (float)(2.0 * u - 1.0);
        if (x.dtype == DTYPE_F32) {
            f32[i] *= factor;
        } else {
            bf16[i] = bf16_from_float(bf16_to_float(bf16[i]) * factor);
        }
    }
}
