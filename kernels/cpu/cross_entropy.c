#include <assert.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/head_wide.h"
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

/* out = exp(x - most), which may be x; returns the sum in a fixed tree. */
CPU_CLONES static double row_exp(float *out, const float *x, float most, int64_t count)
{
    double total = 0;
    for (int64_t i = 0; i < count; i += LANES * LANES) {
        float sum[LANES] = {0};
        const int64_t end = count - i < LANES * LANES ? count : i + LANES * LANES;
        for (int64_t j = i; j < end; j++) {
            out[j] = fast_exp(x[j] - most);
        }
        for (int64_t j = i; j + LANES <= end; j += LANES) {
            for (int lane = 0; lane < LANES; lane++) {
                sum[lane] += out[j + lane];
            }
        }
        for (int64_t j = i + (end - i) / LANES * LANES; j < end; j++) {
            total += (double)out[j];
        }
        for (int lane = 0; lane < LANES; lane++) {
            total += (double)sum[lane];
        }
    }
    return total;
}

/* row_scale to bf16; x stays. */
CPU_CLONES static void row_scale_narrow(uint16_t *out, const float *x, float scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] = bf16_from_float(x[i] * scale);
    }
}

/* One row: logits become d loss / d logits (scale 0: of no use), or with `narrow` leave them there
 * and are not written, their exp being in row[vocab]. Returns -log p of the label. */
static double row_loss(float *logits, uint16_t *narrow, float *row, int32_t label, int64_t vocab,
                       float scale)
{
    if (label < 0 && narrow != NULL) {
        memset(narrow, 0, (size_t)vocab * sizeof *narrow);
        return 0;
    }
    if (label < 0) {
        memset(logits, 0, (size_t)vocab * sizeof *logits);
        return 0;
    }
    float *weight = narrow != NULL ? row : logits;
    const float most = row_max(logits, vocab), own = logits[label];
    const double sum = row_exp(weight, logits, most, vocab);
    const float factor = (float)((double)scale / sum);
    if (narrow != NULL) {
        row_scale_narrow(narrow, weight, factor, vocab);
        narrow[label] = bf16_from_float(weight[label] * factor - scale);
    } else {
        row_scale(logits, factor, vocab);
        logits[label] -= scale;
    }
    return log(sum) + (double)most - (double)own;
}

/* Rows go through by chunks. */
struct head {
    int64_t chunk, vocab;
    double *loss;     /* [chunk] */
    float *logits;    /* [chunk, vocab] */
    float *rows;      /* [threads, vocab]; with narrow */
    uint16_t *narrow; /* [chunk, vocab] bf16 gradients of logits, or NULL: they are logits' place */
};

/* Logits become their gradients, in narrow rows as bf16: such products are twice as fast, and
 * published implementations round here too. */
static void chunk_loss(struct device *device, const struct head *h, struct tensor x,
                       struct tensor w, const int32_t *labels, float scale)
{
    const int64_t rows = x.dim[0], vocab = h->vocab;
    const struct gemm gemm = gemm_forward(tensor_2d(h->logits, DTYPE_F32, rows, vocab), x, w);
    gemm_run(device, &gemm, 1);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        h->loss[n] =
            row_loss(h->logits + n * vocab, h->narrow != NULL ? h->narrow + n * vocab : NULL,
                     h->rows + omp_get_thread_num() * vocab, labels[n], vocab, scale);
    }
}

static struct head make_head(struct device *device, struct tensor x, struct tensor w, bool backward)
{
    const int64_t rows = x.dim[0], vocab = w.dim[0];
    const bool narrowed = backward && x.dtype == DTYPE_BF16;
    struct head h = {.vocab = vocab, .chunk = rows < CHUNK ? rows : CHUNK};
    const size_t cells = (size_t)(h.chunk * vocab), own = (size_t)(device->threads * vocab);
    h.loss = cpu_scratch(device, CPU_SLOT_LOSS,
                         (size_t)h.chunk * sizeof *h.loss + (cells + own) * sizeof *h.logits +
                             (narrowed ? cells * sizeof *h.narrow : 0));
    h.logits = (float *)(void *)(h.loss + h.chunk);
    h.rows = h.logits + cells;
    h.narrow = narrowed ? (uint16_t *)(void *)(h.rows + own) : NULL;
    return h;
}

