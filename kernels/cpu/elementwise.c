#include <assert.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

enum { PART = 4096 };

CPU_CLONES static void add_part(float *y, const float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        y[i] += x[i];
    }
}

void cpu_add(struct device *device, struct tensor y, struct tensor x)
{
    const int64_t count = tensor_count(&y);
    assert(tensor_count(&x) == count);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t first = 0; first < count; first += PART) {
        float a[PART], b[PART];
        const int64_t part = count - first < PART ? count - first : PART;
        row_load(a, y.data, y.dtype, first, part);
        row_load(b, x.data, x.dtype, first, part);
        add_part(a, b, part);
        row_store(y.data, y.dtype, first, a, part);
    }
}

void cpu_copy_columns(struct device *device, struct tensor y, int64_t y_first, struct tensor x,
                      int64_t x_first, int64_t columns)
{
    const size_t width = dtype_bytes(y.dtype), bytes = (size_t)columns * width;
    assert(x.dtype == y.dtype && x.dim[0] == y.dim[0]);
    assert(y_first + columns <= y.dim[1] && x_first + columns <= x.dim[1]);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < y.dim[0]; n++) {
        memcpy((char *)y.data + (size_t)(n * y.dim[1] + y_first) * width,
               (const char *)x.data + (size_t)(n * x.dim[1] + x_first) * width, bytes);
    }
}

void cpu_cast(struct device *device, struct tensor y, struct tensor x)
{
    const int64_t count = tensor_count(&y);
    assert(tensor_count(&x) == count);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t first = 0; first < count; first += PART) {
        float part[PART];
        const int64_t size = count - first < PART ? count - first : PART;
        row_load(part, x.data, x.dtype, first, size);
        row_store(y.data, y.dtype, first, part, size);
    }
}

/* Of one stream, processors fetch no further ahead by themselves than to its page's end. */
static inline void expect(const float *x, int64_t count)
{
    enum { LINE = 16 };
    for (int64_t i = 0; i < count; i += LINE) {
        __builtin_prefetch(x + i);
    }
}

CPU_CLONES static double square_block(const float *x, int64_t count)
{
    enum { LANES = 8, STRIDE = 512, AHEAD = 4 * STRIDE };
    double sum[LANES] = {0}, total = 0;
    const int64_t whole = count / LANES * LANES;
    for (int64_t first = 0; first < whole; first += STRIDE) {
        const int64_t end = whole - first < STRIDE ? whole : first + STRIDE;
        if (first + AHEAD + STRIDE <= count) {
            expect(x + first + AHEAD, STRIDE);
        }
        for (int64_t i = first; i < end; i += LANES) {
            for (int j = 0; j < LANES; j++) {
                sum[j] += (double)x[i + j] * (double)x[i + j];
            }
        }
    }
    for (int j = 0; whole + j < count; j++) {
        sum[j] += (double)x[whole + j] * (double)x[whole + j];
    }
    for (int j = 0; j < LANES; j++) {
        total += sum[j];
    }
    return total;
}

void cpu_sum_squares(struct device *device, double *total, const float *x, int64_t count)
{
    enum { BLOCK = 65536 };
    const int64_t blocks = (count + BLOCK - 1) / BLOCK;
    double *partial = cpu_scratch(device, CPU_SLOT_OTHER, (size_t)(blocks + 1) * sizeof *partial),
           sum = 0;
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t first = block * BLOCK;
        partial[block] = square_block(x + first, count - first < BLOCK ? count - first : BLOCK);
    }
    for (int64_t block = 0; block < blocks; block++) {
        sum += partial[block];
    }
    *total += sum;
}
