/* invariance_check: every op of kernels/ops.h, ops_fp8.h and ops_fixed.h that works by rows gives a
 * row the same bits alone, in any position, among any other rows and with any number of threads;
 * every op that sums over rows gives the same bits with any number of threads.
 *
 * A family runs an op on the rows it is told, of a pool whose row i is always the same, and names
 * its results: a row's, or the whole call's. What is a row is the family's: a token, a sequence of
 * tokens (attention), a cached sequence (decode). The check runs it on all of the pool, in other
 * orders and numbers, on several devices (of other threads), and compares the bits with those of
 * the first run. Ops left out have no float arithmetic over rows (sorting and moving rows, counts),
 * or none that a row's place could change (copies); jitter and init_normal go by the element's
 * place on purpose.
 */
#ifndef TESTS_INVARIANCE_CHECK_H
#define TESTS_INVARIANCE_CHECK_H

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "kernels/device.h"
#include "kernels/ops_fixed.h"
#include "kernels/ops_fp8.h"

enum { INVARIANCE_BUFFERS = 48, INVARIANCE_RESULTS = 8, INVARIANCE_POOL = 70 };

struct invariance_result {
    void *data;       /* device */
    size_t row_bytes; /* of a row; 0: of the whole call */
    size_t bytes;
    char *first; /* owned, host: of the first run */
};

/* One run of one family. */
struct invariance {
    struct device *device;
    const struct ops *ops;
    enum dtype act;
    int64_t pool;         /* rows there are */
    int64_t width, inner; /* columns: C, F */
    const int64_t *rows;  /* [count] of the pool, in the order of this call */
    int64_t count;
    bool all; /* the whole pool in order: results of whole calls are compared */
    struct {
        void *data;
        size_t bytes;
    } buffer[INVARIANCE_BUFFERS];
    int buffers;
    struct invariance_result result[INVARIANCE_RESULTS];
    int results;
};

static inline void *invariance_memory(struct invariance *v, size_t bytes)
{
    if (v->buffers == INVARIANCE_BUFFERS) {
        abort();
    }
    void *data = v->ops->memory_alloc(v->device, bytes + 64); /* zeros */
    v->buffer[v->buffers].data = data;
    v->buffer[v->buffers++].bytes = bytes + 64;
    return data;
}

static inline void *invariance_upload(struct invariance *v, const void *host, size_t bytes)
{
    void *data = invariance_memory(v, bytes);
    v->ops->upload(v->device, data, host, bytes);
    return data;
}

/* Values of (name, index) as `dtype`; integers of I32: below `limit`. */
static inline void invariance_value(void *to, int64_t at, enum dtype dtype, uint64_t key,
                                    int64_t index, int64_t limit)
{
    const double x = 2 * rng_uniform(key, (uint64_t)index) - 1;
    switch (dtype) {
    case DTYPE_F32:
        ((float *)to)[at] = (float)x;
        break;
    case DTYPE_BF16:
        ((uint16_t *)to)[at] = bf16_from_float((float)x);
        break;
    default:
        ((int32_t *)to)[at] = (int32_t)((x + 1) / 2 * (double)limit);
    }
}

/* [count, cols]: the rows of this call. */
static inline struct tensor invariance_in(struct invariance *v, const char *name, enum dtype dtype,
                                          int64_t cols, int64_t limit)
{
    const size_t bytes = (size_t)(v->count * cols) * dtype_bytes(dtype);
    const uint64_t key = rng_key(11, name);
    void *host = malloc(bytes + 1);
    for (int64_t i = 0; i < v->count * cols; i++) {
        invariance_value(host, i, dtype, key, v->rows[i / cols] * cols + i % cols, limit);
    }
    const struct tensor t = tensor_2d(invariance_upload(v, host, bytes), dtype, v->count, cols);
    free(host);
    return t;
}

/* [rows, cols], whatever the call: weights and the like. */
static inline struct tensor invariance_fixed(struct invariance *v, const char *name,
                                             enum dtype dtype, int64_t rows, int64_t cols)
{
    const size_t bytes = (size_t)(rows * cols) * dtype_bytes(dtype);
    const uint64_t key = rng_key(12, name);
    void *host = malloc(bytes + 1);
    for (int64_t i = 0; i < rows * cols; i++) {
        invariance_value(host, i, dtype, key, i, 8);
    }
    const struct tensor t = tensor_2d(invariance_upload(v, host, bytes), dtype, rows, cols);
    free(host);
    return t;
}

static inline void invariance_compare(struct invariance *v, void *data, size_t row_bytes,
                                      size_t bytes)
{
    v->result[v->results].data = data;
    v->result[v->results].row_bytes = row_bytes;
    v->result[v->results++].bytes = bytes;
}

/* A result of rows, zeros before. */
static inline struct tensor invariance_out(struct invariance *v, enum dtype dtype, int64_t cols)
{
    struct tensor t = tensor_2d(NULL, dtype, v->count, cols);
    const size_t bytes = tensor_bytes(&t);
    t.data = invariance_memory(v, bytes);
    invariance_compare(v, t.data, (size_t)cols * dtype_bytes(dtype), bytes);
    return t;
}

