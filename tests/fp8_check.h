/* fp8_check: what the tests of FP8 ops share: rows of codes between guard bytes, and a quantiser
 * that has nothing in common with the device's: a code is found among the values E4M3
 * has, a scale by trying powers of two, all in double.
 */
#ifndef TESTS_FP8_CHECK_H
#define TESTS_FP8_CHECK_H

#include "ops_check.h"

#include "kernels/ops_fp8.h"

/* --- E4M3 by its definition --- */

/* Sign, 4 bits of exponent (bias 7), 3 of mantissa, no infinities. */
static inline double e4m3_value(uint8_t code)
{
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double magnitude = (code & 0x7f) == 0x7f ? (double)NAN
                             : exponent == 0       ? ldexp(mantissa, -9)
                                                   : ldexp(8 + mantissa, exponent - 10);
    return (code & 0x80) != 0 ? -magnitude : magnitude;
}

/* The same, [256]. */
static inline const double *e4m3_values(void)
{
    static double value[256];
    if (value[0x7e] == 0) {
        for (int code = 0; code < 256; code++) {
            value[code] = e4m3_value((uint8_t)code);
        }
    }
    return value;
}

/* The nearest value's code, of two that are as near the even one: values rise with their codes, so
 * it is one of the two that y lies between. */
static inline uint8_t e4m3_nearest(double y)
{
    const double magnitude = fabs(y), *value = e4m3_values();
    int low = 0, high = 0x7e;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        low = value[middle] <= magnitude ? middle : low;
        high = value[middle] <= magnitude ? high : middle;
    }
    const double below = magnitude - value[low], above = value[high] - magnitude;
    const int best = below < above || (below == above && low % 2 == 0) ? low : high;
    return (uint8_t)(best | (signbit(y) ? 0x80 : 0));
}

/* The least power of two that brings amax to at most `largest`. */
static inline double power_for(double amax, double largest)
{
    double scale = 0x1p-100;
    while (amax > largest * scale) {
        scale *= 2;
    }
    return scale;
}

/* One tile of `count` numbers, `step` apart: codes side by side; returns the scale. */
static inline float reference_tile(uint8_t *code, const double *x, int64_t step, int64_t count,
                                   bool power_of_two, struct fp8_counters *tally)
{
    double amax = 0;
    bool bad = false;
    for (int64_t i = 0; i < count; i++) {
        bad = bad || !isfinite(x[i * step]);
        amax = fmax(amax, fabs(x[i * step]));
    }
    tally->values += (uint64_t)count;
    if (bad) {
        memset(code, 0x7f, (size_t)count);
        tally->bad_tiles++;
        return 1;
    }
    const float most = (float)fmax(amax, (double)1e-4F), seen = (float)amax;
    const volatile float inverse = 448.0F / most;
    const double scale = power_for((double)most, 448);
    uint32_t bits;
    memcpy(&bits, &seen, sizeof bits);
    tally->amax = bits > tally->amax ? bits : tally->amax;
    for (int64_t i = 0; i < count; i++) {
        const volatile float product = (float)x[i * step] * inverse;
        const double y = power_of_two ? x[i * step] / scale : (double)product;
        code[i] = e4m3_nearest(y);
        tally->underflows += x[i * step] != 0 && (code[i] & 0x7f) == 0 ? 1 : 0;
        tally->saturated += fabs(y) > 448 ? 1 : 0;
    }
    return power_of_two ? (float)scale : most / 448.0F;
}

/* --- rows of codes --- */

/* Of poison, with rows of scales longer than they need be. */
static inline struct fp8_rows fp8_check_rows(struct check *c, const char *name, int64_t rows,
                                             int64_t cols)
{
    const int64_t pitch = (rows + 3) / 4 * 4 + 4;
    return (struct fp8_rows){.code = check_tensor(c, name, DTYPE_U8, rows, cols).data,
                             .scale = check_tensor(c, name, DTYPE_F32, fp8_tiles(cols), pitch).data,
                             .rows = rows,
                             .cols = cols,
                             .pitch = pitch};
}

static inline void fp8_fail(const struct check *c, const char *name, const char *what, int64_t row,
                            int64_t col, double actual, double expected)
{
    fail_msg("%s, seed %llu, %d thread(s): %s's %s[%lld,%lld] = %.9g, expected %.9g", c->what,
             (unsigned long long)c->seed, c->threads, name, what, (long long)row, (long long)col,
             actual, expected);
}

/* One tile of row `row` against its numbers. */
static inline void fp8_expect_tile(const struct check *c, const char *name,
                                   const struct fp8_rows *q, int64_t row, int64_t col,
                                   const double *x, int64_t step, int64_t count, bool power_of_two,
                                   struct fp8_counters *tally)
{
    uint8_t code[FP8_TILE];
    const uint8_t *actual = q->code + row * q->cols + col;
    const float expected = reference_tile(code, x, step, count, power_of_two, tally),
                scale = q->scale[col / FP8_TILE * q->pitch + row];
    if (scale != expected) {
        fp8_fail(c, name, "scale", row, col / FP8_TILE, (double)scale, (double)expected);
    }
    for (int64_t i = 0; i < count; i++) {
        if (actual[i] != code[i]) {
            fp8_fail(c, name, "code", row, col + i, actual[i], code[i]);
        }
    }
}

/* q against x[q.rows, q.cols]; tally (never NULL) adds what the reference counts. */
static inline void fp8_expect_rows(const struct check *c, const char *name, struct fp8_rows q,
                                   const double *x, bool power_of_two, struct fp8_counters *tally)
{
    for (int64_t r = 0; r < q.rows; r++) {
        for (int64_t col = 0; col < q.cols; col += FP8_TILE) {
            const int64_t count = q.cols - col < FP8_TILE ? q.cols - col : FP8_TILE;
            fp8_expect_tile(c, name, &q, r, col, x + r * q.cols + col, 1, count, power_of_two,
                            tally);
        }
    }
}

