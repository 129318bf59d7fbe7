#include "kernels/invariance.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/device_kind.h"

enum { ROWS = 65, GROUPS = 3, MOST = 512, NARROW = 48, BUFFERS = 4 };
static const int64_t group_offset[GROUPS + 1] = {0, 31, 32, ROWS};

/* Products of x [ROWS, cols] and w [out, cols], each with a result of at most `bytes`. */
struct trial {
    struct device *device;
    const struct ops *ops;
    enum dtype act;
    int64_t out, cols;
    char *buffer[BUFFERS]; /* owned, device: x, w, dy, result */
    size_t bytes;          /* of each buffer */
    int64_t *offset;       /* [GROUPS + 1] owned, device */
    char *whole, *part;    /* [bytes] owned, host */
};

enum { X, W, DY, RESULT };

static struct tensor view(const struct trial *t, int buffer, int64_t first, int64_t rows,
                          int64_t cols)
{
    char *at = t->buffer[buffer] + (size_t)(first * cols) * dtype_bytes(t->act);
    return tensor_2d(at, t->act, rows, cols);
}

/* ---- what is tried: rows [first, first + rows), or groups; results from RESULT's start ---- */

static void forward(const struct trial *t, int64_t first, int64_t rows)
{
    t->ops->linear_forward(t->device, view(t, RESULT, 0, rows, t->out),
                           view(t, X, first, rows, t->cols), view(t, W, 0, t->out, t->cols), false);
}

static void backward_input(const struct trial *t, int64_t first, int64_t rows)
{
    t->ops->linear_backward_input(t->device, view(t, RESULT, 0, rows, t->cols),
                                  view(t, DY, first, rows, t->out), view(t, W, 0, t->out, t->cols),
                                  false);
}

/* Groups [first, first + count); all of them have the same weights. */
static int64_t set_groups(const struct trial *t, int64_t first, int64_t count)
{
    int64_t offset[GROUPS + 1];
    for (int64_t g = 0; g <= count; g++) {
        offset[g] = group_offset[first + g] - group_offset[first];
    }
    t->ops->upload(t->device, t->offset, offset, (size_t)(count + 1) * sizeof *offset);
    return offset[count];
}

static void grouped_forward(const struct trial *t, int64_t first, int64_t count)
{
    const int64_t rows = set_groups(t, first, count);
    t->ops->grouped_forward(t->device, view(t, RESULT, 0, rows, t->out),
                            view(t, X, group_offset[first], rows, t->cols), t->buffer[W], 0,
                            t->offset, count);
}

static void grouped_input(const struct trial *t, int64_t first, int64_t count)
{
    const int64_t rows = set_groups(t, first, count);
    t->ops->grouped_backward_input(t->device, view(t, RESULT, 0, rows, t->cols),
                                   view(t, DY, group_offset[first], rows, t->out), t->buffer[W], 0,
                                   t->offset, count);
}

static void grouped_weight(const struct trial *t, int64_t first, int64_t count)
{
    const int64_t rows = set_groups(t, first, count);
    t->ops->zero(t->device, t->buffer[RESULT], t->bytes);
    t->ops->grouped_backward_weight(t->device, (float *)(void *)t->buffer[RESULT], t->out * t->cols,
                                    view(t, DY, group_offset[first], rows, t->out),
                                    view(t, X, group_offset[first], rows, t->cols), t->offset,
                                    count);
}

/* Where row or group `i` of a result lies, in bytes. */
static size_t row_at(const struct trial *t, int64_t i, int64_t cols)
{
    return (size_t)(i * cols) * dtype_bytes(t->act);
}

struct product {
    const char *name;
    void (*run)(const struct trial *t, int64_t first, int64_t count);
    bool grouped, weight, to_out; /* counts groups; result: gradient of w, rows of `out` columns */
};
static const struct product products[] = {
    {"linear_forward", forward, false, false, true},
    {"linear_backward_input", backward_input, false, false, false},
    {"grouped_forward", grouped_forward, true, false, true},
    {"grouped_backward_input", grouped_input, true, false, false},
    {"grouped_backward_weight", grouped_weight, true, true, false}};

static size_t result_at(const struct trial *t, const struct product *product, int64_t i)
{
    if (product->weight) {
        return (size_t)(i * t->out * t->cols) * sizeof(float);
    }
    return row_at(t, product->grouped ? group_offset[i] : i, product->to_out ? t->out : t->cols);
}

