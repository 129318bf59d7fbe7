#include "kernels/cpu/head_wide.h"

#include <assert.h>
#include <math.h>
#include <omp.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"

/* Bytes of a column's powers that go through together: of 2048 rows in bf16, 1024 in f32; how far
 * above the shift a logit may be: no sum of powers nears the largest number, no row over it the
 * smallest; columns of dW that a thread adds labels to. */
enum { CHUNK_BYTES = 4096, MOST = 30, COLUMNS = 64 };

/* Scratch of a chunk. */
struct chunk {
    double *loss;                      /* [rows] */
    float *shift, *own, *factor, *off; /* [rows]; scale / sum; scale (p - 1) of the label,
                                          before that the largest logit above the shift */
    float *sum, *most;                 /* [rows, pieces] */
    float *row;                        /* [threads][2][C] */
    float *product;                    /* [rows, C] e^(x - shift) W */
    char *power;                       /* [rows, V] of x's dtype */
    char *scaled;                      /* [rows, C] of x's dtype: factor x */
};

static int64_t chunk_rows(struct tensor x)
{
    const int64_t most = CHUNK_BYTES / (int64_t)dtype_bytes(x.dtype);
    return x.dim[0] < most ? x.dim[0] : most;
}

static struct gemm logits_of(struct tensor x, struct tensor w, char *power)
{
    return gemm_forward(tensor_2d(power, x.dtype, x.dim[0], w.dim[0]), x, w);
}

bool head_wide_takes(struct device *device, struct tensor x, struct tensor w)
{
    const struct gemm gemm = logits_of(x, w, NULL);
    return gemm.vast && gemm_is_wide(device, &gemm);
}

/* What is laid out from `base` on; NULL: only how much it is. */
struct room {
    char *base;
    size_t used;
};

/* `count` elements of `bytes`, to the next cache line. */
static void *take(struct room *room, int64_t count, size_t bytes)
{
    void *const here = room->base == NULL ? NULL : room->base + room->used;
    room->used += ((size_t)count * bytes + 63) / 64 * 64;
    return here;
}

static struct chunk lay_out(struct room *room, const struct device *device, struct tensor x,
                            int64_t vocab, bool backward)
{
    const int64_t rows = chunk_rows(x), width = x.dim[1], pieces = gemm_exp_pieces(vocab);
    const size_t element = dtype_bytes(x.dtype);
    struct chunk c = {0};
    c.loss = take(room, rows, sizeof(double));
    c.shift = take(room, rows, sizeof(float));
    c.own = take(room, rows, sizeof(float));
    c.factor = take(room, rows, sizeof(float));
    c.off = take(room, rows, sizeof(float));
    c.sum = take(room, rows * pieces, sizeof(float));
    c.most = take(room, rows * pieces, sizeof(float));
    c.row = take(room, 2 * device->threads * width, sizeof(float));
    if (backward) {
        c.product = take(room, rows * width, sizeof(float));
        c.scaled = take(room, rows * width, element);
        c.power = take(room, rows * vocab, element);
    }
    return c;
}

static struct chunk make_chunk(struct device *device, struct tensor x, struct tensor w,
                               bool backward)
{
    struct room room = {0};
    (void)lay_out(&room, device, x, w.dim[0], backward);
    room = (struct room){cpu_scratch(device, CPU_SLOT_LOSS, room.used), 0};
    return lay_out(&room, device, x, w.dim[0], backward);
}

/* --- logits and losses --- */

/* Not the kernel's order of sums: what a shift is off by, its own sum makes up for. */
static float label_logit(float *row, struct tensor x, struct tensor w, int64_t n, int32_t label)
{
    const int64_t width = x.dim[1];
    row_load(row, x.data, x.dtype, n * width, width);
    row_load(row + width, w.data, w.dtype, label * width, width);
    return row_dot(row, row + width, width);
}

/* Powers of rows [first, first + count) and their sums. */
static void make_powers(struct device *device, const struct chunk *c, struct tensor x,
                        struct tensor w, const int32_t *labels, int64_t first, int64_t count)
{
    const int64_t pieces = gemm_exp_pieces(w.dim[0]);
    const struct gemm_exp powers = {.shift = c->shift + first,
                                    .label = labels + first,
                                    .own = c->own + first,
                                    .sum = c->sum + first * pieces,
                                    .most = c->most + first * pieces};
    const int64_t skipped = first * w.dim[0] * (int64_t)dtype_bytes(x.dtype);
    char *const power = c->power == NULL ? NULL : c->power + skipped;
    struct gemm gemm = logits_of(tensor_rows(&x, first, count), w, power);
    gemm.exp = &powers;
    gemm_run(device, &gemm, 1);
}

/* The largest logit of a row above its shift. */
static float row_most(const struct chunk *c, int64_t n, int64_t pieces)
{
    float most = c->most[n * pieces];
    for (int64_t i = 1; i < pieces; i++) {
        most = c->most[n * pieces + i] > most ? c->most[n * pieces + i] : most;
    }
    return most;
}

