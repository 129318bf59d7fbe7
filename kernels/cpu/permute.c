#include <assert.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/rows_wide.h"

enum { PART = CPU_COMBINE_PART };

void cpu_gather_rows(struct device *device, struct tensor y, struct tensor x, const int32_t *row)
{
    const size_t bytes = (size_t)y.dim[1] * dtype_bytes(y.dtype);
    assert(x.dtype == y.dtype && x.dim[1] == y.dim[1]);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < y.dim[0]; r++) {
        char *out = (char *)y.data + (size_t)r * bytes;
        if (row[r] < 0) {
            memset(out, 0, bytes);
        } else {
            memcpy(out, (const char *)x.data + (size_t)row[r] * bytes, bytes);
        }
    }
}

void cpu_scatter_rows(struct device *device, struct tensor y, const void *x, int64_t x_stride,
                      const int32_t *row, int64_t rows)
{
    const size_t element = dtype_bytes(y.dtype), bytes = (size_t)y.dim[1] * element;
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        if (row[n] >= 0) {
            assert(row[n] < y.dim[0]);
            memcpy((char *)y.data + (size_t)row[n] * bytes,
                   (const char *)x + (size_t)(n * x_stride) * element, bytes);
        }
    }
}

void cpu_combine_rows(struct device *device, struct tensor y, struct tensor x,
                      const int32_t *slot_row, const float *weight, int64_t top_k)
{
    const int64_t width = y.dim[1];
    const bool wide =
        cpu_device_of(device)->vectors && y.dtype == DTYPE_BF16 && x.dtype == DTYPE_BF16;
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < y.dim[0]; n++) {
        float room[PART];
        if (wide) {
            rows_wide_combine((uint16_t *)y.data + n * width, x.data, slot_row + n * top_k,
                              weight != NULL ? weight + n * top_k : NULL, top_k, width);
            continue;
        }
        for (int64_t i = 0; i < width; i += PART) {
            const int64_t count = width - i < PART ? width - i : PART;
            float *sum = y.dtype == DTYPE_F32 ? (float *)y.data + n * width + i : room;
            memset(sum, 0, (size_t)count * sizeof *sum);
            for (int64_t slot = n * top_k; slot < (n + 1) * top_k; slot++) {
                if (slot_row[slot] >= 0) {
                    row_add_scaled_of(sum, x.data, x.dtype, slot_row[slot] * width + i,
                                      weight != NULL ? weight[slot] : 1.0F, count);
                }
            }
            if (sum == room) {
                row_store(y.data, y.dtype, n * width + i, sum, count);
            }
        }
    }
}

/* Returns <dy, x> of one part and leaves weight * dy in out. */
CPU_CLONES float cpu_combine_backward_part(float *out, const float *dy, const float *x,
                                           float weight, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] = weight * dy[i];
    }
    return row_dot(dy, x, count);
}

void cpu_combine_rows_backward(struct device *device, struct tensor dx, float *dweight,
                               struct tensor dy, struct tensor x, const int32_t *slot_row,
                               const float *weight, int64_t top_k)
{
    const int64_t width = dy.dim[1];
    const bool wide = cpu_device_of(device)->vectors && dy.dtype == DTYPE_BF16 &&
                      x.dtype == DTYPE_BF16 && (dx.data == NULL || dx.dtype == DTYPE_BF16);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t slot = 0; slot < dy.dim[0] * top_k; slot++) {
        float grad[PART], in[PART], room[PART], sum = 0;
        for (int64_t i = 0; i < width && slot_row[slot] >= 0; i += PART) {
            const int64_t count = width - i < PART ? width - i : PART,
                          from = slot / top_k * width + i, at = slot_row[slot] * width + i;
            if (wide) {
                uint16_t *to = dx.data != NULL ? (uint16_t *)dx.data + at : NULL;
                sum +=
                    rows_wide_combine_backward(to, (const uint16_t *)dy.data + from,
                                               (const uint16_t *)x.data + at, weight[slot], count);
                continue;
            }
            const bool there = dx.data != NULL && dx.dtype == DTYPE_F32;
            float *const out = there ? (float *)dx.data + at : room;
            sum += cpu_combine_backward_part(out, row_view(grad, dy.data, dy.dtype, from, count),
                                             row_view(in, x.data, x.dtype, at, count), weight[slot],
                                             count);
            if (dx.data != NULL && !there) {
                row_store(dx.data, dx.dtype, at, out, count);
            }
        }
        dweight[slot] = sum;
    }
}
