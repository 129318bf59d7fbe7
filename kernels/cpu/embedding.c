#include <assert.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

void cpu_embedding_forward(struct device *device, struct tensor y, const int32_t *ids,
                           struct tensor w)
{
    const size_t row = (size_t)w.dim[1] * dtype_bytes(w.dtype);
    assert(y.dtype == w.dtype && y.dim[1] == w.dim[1]);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < y.dim[0]; n++) {
        assert(ids[n] >= 0 && ids[n] < w.dim[0]);
        memcpy((char *)y.data + (size_t)n * row, (const char *)w.data + (size_t)ids[n] * row, row);
    }
}

CPU_CLONES static void add_part(float *out, const void *in, enum dtype dtype, int64_t first,
                                int64_t count)
{
    const float *f32 = in;
    const uint16_t *bf16 = in;
    for (int64_t i = 0; i < count; i++) {
        out[i] += dtype == DTYPE_F32 ? f32[first + i] : bf16_to_float(bf16[first + i]);
    }
}

/* Columns are divided among the threads, so every element is summed in token order by one thread.
 */
void cpu_embedding_backward(struct device *device, struct tensor dw, const int32_t *ids,
                            struct tensor dy)
{
    enum { PART = 64 };
    const int64_t width = dw.dim[1], parts = (width + PART - 1) / PART;
    assert(dw.dtype == DTYPE_F32 && dy.dim[1] == width);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        const int64_t first = part * PART, count = width - first < PART ? width - first : PART;
        for (int64_t n = 0; n < dy.dim[0]; n++) {
            if (ids[n] < 0) {
                continue;
            }
            add_part((float *)dw.data + (int64_t)ids[n] * width + first, dy.data, dy.dtype,
                     n * width + first, count);
        }
    }
}