static enum status try_part(struct trial *t, const struct product *product, int64_t first,
                            int64_t count, int threads)
{
    const int all = t->device->threads;
    const size_t begin = result_at(t, product, first),
                 bytes = result_at(t, product, first + count) - begin;
    t->device->threads = threads;
    product->run(t, first, count);
    t->device->threads = all;
    t->ops->download(t->device, t->part, t->buffer[RESULT], bytes);
    return memcmp(t->part, t->whole + begin, bytes) == 0
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE,
                             "the matrix products of this machine depend on what they are computed "
                             "with: %s %s [%lld, %lld], %s %lld to %lld of %d with %d threads are "
                             "other bits than all of them with %d",
                             product->name, dtype_name(t->act), (long long)t->out,
                             (long long)t->cols, product->grouped ? "groups" : "rows",
                             (long long)first, (long long)(first + count - 1),
                             product->grouped ? GROUPS : ROWS, threads, all);
}

static enum status try_product(struct trial *t, const struct product *product)
{
    static const int64_t rows[][2] = {{0, ROWS}, {0, 1}, {64, 1}, {3, 2}, {5, 7}, {30, 33}},
                         groups[][2] = {{0, GROUPS}, {0, 1}, {1, 1}, {1, 2}};
    const int64_t(*parts)[2] = product->grouped ? groups : rows, all = parts[0][1];
    const size_t count =
        product->grouped ? sizeof groups / sizeof groups[0] : sizeof rows / sizeof rows[0];
    product->run(t, 0, all);
    t->ops->download(t->device, t->whole, t->buffer[RESULT], result_at(t, product, all));
    for (size_t p = 0; p < count; p++) {
        TRY(try_part(t, product, parts[p][0], parts[p][1], 1));
        TRY(try_part(t, product, parts[p][0], parts[p][1], t->device->threads));
    }
    return STATUS_OK;
}

static void fill(const struct trial *t, int buffer, int64_t count)
{
    uint32_t bits = 12345U + (uint32_t)buffer;
    for (int64_t i = 0; i < count; i++) { /* Knuth's generator; no sum of them is exact */
        bits = bits * 1664525U + 1013904223U;
        const float value = (float)(int32_t)bits * 0x1p-31F;
        if (t->act == DTYPE_F32) {
            ((float *)(void *)t->whole)[i] = value;
        } else {
            ((uint16_t *)(void *)t->whole)[i] = bf16_from_float(value);
        }
    }
    t->ops->upload(t->device, t->buffer[buffer], t->whole, (size_t)count * dtype_bytes(t->act));
}

static enum status run_trial(struct trial *t)
{
    bool good = t->whole != NULL && t->part != NULL && t->offset != NULL;
    for (int b = 0; b < BUFFERS; b++) {
        good = good && t->buffer[b] != NULL;
    }
    if (!good) {
        return status_fail(STATUS_RESOURCE, "out of memory to check matrix products");
    }
    fill(t, X, ROWS * t->cols);
    fill(t, W, t->out * t->cols);
    fill(t, DY, ROWS * t->out);
    for (size_t p = 0; p < sizeof products / sizeof products[0]; p++) {
        TRY(try_product(t, &products[p]));
    }
    return STATUS_OK;
}

static enum status try_shape(struct device *device, enum dtype act, int64_t out, int64_t cols)
{
    const struct ops *ops = device_ops(device);
    const int64_t weights = out * cols * GROUPS, rows = ROWS * (out > cols ? out : cols);
    struct trial t = {.device = device, .ops = ops, .act = act, .out = out, .cols = cols};
    t.bytes = (size_t)(weights > rows ? weights : rows) * sizeof(float);
    for (int b = 0; b < BUFFERS; b++) {
        t.buffer[b] = ops->memory_alloc(device, t.bytes);
    }
    t.offset = ops->memory_alloc(device, (GROUPS + 1) * sizeof *t.offset);
    t.whole = malloc(t.bytes);
    t.part = malloc(t.bytes);
    const enum status status = run_trial(&t);
    for (int b = 0; b < BUFFERS; b++) {
        ops->memory_free(device, t.buffer[b], t.bytes);
    }
    ops->memory_free(device, t.offset, (GROUPS + 1) * sizeof *t.offset);
    free(t.whole);
    free(t.part);
    return status;
}

enum status invariance_check(struct device *device, enum dtype act, int64_t width, int64_t inner)
{
    const int64_t sizes[] = {width, inner};
    for (int i = 0; i < 2; i++) { /* a long sum may be cut into parts: few results, all of it */
        if (sizes[i] > MOST) {
            TRY(try_shape(device, act, NARROW, sizes[i]));
            TRY(try_shape(device, act, sizes[i], NARROW));
        }
    }
    width = width < MOST ? width : MOST;
    inner = inner < MOST ? inner : MOST;
    TRY(try_shape(device, act, inner, width));
    return try_shape(device, act, width, inner);
}
