#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/rows_wide.h"

enum { BLOCK = 64 };

CPU_CLONES static void normalize_row(float *restrict y, const float *restrict x,
                                     const float *restrict w, float rstd, enum dtype dtype,
                                     int64_t width)
{
    for (int64_t i = 0; i < width; i++) {
        y[i] = x[i] * rstd;
    }
    row_round(y, dtype, width); /* the cast stands before the weight: it matters in bf16 */
    for (int64_t i = 0; i < width; i++) {
        y[i] *= w[i];
    }
}

CPU_CLONES static void add_row(float *out, const float *in, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] += in[i];
    }
}

float cpu_norm_row(float *y, float *row, const struct norm_row *from, const float *w, int64_t n)
{
    const int64_t width = from->x.dim[1];
    row_load(row, from->x.data, from->x.dtype, n * width, width);
    if (from->delta.data != NULL) {
        add_row(row, row_view(y, from->delta.data, from->delta.dtype, n * width, width), width);
        row_round(row, from->x.dtype, width);
        row_store(from->sum.data, from->sum.dtype, n * width, row, width);
    }
    const float rstd = 1.0F / sqrtf(row_dot(row, row, width) / (float)width + from->eps);
    normalize_row(y, row, w, rstd, from->dtype, width);
    return rstd;
}

static uint16_t *row_bf16(struct tensor t, int64_t n)
{
    return t.data == NULL ? NULL : (uint16_t *)t.data + n * t.dim[1];
}

/* The same of bf16 in vectors. */
static float wide_row(struct tensor y, float *row, const struct norm_row *from, const float *w,
                      int64_t n)
{
    const int64_t width = from->x.dim[1];
    const float squares = rows_wide_add(row, row_bf16(from->sum, n), row_bf16(from->x, n),
                                        row_bf16(from->delta, n), width);
    const float rstd = 1.0F / sqrtf(squares / (float)width + from->eps);
    rows_wide_normalize(row_bf16(y, n), row, w, rstd, width);
    return rstd;
}

/* Or not there. */
static bool is_bf16(struct tensor t)
{
    return t.data == NULL || t.dtype == DTYPE_BF16;
}

void cpu_norm_forward(struct device *device, struct tensor y, struct tensor sum, float *rstd,
                      struct tensor x, struct tensor delta, struct tensor w, float eps)
{
    const struct norm_row from = {x, delta, sum, eps, y.dtype};
    const int64_t rows = x.dim[0], width = x.dim[1];
    const bool wide = cpu_device_of(device)->vectors && is_bf16(x) && is_bf16(y) &&
                      is_bf16(delta) && (delta.data == NULL || is_bf16(sum));
    assert(width <= NORM_MAX_WIDTH && tensor_count(&w) == width && y.dim[0] == rows);
    assert(y.dim[1] == width && (delta.data == NULL || delta.dim[1] == width));
#pragma omp parallel num_threads(device->threads)
    {
        float row[NORM_MAX_WIDTH], out[NORM_MAX_WIDTH], weight[NORM_MAX_WIDTH];
        row_load(weight, w.data, w.dtype, 0, width);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            if (wide) {
                rstd[n] = wide_row(y, row, &from, weight, n);
                continue;
            }
            float *const to = y.dtype == DTYPE_F32 ? (float *)y.data + n * width : out;
            rstd[n] = cpu_norm_row(to, row, &from, weight, n);
            if (to == out) {
                row_store(y.data, y.dtype, n * width, out, width);
            }
        }
    }
}

/* One row: dx += r (g - x r^2 mean(g x)), g = dy w; dw += dy x r. */
CPU_CLONES static void backward_row(float *restrict dx, float *restrict dw,
                                    const float *restrict dy, const float *restrict x,
                                    const float *restrict w, float r, float *restrict g,
                                    int64_t width)
{
    for (int64_t i = 0; i < width; i++) {
        g[i] = dy[i] * w[i];
        dw[i] += dy[i] * x[i] * r;
    }
    const float mean = row_dot(g, x, width) / (float)width * r * r;
    for (int64_t i = 0; i < width; i++) {
        dx[i] += r * (g[i] - x[i] * mean);
    }
}

void cpu_norm_backward(struct device *device, struct tensor dx, struct tensor dw, struct tensor dy,
                       struct tensor x, const float *rstd, struct tensor w)
{
    const int64_t rows = x.dim[0], width = x.dim[1], blocks = (rows + BLOCK - 1) / BLOCK;
    const bool wide = cpu_device_of(device)->vectors && is_bf16(dx) && is_bf16(dy) && is_bf16(x);
    float *partial =
        cpu_scratch(device, CPU_SLOT_OTHER, (size_t)(blocks * width) * sizeof *partial);
    assert(width <= NORM_MAX_WIDTH && dw.dtype == DTYPE_F32);
    assert(dx.dim[1] == width && dy.dim[1] == width);
    if (rows == 0) {
        return; /* there may be no scratch to clear yet */
    }
    memset(partial, 0, (size_t)(blocks * width) * sizeof *partial);
#pragma omp parallel num_threads(device->threads)
    {
        float gx[NORM_MAX_WIDTH], gy[NORM_MAX_WIDTH], in[NORM_MAX_WIDTH], g[NORM_MAX_WIDTH],
            weight[NORM_MAX_WIDTH];
        row_load(weight, w.data, w.dtype, 0, width);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks;
             block++) { /* fixed blocks: the same sums for any thread count */
            for (int64_t n = block * BLOCK; n < rows && n < (block + 1) * BLOCK; n++) {
                if (wide) {
                    rows_wide_norm_backward(row_bf16(dx, n), partial + block * width,
                                            row_bf16(dy, n), row_bf16(x, n), weight, rstd[n],
                                            width);
                    continue;
                }
                row_load(gx, dx.data, dx.dtype, n * width, width);
                backward_row(
                    gx, partial + block * width, row_view(gy, dy.data, dy.dtype, n * width, width),
                    row_view(in, x.data, x.dtype, n * width, width), weight, rstd[n], g, width);
                row_store(dx.data, dx.dtype, n * width, gx, width);
            }
        }
    }
    for (int64_t block = 0; block < blocks; block++) {
        add_row(dw.data, partial + block * width, width);
    }
}