void cpu_cross_entropy(struct device *device, double *total, struct tensor dx, struct tensor dw,
                       struct tensor x, struct tensor w, const int32_t *labels, float loss_scale)
{
    const int64_t rows = x.dim[0];
    double sum = 0;
    assert(w.dim[1] == x.dim[1]);
    if (rows == 0) {
        return;
    }
    if (head_wide_takes(device, x, w)) {
        head_wide(device, total, dx, dw, x, w, labels, loss_scale);
        return;
    }
    const struct head h = make_head(device, x, w, dx.data != NULL);
    for (int64_t first = 0; first < rows; first += h.chunk) {
        const int64_t count = rows - first < h.chunk ? rows - first : h.chunk;
        const struct tensor part = tensor_rows(&x, first, count);
        chunk_loss(device, &h, part, w, labels + first, loss_scale);
        for (int64_t n = 0; n < count; n++) {
            sum += h.loss[n];
        }
        if (dx.data != NULL) {
            const struct tensor grad = h.narrow != NULL
                                           ? tensor_2d(h.narrow, DTYPE_BF16, count, h.vocab)
                                           : tensor_2d(h.logits, DTYPE_F32, count, h.vocab);
            cpu_linear_backward_input(device, tensor_rows(&dx, first, count), grad, w, false);
            cpu_linear_backward_weight(device, dw, grad, part);
        }
    }
    *total += sum;
}

/* Columns of a part of the vocabulary: the logits become exp of what they are below their largest,
 * which is not computed again for the gradients. */
static void part_stats(double *stats, float *logits, int64_t label, int64_t vocab, bool counted)
{
    stats[0] = stats[1] = stats[2] = 0;
    if (counted) {
        const float most = row_max(logits, vocab);
        stats[0] = (double)most;
        stats[2] = label >= 0 && label < vocab ? (double)logits[label] : 0;
        stats[1] = row_exp(logits, logits, most, vocab);
    }
}

void cpu_loss_stats(struct device *device, double *stats, struct tensor logits,
                    const int32_t *labels, int64_t first)
{
    const int64_t rows = logits.dim[0], vocab = logits.dim[1];
    assert(logits.dtype == DTYPE_F32 && vocab > 0);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        part_stats(stats + 3 * n, (float *)logits.data + n * vocab, labels[n] - first, vocab,
                   labels[n] >= 0);
    }
}

/* A row over all ranks, in their order. */
struct merged {
    double most, sum, own; /* as in loss_stats */
    double shift;          /* exp(this rank's largest - the largest) */
};

static struct merged merge(const struct loss_parts *parts, int64_t rows, int64_t n)
{
    struct merged all = {.most = -INFINITY};
    for (int r = 0; r < parts->ranks; r++) {
        const double most = parts->stats[3 * (r * rows + n)];
        all.most = most > all.most ? most : all.most;
    }
    for (int r = 0; r < parts->ranks; r++) {
        const double *part = parts->stats + 3 * (r * rows + n);
        all.sum += part[1] * exp(part[0] - all.most);
        all.own += part[2];
    }
    all.shift = exp(parts->stats[3 * (parts->rank * rows + n)] - all.most);
    return all;
}

/* A row of weights, exp as part_stats left them, becomes gradients; label: of these columns, or
 * elsewhere. */
static void part_gradient(struct tensor grad, float *weight, int64_t n, int64_t label, float factor,
                          float scale)
{
    const int64_t vocab = grad.dim[1];
    const bool here = label >= 0 && label < vocab;
    if (grad.dtype == DTYPE_F32) {
        float *out = (float *)grad.data + n * vocab;
        memmove(out, weight, (size_t)vocab * sizeof *out);
        row_scale(out, factor, vocab);
        out[here ? label : 0] -= here ? scale : 0;
        return;
    }
    uint16_t *out = (uint16_t *)grad.data + n * vocab;
    row_scale_narrow(out, weight, factor, vocab);
    if (here) {
        out[label] = bf16_from_float(weight[label] * factor - scale);
    }
}

void cpu_loss_gradient(struct device *device, double *total, struct tensor grad,
                       struct tensor logits, const struct loss_parts *parts, const int32_t *labels,
                       float loss_scale)
{
    const int64_t rows = logits.dim[0], vocab = logits.dim[1];
    const size_t row = (size_t)vocab * (grad.data != NULL ? dtype_bytes(grad.dtype) : 0);
    double *loss = cpu_scratch(device, CPU_SLOT_LOSS, (size_t)rows * sizeof *loss), sum = 0;
    assert(grad.data == NULL || (grad.dim[0] == rows && grad.dim[1] == vocab));
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        loss[n] = 0;
        if (labels[n] < 0 && grad.data != NULL) {
            memset((char *)grad.data + (size_t)n * row, 0, row);
        } else if (labels[n] >= 0) {
            const struct merged all = merge(parts, rows, n);
            loss[n] = log(all.sum) + all.most - all.own;
            if (grad.data != NULL) {
                part_gradient(grad, (float *)logits.data + n * vocab, n, labels[n] - parts->first,
                              (float)((double)loss_scale * all.shift / all.sum), loss_scale);
            }
        }
    }
    for (int64_t n = 0; n < rows; n++) {
        sum += loss[n];
    }
    if (total != NULL) {
        *total += sum;
    }
}