/* t against x[rows, t.rows] in groups: the codes of tokens, zeros behind each group, nothing
 * behind the last. */
static inline void fp8_expect_tokens(const struct check *c, const char *name, struct fp8_rows t,
                                     const double *x, const int64_t *offset, int64_t groups,
                                     bool power_of_two, struct fp8_counters *tally)
{
    int64_t begin = 0;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t rows = offset[g + 1] - offset[g], end = begin + fp8_tiles(rows) * FP8_TILE;
        for (int64_t ch = 0; ch < t.rows; ch++) {
            for (int64_t at = 0; at < rows; at += FP8_TILE) {
                fp8_expect_tile(c, name, &t, ch, begin + at, x + (offset[g] + at) * t.rows + ch,
                                t.rows, rows - at < FP8_TILE ? rows - at : FP8_TILE, power_of_two,
                                tally);
            }
            for (int64_t col = begin + rows; col < end; col++) {
                if (t.code[ch * t.cols + col] != 0) {
                    fp8_fail(c, name, "code behind a group", ch, col, t.code[ch * t.cols + col], 0);
                }
            }
        }
        begin = end;
    }
    for (int64_t ch = 0; ch < t.rows; ch++) {
        for (int64_t col = begin; col < t.cols; col++) {
            if (t.code[ch * t.cols + col] != CHECK_POISON_BYTE) {
                fp8_fail(c, name, "code behind all groups", ch, col, t.code[ch * t.cols + col],
                         CHECK_POISON_BYTE);
            }
        }
    }
}

/* The same bytes in codes and scales. Either may have another pitch. */
static inline void fp8_expect_same(const struct check *c, const char *name, struct fp8_rows actual,
                                   struct fp8_rows expected)
{
    for (int64_t r = 0; r < expected.rows; r++) {
        for (int64_t col = 0; col < expected.cols; col++) {
            const uint8_t a = actual.code[r * actual.cols + col],
                          b = expected.code[r * expected.cols + col];
            const float s = actual.scale[col / FP8_TILE * actual.pitch + r],
                        t = expected.scale[col / FP8_TILE * expected.pitch + r];
            if (a != b) {
                fp8_fail(c, name, "code", r, col, a, b);
            }
            if (memcmp(&s, &t, sizeof s) != 0) {
                fp8_fail(c, name, "scale", r, col / FP8_TILE, (double)s, (double)t);
            }
        }
    }
}

static inline void fp8_expect_counters(const struct check *c, struct fp8_counters actual,
                                       struct fp8_counters expected)
{
    if (memcmp(&actual, &expected, sizeof actual) != 0) {
        fail_msg("%s, %d thread(s): counters %llu %llu %llu %llu %08x, expected %llu %llu %llu "
                 "%llu %08x",
                 c->what, c->threads, (unsigned long long)actual.values,
                 (unsigned long long)actual.underflows, (unsigned long long)actual.saturated,
                 (unsigned long long)actual.bad_tiles, actual.amax,
                 (unsigned long long)expected.values, (unsigned long long)expected.underflows,
                 (unsigned long long)expected.saturated, (unsigned long long)expected.bad_tiles,
                 expected.amax);
    }
}

/* What a code of q stands for. */
static inline double fp8_number(const struct fp8_rows *q, int64_t row, int64_t col)
{
    const double scale = (double)q->scale[col / FP8_TILE * q->pitch + row];
    return (double)(float)(e4m3_value(q->code[row * q->cols + col]) * scale);
}

static inline double *fp8_numbers(struct check *c, struct fp8_rows q)
{
    double *x = check_doubles(c, q.rows * q.cols);
    for (int64_t i = 0; i < q.rows * q.cols; i++) {
        x[i] = fp8_number(&q, i / q.cols, i % q.cols);
    }
    return x;
}

/* --- numbers --- */

/* Normal numbers over 24 binades, with zeros, in some rows only tiny ones, and, where `special`,
 * here and there NaN, infinity or the largest bf16. */
static inline struct tensor fp8_check_random(struct check *c, const char *name, int64_t rows,
                                             int64_t cols, bool special)
{
    static const double odd[] = {0.0,  -0.0,       3.38953139e38, -1e-40, 1e-4, (double)INFINITY,
                                 1e-6, (double)NAN};
    struct tensor x = check_tensor(c, name, DTYPE_BF16, rows, cols);
    const uint64_t key = rng_key(c->seed, name);
    for (int64_t i = 0; i < rows * cols; i++) {
        const double u = rng_uniform(key ^ 1, (uint64_t)i);
        double value = ldexp(rng_normal(key, (uint64_t)i), (int)(u * 24) - 16);
        value = i / cols % 7 == 5 ? value * 1e-5 : value;
        value = i / cols % 11 == 3 ? 0 : value;
        const uint64_t pick = (uint64_t)(rng_uniform(key ^ 2, (uint64_t)i) * 4000);
        check_set(&x, i, special && pick < 8 ? odd[pick] : value);
    }
    return x;
}

/* --- passes --- */

/* Every seed; `kernels`: also with our own GEMM kernel. */
static inline void fp8_run(struct check *c, void (*run)(struct check *, const void *),
                           const void *args, bool kernels)
{
    for (enum check_way way = CHECK_CHOSEN; way <= (kernels ? CHECK_OWN : CHECK_CHOSEN); way++) {
        for (uint64_t seed = 1; seed <= check_seeds(); seed++) {
            c->way = way;
            c->dtype = DTYPE_BF16;
            c->seed = seed;
            check_passes(c, run, args);
        }
    }
}

#endif
