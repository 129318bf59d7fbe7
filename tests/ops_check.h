/* ops_check: the frame of the tests of a device's ops.
 *
 * A test hands a case to check_run, which runs it for every dtype, seed and kind of GEMM, each with
 * one thread and with two. A case makes tensors, calls ops and compares. Every tensor stands
 * between guard bytes, which are looked at when the case ends; then its bytes with two threads are
 * compared with those of one thread, so no case has to ask for either. Failures print op, shapes,
 * first bad coordinate and both values.
 *
 * Tolerances are derived: `acc` is the relative error of the arithmetic in f32 (U per rounding,
 * growing like the square root of the number of roundings), and a store in bf16 may do nothing but
 * round once, to nearest, what f32 arithmetic gave.
 */
#ifndef TESTS_OPS_CHECK_H
#define TESTS_OPS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "counts.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/tile.h"

enum { CHECK_GUARD = 64, CHECK_MOST = 160, CHECK_SEEDS = 3, CHECK_PARTS = 4 };
/* Also in bf16; also by our own GEMM kernel; in bf16 also by the vectors that this processor has
 * but would not be given: pairs of bf16, or these widened. */
enum { CHECK_BF16 = 1, CHECK_KERNELS = 2, CHECK_VECTORS = 4 };
enum check_way { CHECK_CHOSEN, CHECK_OWN, CHECK_OTHER };
static const double CHECK_U = 0x1p-24; /* half a unit in the last place of an f32 */
static const unsigned char CHECK_GUARD_BYTE = 0xA5, CHECK_POISON_BYTE = 0xFF; /* poison is a NaN */

/* One tensor of the running case. */
struct check_piece {
    const char *name; /* borrowed, a literal */
    struct tensor tensor;
    unsigned char *base; /* owned: guard, tensor, guard */
    unsigned char *kept; /* owned: the tensor's bytes after the run with one thread */
};

struct check {
    struct device *devices[2]; /* owned; with 1 and 2 threads */
    struct onednn *onednn[2];  /* owned by them */
    enum cpu_wide wide[2];     /* what they were opened with */
    enum cpu_attention attention[2];
    /* Of the running pass: */
    struct device *device; /* borrowed */
    const struct ops *ops; /* borrowed */
    enum dtype dtype;      /* the activation dtype */
    uint64_t seed;         /* from 1 */
    int threads;
    enum check_way way;
    char what[200]; /* op and shapes, for messages */
    double floor;   /* least scale of expected values, where they cancel */
    const double
        *mass; /* of each expected value: the sum of what it is a sum of, absolute; or NULL */
    struct check_piece piece[CHECK_MOST]; /* tensors of the case, in order of creation */
    int pieces;
    double *doubles[CHECK_MOST]; /* owned: arrays of the reference */
    int arrays;
};

/* --- failures --- */

static inline void check_fail(const struct check *c, const char *name, const struct tensor *t,
                              int64_t at, double actual, double expected, const char *why)
{
    const int64_t cols = t->ndim == 2 && t->dim[1] > 0 ? t->dim[1] : 1;
    fail_msg("%s, %s, seed %llu, %d thread(s)%s: %s[%lld,%lld] = %.9g, expected %.9g: %s", c->what,
             dtype_name(c->dtype), (unsigned long long)c->seed, c->threads,
             c->way == CHECK_OWN     ? ", own GEMM"
             : c->way == CHECK_OTHER ? ", other vectors"
                                     : "",
             name, (long long)(at / cols), (long long)(at % cols), actual, expected, why);
}

__attribute__((format(printf, 2, 3))) static inline void check_name(struct check *c,
                                                                    const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(c->what, sizeof c->what, format, args);
    va_end(args);
}

/* --- tensors and reference arrays of a case --- */

