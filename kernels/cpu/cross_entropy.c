#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_math.h"

enum { CHUNK = 1024, LANES = 16 };

/* By lanes: one after another, every comparison would wait for the last. */
CPU_CLONES static float row_max(const float *x, int64_t count)
{
    float lane[LANES], most = x[0];
    const int64_t whole = count / LANES * LANES;
    for (int j = 0; j < LANES; j++) {
        lane[j] = x[0];
    }
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
        }
    }
    for (int j = 0; j < LANES; j++) {
        most = lane[j] > most ? lane[j] : most;
    }
    for (int64_t i = whole; i < count; i++) {
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

/* The same, to bf16; x stays. */
CPU_CLONES static void row_scale_narrow(uint16_t *out, const float *x, float scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] = bf16_from_float(x[i] * scale);
    }
}

/* One row: logits become d loss / d logits (scale 0: of no use), or with `narrow` leave them there.
 * Returns -log p of the label. */
static double row_loss(float *logits, uint16_t *narrow, int32_t label, int64_t vocab, float scale)
{
    if (label < 0 && narrow != NULL) {
        memset(narrow, 0, (size_t)vocab * sizeof *narrow);
        return 0;
    }
    if (label < 0) {
        memset(logits, 0, (size_t)vocab * sizeof *logits);
        return 0;
    }
    const float most = row_max(logits, vocab), own = logits[label];
    const double sum = row_exp(logits, most, vocab);
    const float factor = (float)((double)scale / sum);
    if (narrow != NULL) {
        row_scale_narrow(narrow, logits, factor, vocab);
        narrow[label] = bf16_from_float(logits[label] * factor - scale);
    } else {
        row_scale(logits, factor, vocab);
        logits[label] -= scale;
    }
    return log(sum) + (double)most - (double)own;
}

/* Softmax and loss of a chunk: logits become their gradients, in `narrow` (may be NULL) as bf16:
 * such products are twice as fast, and published implementations round here too. */
static void chunk_loss(struct device *device, float *logits, uint16_t *narrow, double *loss,
                       const int32_t *labels, int64_t count, int64_t vocab, float scale)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < count; n++) {
        loss[n] = row_loss(logits + n * vocab, narrow != NULL ? narrow + n * vocab : NULL,
                           labels[n], vocab, scale);
    }
}

void cpu_cross_entropy(struct device *device, double *total, struct tensor dx, struct tensor dw,
                       struct tensor x, struct tensor w, const int32_t *labels, float loss_scale)
{
    const int64_t rows = x.dim[0], vocab = w.dim[0], chunk = rows < CHUNK ? rows : CHUNK;
    const bool narrowed = dx.data != NULL && x.dtype == DTYPE_BF16;
    const size_t cells = (size_t)chunk * (size_t)vocab;
    double *loss = cpu_scratch(device, CPU_SLOT_LOSS,
                               (size_t)chunk * sizeof *loss + cells * sizeof(float) +
                                   (narrowed ? cells * sizeof(uint16_t) : 0));
    float *logits = (float *)(void *)(loss + chunk);
    uint16_t *narrow = narrowed ? (uint16_t *)(void *)(logits + cells) : NULL;
    double sum = 0;
    assert(w.dim[1] == x.dim[1]);
    for (int64_t first = 0; first < rows; first += chunk) {
        const int64_t count = rows - first < chunk ? rows - first : chunk;
        const struct tensor part = tensor_2d(logits, DTYPE_F32, count, vocab);
        cpu_linear_forward(device, part, tensor_rows(&x, first, count), w, false);
        chunk_loss(device, logits, narrow, loss, labels + first, count, vocab, loss_scale);
        for (int64_t n = 0; n < count; n++) {
            sum += loss[n];
        }
        if (dx.data != NULL) {
            const struct tensor grad =
                narrowed ? tensor_2d(narrow, DTYPE_BF16, count, vocab) : part;
            cpu_linear_backward_input(device, tensor_rows(&dx, first, count), grad, w, false);
            cpu_linear_backward_weight(device, dw, grad, tensor_rows(&x, first, count));
        }
    }
    *total += sum;
}