/* From a row's sums: its loss, and what its gradients are multiplied by. */
static void row_loss(const struct chunk *c, int64_t n, int64_t pieces, int32_t label, double scale)
{
    double sum = 0;
    c->loss[n] = 0;
    c->factor[n] = c->off[n] = 0;
    for (int64_t i = 0; label >= 0 && i < pieces; i++) {
        sum += (double)c->sum[n * pieces + i];
    }
    if (label >= 0) {
        const double below = (double)c->own[n] - (double)c->shift[n];
        const double loss = log(sum) - below;
        c->loss[n] = loss < 0 ? 0 : loss; /* p = 1 but for rounding */
        c->factor[n] = (float)(scale / sum);
        c->off[n] = (float)(scale * (exp(below) / sum - 1));
    }
}

/* Rows whose logits are too far above their shifts get others, and go once more, with what is
 * between them: a loss of as much is seldom. */
static void raise_shifts(struct device *device, const struct chunk *c, struct tensor x,
                         struct tensor w, const int32_t *labels)
{
    const int64_t rows = x.dim[0], pieces = gemm_exp_pieces(w.dim[0]);
    int64_t first = rows, last = -1;
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        c->off[n] = row_most(c, n, pieces);
    }
    for (int64_t n = 0; n < rows; n++) {
        if (c->off[n] > MOST) {
            c->shift[n] += c->off[n];
            first = n < first ? n : first;
            last = n;
        }
    }
    if (first <= last) {
        make_powers(device, c, x, w, labels, first, last + 1 - first);
    }
}

static void chunk_loss(struct device *device, const struct chunk *c, struct tensor x,
                       struct tensor w, const int32_t *labels, float scale)
{
    const int64_t rows = x.dim[0], width = x.dim[1], pieces = gemm_exp_pieces(w.dim[0]);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        float *row = c->row + 2 * omp_get_thread_num() * width;
        c->shift[n] = labels[n] < 0 ? 0 : label_logit(row, x, w, n, labels[n]);
    }
    make_powers(device, c, x, w, labels, 0, rows);
    raise_shifts(device, c, x, w, labels);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        row_loss(c, n, pieces, labels[n], (double)scale);
    }
}

/* --- gradients --- */

static void scale_rows(struct device *device, const struct chunk *c, struct tensor x)
{
    const int64_t width = x.dim[1];
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < x.dim[0]; n++) {
        float *row = c->row + 2 * omp_get_thread_num() * width;
        row_load(row, x.data, x.dtype, n * width, width);
        row_scale(row, c->factor[n], width);
        row_store(c->scaled, x.dtype, n * width, row, width);
    }
}

static void input_gradient(struct device *device, const struct chunk *c, struct tensor dx,
                           struct tensor power, struct tensor w, const int32_t *labels)
{
    const int64_t rows = dx.dim[0], width = dx.dim[1];
    cpu_linear_backward_input(device, tensor_2d(c->product, DTYPE_F32, rows, width), power, w,
                              false);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        float *row = c->product + n * width;
        row_scale(row, c->factor[n], width);
        if (labels[n] >= 0) {
            row_add_scaled_of(row, w.data, w.dtype, labels[n] * width, c->off[n], width);
        }
        row_store(dx.data, dx.dtype, n * width, row, width);
    }
}

/* Rows in their order, whatever the threads: each has columns of its own. */
static void add_labels(struct device *device, const struct chunk *c, struct tensor dw,
                       struct tensor x, const int32_t *labels)
{
    const int64_t width = x.dim[1];
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t first = 0; first < width; first += COLUMNS) {
        const int64_t count = width - first < COLUMNS ? width - first : COLUMNS;
        for (int64_t n = 0; n < x.dim[0]; n++) {
            if (labels[n] >= 0) {
                row_add_scaled_of((float *)dw.data + labels[n] * width + first, x.data, x.dtype,
                                  n * width + first, c->off[n], count);
            }
        }
    }
}

void head_wide(struct device *device, double *total, struct tensor dx, struct tensor dw,
               struct tensor x, struct tensor w, const int32_t *labels, float loss_scale)
{
    const bool backward = dx.data != NULL;
    const struct chunk c = make_chunk(device, x, w, backward);
    double sum = 0;
    const int64_t chunk = chunk_rows(x);
    for (int64_t first = 0; first < x.dim[0]; first += chunk) {
        const int64_t rows = x.dim[0] - first < chunk ? x.dim[0] - first : chunk;
        const struct tensor part = tensor_rows(&x, first, rows);
        chunk_loss(device, &c, part, w, labels + first, loss_scale);
        for (int64_t n = 0; n < rows; n++) {
            sum += c.loss[n];
        }
        if (backward) {
            const struct tensor power = tensor_2d(c.power, x.dtype, rows, w.dim[0]);
            input_gradient(device, &c, tensor_rows(&dx, first, rows), power, w, labels + first);
            scale_rows(device, &c, part);
            cpu_linear_backward_weight(device, dw, power,
                                       tensor_2d(c.scaled, x.dtype, rows, x.dim[1]));
            add_labels(device, &c, dw, part, labels + first);
        }
    }
    *total += sum;
}