/* A tensor of poison between guards. */
static inline struct tensor check_tensor(struct check *c, const char *name, enum dtype dtype,
                                         int64_t rows, int64_t cols)
{
    struct tensor t = tensor_2d(NULL, dtype, rows, cols);
    const size_t bytes = tensor_bytes(&t);
    assert_true(c->pieces < CHECK_MOST);
    struct check_piece *piece = &c->piece[c->pieces++];
    piece->base = aligned_alloc(64, (bytes + 2 * CHECK_GUARD + 63) / 64 * 64);
    assert_non_null(piece->base);
    memset(piece->base, CHECK_GUARD_BYTE, bytes + 2 * CHECK_GUARD);
    t.data = piece->base + CHECK_GUARD;
    memset(t.data, CHECK_POISON_BYTE, bytes);
    piece->name = name;
    piece->tensor = t;
    return t;
}

static inline void check_set(struct tensor *t, int64_t i, double value)
{
    float *f32 = t->data;
    uint16_t *bf16 = t->data;
    if (t->dtype == DTYPE_F32) {
        f32[i] = (float)value;
    } else {
        assert_int_equal(t->dtype, DTYPE_BF16);
        bf16[i] = bf16_from_float((float)value);
    }
}

static inline double check_get(const struct tensor *t, int64_t i)
{
    switch (t->dtype) {
    case DTYPE_F32:
        return (double)((const float *)t->data)[i];
    case DTYPE_BF16:
        return (double)bf16_to_float(((const uint16_t *)t->data)[i]);
    case DTYPE_I32:
        return (double)((const int32_t *)t->data)[i];
    case DTYPE_I64:
        return (double)((const int64_t *)t->data)[i];
    case DTYPE_F64:
        return ((const double *)t->data)[i];
    case DTYPE_U8:
        return (double)((const uint8_t *)t->data)[i];
    default:
        return 0;
    }
}

/* Normal numbers of deviation `scale`, the same ones for every pass of a seed. */
static inline struct tensor check_random(struct check *c, const char *name, enum dtype dtype,
                                         int64_t rows, int64_t cols, double scale)
{
    struct tensor t = check_tensor(c, name, dtype, rows, cols);
    const uint64_t key = rng_key(c->seed, name);
    for (int64_t i = 0; i < rows * cols; i++) {
        check_set(&t, i, scale * rng_normal(key, (uint64_t)i));
    }
    return t;
}

static inline struct tensor check_copy(struct check *c, const char *name, struct tensor from)
{
    struct tensor t = check_tensor(c, name, from.dtype, from.dim[0], from.dim[1]);
    memcpy(t.data, from.data, tensor_bytes(&from));
    return t;
}

static inline double *check_doubles(struct check *c, int64_t count)
{
    double *out = calloc((size_t)count + 1, sizeof *out);
    assert_non_null(out);
    assert_true(c->arrays < CHECK_MOST);
    return c->doubles[c->arrays++] = out;
}

/* The tensor's values; poison becomes NaN, which check_close reads as "must stay untouched". */
static inline double *check_values(struct check *c, struct tensor t)
{
    double *out = check_doubles(c, tensor_count(&t));
    for (int64_t i = 0; i < tensor_count(&t); i++) {
        out[i] = check_get(&t, i);
    }
    return out;
}

/* What a store in `dtype` makes of a value. */
static inline double check_round(double value, enum dtype dtype)
{
    const float f32 = (float)value;
    return (double)(dtype == DTYPE_BF16 ? bf16_to_float(bf16_from_float(f32)) : f32);
}

/* --- comparisons --- */

static inline bool check_poisoned(const struct tensor *t, int64_t i)
{
    const size_t width = dtype_bytes(t->dtype);
    const unsigned char *bytes = (const unsigned char *)t->data + (size_t)i * width;
    bool poison = true;
    for (size_t j = 0; j < width; j++) {
        poison = poison && bytes[j] == CHECK_POISON_BYTE;
    }
    return poison;
}

