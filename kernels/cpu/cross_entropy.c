#include <assert.h>
#include <math.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_math.h"

enum { CHUNK = 1024, LANES = 16 };

CPU_CLONES static float row_max(const float *x, int64_t count)
{
    float most = x[0];
    for (int64_t i = 1; i < count; i++) {
        most = x[i] > most ? x[i] : most;
    }
    return most;
}

/* x becomes exp(x - most); returns the sum in a fixed tree. */
CPU_CLONES static double row_exp(float *x, float most, int64_t count)
{
    double total = 0;
    for (int64_t i = 0; i < count; i += LANES * LANES) {
        float sum[LANES] = {0};
        const int64_t end = count - i < LANES * LANES ? count : i + LANES * LANES;
        for (int64_t j = i; j < end; j++) {
            x[j] = fast_exp(x[j] - most);
        }
        for (int64_t j = i; j + LANES <= end; j += LANES) {
            for (int lane = 0; lane < LANES; lane++) {
                sum[lane] += x[j + lane];
            }
        }
        for (int64_t j = i + (end - i) / LANES * LANES; j < end; j++) {
            total += (double)x[j];
        }
        for (int lane = 0; lane < LANES; lane++) {
            total += (double)sum[lane];
        }
    }
    return total;
}

CPU_CLONES static void row_scale(float *x, float scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        x[i] *= scale;
    }
}

/* The row as bf16 in its own first half. */
CPU_CLONES static void row_narrow(float *row, int64_t count)
{
    enum { PIECE = 256 };
    uint16_t narrow[PIECE];
    for (int64_t i = 0; i < count; i += PIECE) {
        const int64_t piece = count - i < PIECE ? count - i : PIECE;
        for (int64_t j = 0; j < piece; j++) {
            narrow[j] = bf16_from_float(row[i + j]);
        }
        memcpy((char *)row + 2 * i, narrow, (size_t)piece * sizeof narrow[0]);
    }
}

/* One row: logits become d loss / d logits (scale 0: of no use). Returns -log p of the label. */
static double row_loss(float *logits, int32_t label, int64_t vocab, float scale)
{
    if (label < 0) {
        memset(logits, 0, (size_t)vocab * sizeof *logits);
        return 0;
    }
    const float most = row_max(logits, vocab), own = logits[label];
    const double sum = row_exp(logits, most, vocab);
    row_scale(logits, (float)((double)scale / sum), vocab);
    logits[label] -= scale;
    return log(sum) + (double)most - (double)own;
}

/* Softmax and loss of a chunk. The gradient of row n is left in the activations' dtype at the start
 * of its f32 row: bf16 products are twice as fast, and published implementations round here too. */
static void chunk_loss(struct device *device, float *logits, double *loss, const int32_t *labels,
                       int64_t count, int64_t vocab, float scale, enum dtype dtype)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < count; n++) {
        float *row = logits + n * vocab;
        loss[n] = row_loss(row, labels[n], vocab, scale);
        if (dtype == DTYPE_BF16) {
            row_narrow(row, vocab);
        }
    }
}

/* dx[M,C] = dlogits w and dw[V,C] += dlogits^T x, dlogits with `stride` elements to a row. */
static void chunk_backward(struct device *device, struct tensor dx, struct tensor dw,
                           const void *dlogits, int64_t stride, struct tensor x, struct tensor w)
{
    const int64_t rows = x.dim[0], width = x.dim[1], vocab = w.dim[0];
    const struct gemm input = {.m = rows,
                               .n = width,
                               .k = vocab,
                               .a = dlogits,
                               .b = w.data,
                               .c = dx.data,
                               .a_row = stride,
                               .a_col = 1,
                               .b_row = width,
                               .b_col = 1,
                               .c_row = width,
                               .a_dtype = x.dtype,
                               .b_dtype = w.dtype,
                               .c_dtype = dx.dtype};
    const struct gemm weight = {.m = vocab,
                                .n = width,
                                .k = rows,
                                .a = dlogits,
                                .b = x.data,
                                .c = dw.data,
                                .a_row = 1,
                                .a_col = stride,
                                .b_row = width,
                                .b_col = 1,
                                .c_row = width,
                                .a_dtype = x.dtype,
                                .b_dtype = x.dtype,
                                .c_dtype = DTYPE_F32,
                                .add = true};
    gemm_run(device, &input, 1);
    gemm_run(device, &weight, 1);
}

double cpu_cross_entropy(struct device *device, struct tensor dx, struct tensor dw, struct tensor x,
                         struct tensor w, const int32_t *labels, float loss_scale)
{
    const int64_t rows = x.dim[0], vocab = w.dim[0], chunk = rows < CHUNK ? rows : CHUNK;
    float *logits = cpu_scratch(device, CPU_SLOT_LOSS,
                                (size_t)chunk * (size_t)(vocab + vocab % 2) * sizeof *logits +
                                    (size_t)chunk * sizeof(double));
    double *loss = (double *)(void *)(logits + chunk * (vocab + vocab % 2)), sum = 0;
    assert(w.dim[1] == x.dim[1]);
    for (int64_t first = 0; first < rows; first += chunk) {
        const int64_t count = rows - first < chunk ? rows - first : chunk;
        struct tensor part = tensor_2d(logits, DTYPE_F32, count, vocab);
        cpu_linear_forward(device, part, tensor_rows(&x, first, count), w, false);
        chunk_loss(device, logits, loss, labels + first, count, vocab, loss_scale,
                   dx.data != NULL ? x.dtype : DTYPE_F32);
        for (int64_t n = 0; n < count; n++) {
            sum += loss[n];
        }
        if (dx.data != NULL) {
            chunk_backward(device, tensor_rows(&dx, first, count), dw, logits,
                           x.dtype == DTYPE_BF16 ? 2 * vocab : vocab, tensor_rows(&x, first, count),
                           w);
        }
    }
    return sum;
}