/* A result of the whole call, zeros before. */
static inline struct tensor invariance_sum(struct invariance *v, enum dtype dtype, int64_t rows,
                                           int64_t cols)
{
    struct tensor t = tensor_2d(NULL, dtype, rows, cols);
    const size_t bytes = tensor_bytes(&t);
    t.data = invariance_memory(v, bytes);
    invariance_compare(v, t.data, 0, bytes);
    return t;
}

struct invariance_family {
    const char *name;
    void (*run)(struct invariance *v);
    bool bf16_only;
};

/* What is compared with what, and on which devices. */
struct invariance_devices {
    struct device *const *device; /* results of all are the same */
    int count;
    int64_t pool, width, inner;
    const char *name; /* of these devices, for messages */
};

#include "invariance_families.h"

static inline void invariance_free(struct invariance *v)
{
    for (int i = 0; i < v->buffers; i++) {
        v->ops->memory_free(v->device, v->buffer[i].data, v->buffer[i].bytes);
    }
}

/* Runs once; the first run of a family is kept in `kept`. Returns whether all bits are its. */
static inline bool invariance_run(const struct invariance_family *family, struct invariance v,
                                  struct invariance_result kept[INVARIANCE_RESULTS],
                                  const char *what)
{
    bool right = true;
    family->run(&v);
    for (int r = 0; r < v.results; r++) {
        const struct invariance_result *now = &v.result[r];
        char *got = malloc(now->bytes + 1);
        v.ops->download(v.device, got, now->data, now->bytes);
        if (kept[r].first == NULL) {
            kept[r] = *now;
            kept[r].first = got;
            continue;
        }
        const int64_t parts = now->row_bytes > 0 ? v.count : v.all ? 1 : 0;
        const size_t width = now->row_bytes > 0 ? now->row_bytes : now->bytes;
        for (int64_t i = 0; i < parts && right; i++) {
            const int64_t from = now->row_bytes > 0 ? v.rows[i] : 0;
            if (memcmp(got + (size_t)i * width, kept[r].first + (size_t)from * width, width) != 0) {
                printf("%s, %s, %s: result %d, row %lld of %lld, which is %lld of the pool: other "
                       "bits than in the first run\n",
                       family->name, dtype_name(v.act), what, r, (long long)i, (long long)v.count,
                       (long long)from);
                right = false;
            }
        }
        free(got);
    }
    invariance_free(&v);
    return right;
}

/* Which rows, in which order: call number `variant`; false: there are no more. */
static inline bool invariance_rows(int variant, int64_t pool, int64_t *rows, int64_t *count)
{
    static const int64_t counts[] = {0, 0, 1, 1, 2, 3, 7, 33, 64}; /* 0: all */
    enum { VARIANTS = sizeof counts / sizeof counts[0] };
    if (variant >= VARIANTS) {
        return false;
    }
    *count = counts[variant] == 0 || counts[variant] > pool ? pool : counts[variant];
    for (int64_t i = 0; i < *count; i++) {
        rows[i] = variant == 0 ? i
                  : variant == 2
                      ? pool - 1
                      : (int64_t)rng_permute((uint64_t)variant, (uint64_t)i, (uint64_t)pool);
    }
    return true;
}

static inline bool invariance_family_check(const struct invariance_family *family, enum dtype act,
                                           const struct invariance_devices *devices)
{
    struct invariance_result kept[INVARIANCE_RESULTS] = {{0}};
    int64_t rows[INVARIANCE_POOL], count = 0;
    bool right = true;
    for (int variant = 0; invariance_rows(variant, devices->pool, rows, &count); variant++) {
        /* all devices for the whole pool, in both orders; else one after the other */
        const int begin = variant < 2 ? 0 : variant % devices->count,
                  end = variant < 2 ? devices->count : begin + 1;
        for (int d = begin; d < end; d++) {
            char what[128];
            snprintf(what, sizeof what, "%s, %d thread(s)", devices->name,
                     device_info(devices->device[d])->threads);
            const struct invariance v = {.device = devices->device[d],
                                         .ops = device_ops(devices->device[d]),
                                         .act = act,
                                         .pool = devices->pool,
                                         .width = devices->width,
                                         .inner = devices->inner,
                                         .rows = rows,
                                         .count = count,
                                         .all = variant == 0};
            right = invariance_run(family, v, kept, what) && right;
        }
    }
    for (int r = 0; r < INVARIANCE_RESULTS; r++) {
        free(kept[r].first);
    }
    return right;
}

/* Every family, in f32 and bf16. */
static inline bool invariance_check_all(const struct invariance_devices *devices)
{
    bool right = true;
    for (size_t f = 0; f < sizeof invariance_families / sizeof invariance_families[0]; f++) {
        const struct invariance_family *family = &invariance_families[f];
        right = (family->bf16_only || invariance_family_check(family, DTYPE_F32, devices)) && right;
        right = invariance_family_check(family, DTYPE_BF16, devices) && right;
    }
    return right;
}

#endif