/* Root mean square of what should have been written, at least c->floor. */
static inline double check_scale(const struct check *c, const double *expected, int64_t count)
{
    double squares = 0, used = 0;
    for (int64_t i = 0; i < count; i++) {
        squares += isnan(expected[i]) ? 0 : expected[i] * expected[i];
        used += isnan(expected[i]) ? 0 : 1;
    }
    return used > 0 ? fmax(sqrt(squares / used), c->floor) : c->floor;
}

/* f32: the relative L2 error is at most acc, and no element is off by more than 8 acc of itself and
 * the typical element. bf16: every element is at most half a unit (2^-8) further off, and but for
 * a few is the very bf16 nearest to `expected`: an error acc moves a value over the middle of two
 * neighbours, 2^-8 apart or more, with a chance of about 2 * 2^8 acc, more for small elements. With
 * c->mass factors were rounded to bf16 too, by 2^-8 of themselves at most, and so may be the sums.
 * Only with one thread: with two, the same bits are expected. */
static inline void check_close(const struct check *c, const char *name, struct tensor actual,
                               const double *expected, double acc)
{
    const int64_t count = tensor_count(&actual);
    const double scale = check_scale(c, expected, count);
    const double half_unit = actual.dtype == DTYPE_BF16 ? 0x1p-8 : 0;
    double squares = 0, used = 0, flips = 0, most = -1;
    int64_t worst = 0;
    for (int64_t i = 0; i < count && c->threads == 1; i++) {
        const double value = check_get(&actual, i), error = fabs(value - expected[i]);
        if (isnan(expected[i])) {
            if (!check_poisoned(&actual, i)) {
                check_fail(c, name, &actual, i, value, expected[i], "written outside the output");
            }
            continue;
        }
        const double rounded = c->mass != NULL ? 0x1p-8 * c->mass[i] : 0;
        const double near = fabs(expected[i]),
                     bound = 8 * acc * (near + scale) + half_unit * near + rounded;
        if (!(error <= bound)) {
            check_fail(c, name, &actual, i, value, expected[i], "element out of tolerance");
        }
        worst = error > most ? i : worst;
        most = fmax(most, error);
        squares += error * error;
        used += 1;
        flips += value != check_round(expected[i], actual.dtype) ? 1 : 0;
    }
    char why[120];
    if (actual.dtype == DTYPE_BF16 && c->mass == NULL) {
        snprintf(why, sizeof why, "%g of %g are not the nearest bf16", flips, used);
        if (flips > 4 + 16 * 0x1p8 * acc * used) {
            check_fail(c, name, &actual, worst, check_get(&actual, worst), expected[worst], why);
        }
    } else if (actual.dtype != DTYPE_BF16 && used > 0 && !(sqrt(squares / used) <= acc * scale)) {
        snprintf(why, sizeof why, "worst element; relative L2 error %.3g, allowed %.3g",
                 sqrt(squares / used) / scale, acc);
        check_fail(c, name, &actual, worst, check_get(&actual, worst), expected[worst], why);
    }
}

/* The same bits. */
static inline void check_exact(const struct check *c, const char *name, struct tensor actual,
                               struct tensor expected, const char *why)
{
    const size_t width = dtype_bytes(actual.dtype);
    const char *a = actual.data, *b = expected.data;
    assert_true(actual.dtype == expected.dtype && tensor_count(&actual) == tensor_count(&expected));
    for (int64_t i = 0; i < tensor_count(&actual); i++) {
        if (memcmp(a + (size_t)i * width, b + (size_t)i * width, width) != 0) {
            check_fail(c, name, &actual, i, check_get(&actual, i), check_get(&expected, i), why);
        }
    }
}

/* Five elements of `grad` (less `before`, what it held; NULL: nothing) against central differences
 * of `loss` by `variable`. Only in f32: `loss` knows no rounding. The differences' own error is
 * about h^2 + 1e-16 loss / h = 1e-9. */
