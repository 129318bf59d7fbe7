#include "kernels/invariance.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/device_kind.h"
#include "kernels/ops_fixed.h"

enum { ROWS = 65, GROUPS = 3, MOST = 512, NARROW = 48, BUFFERS = 4 };
static const int64_t group_offset[GROUPS + 1] = {0, 31, 32, ROWS};

/* Products of x [ROWS, cols] and w [out, cols], each with a result of at most `bytes`. */
struct trial {
    struct device *device;
    const struct ops *ops;
    enum dtype act;
    int64_t out, cols;
    char *buffer[BUFFERS];     /* owned, device: x, w, dy, result */
    size_t size[BUFFERS];      /* bytes */
    int64_t *offset;           /* [GROUPS + 1] owned, device */
    struct fixed_point *point; /* [1] owned, device */
    char *whole, *part;        /* [size[RESULT]] owned, host */
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
    t->ops->zero(t->device, t->buffer[RESULT], t->size[RESULT]);
    t->ops->grouped_backward_weight(t->device, (float *)(void *)t->buffer[RESULT], t->out * t->cols,
                                    view(t, DY, group_offset[first], rows, t->out),
                                    view(t, X, group_offset[first], rows, t->cols), t->offset,
                                    count);
}

/* As the first micro-batch of a step makes it, where the device has a way of its own for that. */
static void first_weight(const struct trial *t, int64_t first, int64_t count)
{
    if (t->ops->grouped_first_weight == NULL) {
        grouped_weight(t, first, count);
        return;
    }
    const int64_t rows = set_groups(t, first, count);
    t->ops->grouped_first_weight(t->device, (float *)(void *)t->buffer[RESULT], t->out * t->cols,
                                 view(t, DY, group_offset[first], rows, t->out),
                                 view(t, X, group_offset[first], rows, t->cols), t->offset, count);
}

/* As it is added up with run.deterministic layout: as integers, of groups of one source. */
static void fixed_weight(const struct trial *t, int64_t first, int64_t count)
{
    static const struct fixed_point point = {.scale = 0x1p40F, .limit = 0x1p62F};
    const int64_t rows = set_groups(t, first, count), matrix = t->out * t->cols;
    int64_t *const sum = (int64_t *)(void *)t->buffer[RESULT];
    t->ops->upload(t->device, t->point, &point, sizeof point);
    t->ops->zero(t->device, sum, t->size[RESULT]);
    t->ops->fixed->grouped_backward_weight(
        t->device, sum, matrix, (float *)(void *)(sum + GROUPS * matrix),
        view(t, DY, group_offset[first], rows, t->out),
        view(t, X, group_offset[first], rows, t->cols), t->offset, count, 1, NULL, t->point);
}

static void dense_weight(const struct trial *t, int64_t first, int64_t rows)
{
    t->ops->zero(t->device, t->buffer[RESULT], t->size[RESULT]);
    t->ops->linear_backward_weight(
        t->device, tensor_2d(t->buffer[RESULT], DTYPE_F32, t->out, t->cols),
        view(t, DY, first, rows, t->out), view(t, X, first, rows, t->cols));
}

/* Where row or group `i` of a result lies, in bytes. */
static size_t row_at(const struct trial *t, int64_t i, int64_t cols)
{
    return (size_t)(i * cols) * dtype_bytes(t->act);
}

/* What may be left out of a call: rows, groups, or nothing: threads alone differ. */
enum apart { APART_ROWS, APART_GROUPS, APART_NONE };
struct product {
    const char *name;
    void (*run)(const struct trial *t, int64_t first, int64_t count);
    enum apart apart;
    size_t weight; /* bytes of an element, where the result is gradients of w; else 0 */
    bool to_out;   /* rows of `out` columns */
};
static const struct product products[] = {
    {"linear_forward", forward, APART_ROWS, 0, true},
    {"linear_backward_input", backward_input, APART_ROWS, 0, false},
    {"linear_backward_weight", dense_weight, APART_NONE, sizeof(float), false},
    {"grouped_forward", grouped_forward, APART_GROUPS, 0, true},
    {"grouped_backward_input", grouped_input, APART_GROUPS, 0, false},
    {"grouped_backward_weight", grouped_weight, APART_GROUPS, sizeof(float), false},
    {"grouped_first_weight", first_weight, APART_GROUPS, sizeof(float), false},
    {"grouped_backward_weight in integers", fixed_weight, APART_GROUPS, sizeof(int64_t), false}};

/* What a call is tried on: [first, count], the whole first. */
struct parts {
    const char *name;
    int64_t part[6][2];
    int count;
};
static const struct parts parts_of[] = {
    [APART_ROWS] = {"rows", {{0, ROWS}, {0, 1}, {64, 1}, {3, 2}, {5, 7}, {30, 33}}, 6},
    [APART_GROUPS] = {"groups", {{0, GROUPS}, {0, 1}, {1, 1}, {1, 2}}, 4},
    [APART_NONE] = {"rows", {{0, ROWS}}, 1}};

static size_t result_at(const struct trial *t, const struct product *product, int64_t i)
{
    const size_t matrix = (size_t)(t->out * t->cols) * product->weight;
    if (product->apart == APART_NONE) {
        return i > 0 ? matrix : 0;
    }
    if (product->weight > 0) {
        return (size_t)i * matrix;
    }
    return row_at(t, product->apart == APART_GROUPS ? group_offset[i] : i,
                  product->to_out ? t->out : t->cols);
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
                             (long long)t->cols, parts_of[product->apart].name, (long long)first,
                             (long long)(first + count - 1),
                             (int)parts_of[product->apart].part[0][1], threads, all);
}

static enum status try_product(struct trial *t, const struct product *product)
{
    const struct parts *parts = &parts_of[product->apart];
    const int64_t all = parts->part[0][1];
    product->run(t, 0, all);
    t->ops->download(t->device, t->whole, t->buffer[RESULT], result_at(t, product, all));
    for (int p = 0; p < parts->count; p++) {
        TRY(try_part(t, product, parts->part[p][0], parts->part[p][1], 1));
        TRY(try_part(t, product, parts->part[p][0], parts->part[p][1], t->device->threads));
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
    bool good = t->whole != NULL && t->part != NULL && t->offset != NULL && t->point != NULL;
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
    const int64_t rows = ROWS * (out > cols ? out : cols),
                  most = out * cols > rows ? out * cols : rows;
    struct trial t = {.device = device, .ops = ops, .act = act, .out = out, .cols = cols};
    for (int b = 0; b < BUFFERS; b++) { /* results: integers of all groups, and scratch of one */
        t.size[b] = b != RESULT ? (size_t)most * sizeof(float)
                                : (size_t)most * (GROUPS + 1) * sizeof(int64_t);
        t.buffer[b] = ops->memory_alloc(device, t.size[b]);
    }
    t.offset = ops->memory_alloc(device, (GROUPS + 1) * sizeof *t.offset);
    t.point = ops->memory_alloc(device, sizeof *t.point);
    t.whole = malloc(t.size[RESULT]);
    t.part = malloc(t.size[RESULT]);
    const enum status status = run_trial(&t);
    for (int b = 0; b < BUFFERS; b++) {
        ops->memory_free(device, t.buffer[b], t.size[b]);
    }
    ops->memory_free(device, t.offset, (GROUPS + 1) * sizeof *t.offset);
    ops->memory_free(device, t.point, sizeof *t.point);
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