static inline void check_gradient(const struct check *c, const char *name, struct tensor grad,
                                  const double *before, double *variable,
                                  double (*loss)(const void *), const void *args, double acc)
{
    const int64_t count = tensor_count(&grad);
    const double h = 1e-5;
    double scale = c->floor, seen = 0;
    for (int64_t i = 0; i < count; i++) {
        scale = fmax(scale, check_poisoned(&grad, i) ? 0 : fabs(check_get(&grad, i)));
    }
    for (int64_t i = 0; i < count && seen < 5 && c->dtype == DTYPE_F32 && c->threads == 1; i++) {
        const int64_t at = (int64_t)rng_permute(c->seed, (uint64_t)i, (uint64_t)count);
        if (check_poisoned(&grad, at)) {
            continue; /* a gap between rows */
        }
        const double old = variable[at], base = before != NULL ? before[at] : 0;
        variable[at] = old + h;
        const double above = loss(args);
        variable[at] = old - h;
        const double slope = (above - loss(args)) / (2 * h), value = check_get(&grad, at) - base;
        variable[at] = old;
        seen += 1;
        if (!(fabs(value - slope) <= 8 * acc * (fabs(slope) + fabs(base) + scale) + 1e-8)) {
            check_fail(c, name, &grad, at, value, slope, "not the finite difference");
        }
    }
    assert_true(count == 0 || seen > 0 || c->dtype != DTYPE_F32 || c->threads > 1);
}

/* Rows of a call of `rows` rows to run again alone: the first, the last, one, and half of them. */
struct check_part {
    int64_t first, count;
};

static inline struct check_part check_part(int64_t rows, int part)
{
    const struct check_part parts[CHECK_PARTS] = {
        {0, 1}, {rows - 1, 1}, {rows / 2, 1}, {rows / 3, (rows + 1) / 2}};
    return rows == 0 ? (struct check_part){0, 0} : parts[part];
}

/* --- passes --- */

static inline void check_end(struct check *c)
{
    for (int i = 0; i < c->pieces; i++) {
        struct check_piece *piece = &c->piece[i];
        const size_t bytes = tensor_bytes(&piece->tensor);
        for (size_t j = 0; j < CHECK_GUARD; j++) {
            if (piece->base[j] != CHECK_GUARD_BYTE ||
                piece->base[CHECK_GUARD + bytes + j] != CHECK_GUARD_BYTE) {
                check_fail(c, piece->name, &piece->tensor, 0, 0, 0, "guard bytes overwritten");
            }
        }
        if (piece->kept == NULL) {
            piece->kept = malloc(bytes + 1);
            assert_non_null(piece->kept);
            memcpy(piece->kept, piece->tensor.data, bytes);
        } else {
            struct tensor kept = piece->tensor;
            kept.data = piece->kept;
            check_exact(c, piece->name, piece->tensor, kept, "differs from one thread's bits");
        }
        free(piece->base);
    }
    for (int i = 0; i < c->arrays; i++) {
        free(c->doubles[i]);
    }
    c->pieces = c->arrays = 0;
}

static inline void check_set_way(const struct check *c, int pass)
{
    struct cpu_device *self = cpu_device_of(c->device);
    const bool other = c->way == CHECK_OTHER;
    self->onednn = c->way == CHECK_OWN ? NULL : c->onednn[pass];
    self->wide = c->way == CHECK_OWN                 ? CPU_WIDE_OFF
                 : !other                            ? c->wide[pass]
                 : c->wide[pass] == CPU_WIDE_WIDENED ? CPU_WIDE_PAIRS
                                                     : CPU_WIDE_WIDENED;
    self->attention = !other                                  ? c->attention[pass]
                      : c->attention[pass] == ATTENTION_PAIRS ? ATTENTION_WIDE
                                                              : ATTENTION_PAIRS;
}

/* Whether loops go by the vectors written for them, where the processor has them, or by the
 * compiler's; returns how they went. */
static inline bool check_set_vectors(const struct check *c, bool vectors)
{
    struct cpu_device *self = cpu_device_of(c->device);
    const bool before = self->vectors;
    self->vectors = vectors;
    return before;
}

/* What the compiler's loops gave; without clones they lack multiply-adds, and round otherwise. */
static inline void check_as_vectors(struct check *c, const char *name, struct tensor got,
                                    struct tensor want)
{
    if (CPU_CLONED != 0) {
        check_exact(c, name, got, want, "depends on vectors");
    }
}

/* One case with one thread, then with two. */
static inline void check_passes(struct check *c, void (*run)(struct check *, const void *),
                                const void *args)
{
    int made[2] = {0};
    c->pieces = c->arrays = 0; /* a test that failed has left them */
    for (int i = 0; i < CHECK_MOST; i++) {
        c->piece[i].kept = NULL;
    }
    for (int pass = 0; pass < 2; pass++) {
        c->device = c->devices[pass];
        c->ops = device_ops(c->device);
        c->threads = pass + 1;
        c->floor = 0;
        c->mass = NULL;
        check_set_way(c, pass);
        run(c, args);
        made[pass] = c->pieces;
        check_end(c);
    }
    assert_int_equal(made[0], made[1]);
    for (int i = 0; i < made[0]; i++) {
        free(c->piece[i].kept);
        c->piece[i].kept = NULL;
    }
}

/* Each has other numbers; shapes and paths are those of the first. */
static inline uint64_t check_seeds(void)
{
    return counts_thin() ? 1 : CHECK_SEEDS;
}

static inline bool check_has(const struct check *c, enum check_way way, int flags)
{
    return way == CHECK_OWN     ? (flags & CHECK_KERNELS) != 0
           : way == CHECK_OTHER ? (flags & CHECK_VECTORS) != 0 && tile_has_pairs() &&
                                      c->attention[0] != ATTENTION_NARROW && c->onednn[0] != NULL
                                : true;
}

/* Runs a case in f32 and, as `flags` say, bf16 and by other kernels, for every seed. */
static inline void check_run(struct check *c, void (*run)(struct check *, const void *),
                             const void *args, int flags)
{
    for (enum check_way way = CHECK_CHOSEN; way <= CHECK_OTHER; way++) {
        const int last = (flags & CHECK_BF16) != 0 ? 1 : 0;
        for (int bf16 = way == CHECK_OTHER ? 1 : 0; check_has(c, way, flags) && bf16 <= last;
             bf16++) {
            const uint64_t seeds = way == CHECK_OTHER ? 1 : check_seeds();
            for (uint64_t seed = 1; seed <= seeds; seed++) {
                c->way = way;
                c->dtype = bf16 != 0 ? DTYPE_BF16 : DTYPE_F32;
                c->seed = seed;
                check_passes(c, run, args);
            }
        }
    }
}

/* Setup and teardown of a group of tests; the state is a struct check. */
static inline int check_open(void **state)
{
    struct check *c = calloc(1, sizeof *c);
    assert_non_null(c);
    for (int i = 0; i < 2; i++) {
        const struct device_options options = {.name = "cpu", .threads = i + 1};
        assert_int_equal(device_open(&c->devices[i], &options), STATUS_OK);
        c->onednn[i] = cpu_device_of(c->devices[i])->onednn;
        c->wide[i] = cpu_device_of(c->devices[i])->wide;
        c->attention[i] = cpu_device_of(c->devices[i])->attention;
    }
    *state = c;
    return 0;
}

static inline int check_close_devices(void **state)
{
    struct check *c = *state;
    for (int i = 0; i < 2; i++) {
        cpu_device_of(c->devices[i])->onednn = c->onednn[i];
        device_close(c->devices[i]);
    }
    free(c);
    return 0;
}

#endif
