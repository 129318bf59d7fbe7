/* Add, cast, sums, copies of columns, jitter, initial values, zeroing. */
#include "ops_check.h"

/* Around the blocks of add and cast (4096) and of sum_squares (65536). */
static const int64_t counts[] = {0, 1, 7, 4096, 4097, 140001};
enum { COUNTS = sizeof counts / sizeof counts[0] };

static void run_all(void **state, void (*run)(struct check *, const void *), int flags)
{
    for (int i = 0; i < COUNTS; i++) {
        check_run(*state, run, &counts[i], flags);
    }
}

/* One f32 sum, rounded once: exact, also where dtypes differ. */
static void run_add(struct check *c, const void *args)
{
    const int64_t count = *(const int64_t *)args;
    for (int form = 0; form < 4; form++) {
        const enum dtype to = form % 2 == 0 ? c->dtype : DTYPE_F32,
                         from = form / 2 == 0 ? c->dtype : DTYPE_F32;
        check_name(c, "add %s += %s count=%lld", dtype_name(to), dtype_name(from),
                   (long long)count);
        const struct tensor x = check_random(c, "x", from, count, 1, 1),
                            y = check_random(c, "y", to, count, 1, 2);
        struct tensor expected = check_copy(c, "expected", y);
        for (int64_t i = 0; i < count; i++) {
            check_set(&expected, i, (double)((float)check_get(&y, i) + (float)check_get(&x, i)));
        }
        c->ops->add(c->device, y, x);
        check_exact(c, "y", y, expected, "not the rounded sum");
    }
}

static void run_cast(struct check *c, const void *args)
{
    const int64_t count = *(const int64_t *)args;
    for (int form = 0; form < 2; form++) {
        const enum dtype to = form == 0 ? c->dtype : DTYPE_F32,
                         from = form == 0 ? DTYPE_F32 : c->dtype;
        check_name(c, "cast %s to %s count=%lld", dtype_name(from), dtype_name(to),
                   (long long)count);
        const struct tensor x = check_random(c, "x", from, count, 1, 1),
                            y = check_tensor(c, "y", to, count, 1);
        struct tensor expected = check_tensor(c, "expected", to, count, 1);
        for (int64_t i = 0; i < count; i++) {
            check_set(&expected, i, check_get(&x, i));
        }
        c->ops->cast(c->device, y, x);
        check_exact(c, "y", y, expected, "not the nearest");
    }
}

/* Bits of f32 and the bf16 that round to nearest even makes of them, written by hand. */
static void run_cast_corners(struct check *c, const void *args)
{
    (void)args;
    static const uint32_t in[] = {0x00000000, 0x80000000, 0x3f800000, 0x3f808000, 0x3f818000,
                                  0x3f808001, 0x3f807fff, 0xbf818000, 0x7f7fffff, 0x7f800000,
                                  0xff800000, 0x00000001, 0x00008000, 0x00018000, 0x7f7f7fff};
    static const uint16_t out[] = {0x0000, 0x8000, 0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x3f80, 0xbf82,
                                   0x7f80, 0x7f80, 0xff80, 0x0000, 0x0000, 0x0002, 0x7f7f};
    enum { CORNERS = sizeof in / sizeof in[0] };
    check_name(c, "cast of corner values");
    const struct tensor x = check_tensor(c, "x", DTYPE_F32, CORNERS, 1),
                        y = check_tensor(c, "y", DTYPE_BF16, CORNERS, 1),
                        expected = check_tensor(c, "expected", DTYPE_BF16, CORNERS, 1);
    memcpy(x.data, in, sizeof in);
    memcpy(expected.data, out, sizeof out);
    c->ops->cast(c->device, y, x);
    check_exact(c, "y", y, expected, "not round to nearest even");
    const struct tensor nan = check_tensor(c, "nan", DTYPE_F32, 1, 1), /* poison is one */
        cast = check_copy(c, "nan cast", tensor_rows(&y, 0, 1));
    c->ops->cast(c->device, cast, nan);
    assert_true(isnan(check_get(&cast, 0)));
}

static double sum_squares(struct check *c, const float *x, int64_t count)
{
    double sum = 0;
    c->ops->sum_squares(c->device, &sum, x, count);
    return sum;
}

/* Sums of doubles: n roundings of 2^-53 at most, all terms positive. */
static void run_sum_squares(struct check *c, const void *args)
{
    const int64_t count = *(const int64_t *)args;
    check_name(c, "sum_squares count=%lld", (long long)count);
    const struct tensor x = check_random(c, "x", DTYPE_F32, count, 1, 1),
                        out = check_tensor(c, "out", DTYPE_F64, 3, 1);
    double *sum = out.data, expected[3] = {0, NAN, INFINITY};
    float *data = x.data;
    for (int64_t i = 0; i < count; i++) {
        expected[0] += (double)data[i] * (double)data[i];
    }
    sum[0] = sum[1] = sum[2] = sum_squares(c, data, count);
    c->ops->sum_squares(c->device, &sum[1], data, count); /* adds */
    assert_true(sum[1] == 2 * sum[0]);
    if (!(fabs(sum[0] - expected[0]) <= 0x1p-53 * (double)(count + 1) * expected[0])) {
        check_fail(c, "sum", &out, 0, sum[0], expected[0], "out of tolerance");
    }
    for (int i = 1; i < 3 && count > 0; i++) { /* at the seed's place, and at the end */
        const int64_t at = c->seed == 1 ? count - 1 : (int64_t)c->seed * (count - 1) / 4;
        const float old = data[at];
        data[at] = (float)expected[i];
        const double bad = sum_squares(c, data, count);
        assert_true(!isfinite(bad));
        data[at] = old;
    }
}

/* Squares that f32 cannot hold. */
static void run_sum_squares_wide(struct check *c, const void *args)
{
    (void)args;
    const float x[3] = {3e30F, 4e30F, 1e-30F}, tiny[2] = {3e-30F, 4e-30F};
    const double wide = sum_squares(c, x, 3), narrow = sum_squares(c, tiny, 2);
    assert_true(fabs(wide / 25e60 - 1) < 1e-6); /* the inputs' own rounding is 6e-8 */
    assert_true(fabs(narrow / 25e-60 - 1) < 1e-6);
}

struct columns {
    int64_t rows, x_columns, x_first, y_columns, y_first, count;
};

/* Whole rows, the first and the last columns, single ones, none. */
static const struct columns columns[] = {
    {0, 3, 0, 3, 0, 3}, {1, 1, 0, 1, 0, 1},      {5, 7, 0, 7, 0, 7},        {5, 7, 3, 4, 0, 4},
    {9, 2, 1, 9, 8, 1}, {33, 20, 5, 40, 17, 15}, {1000, 64, 48, 80, 0, 16}, {7, 6, 2, 5, 3, 0},
};

/* Bits: what stands elsewhere in y, poison here, stays. */
static void run_copy_columns(struct check *c, const void *args)
{
    const struct columns *s = args;
    check_name(c, "copy_columns rows=%lld: %lld from %lld of %lld to %lld of %lld",
               (long long)s->rows, (long long)s->count, (long long)s->x_first,
               (long long)s->x_columns, (long long)s->y_first, (long long)s->y_columns);
    const struct tensor x = check_random(c, "x", c->dtype, s->rows, s->x_columns, 1),
                        before = check_copy(c, "x before", x),
                        y = check_tensor(c, "y", c->dtype, s->rows, s->y_columns);
    struct tensor expected = check_tensor(c, "expected", c->dtype, s->rows, s->y_columns);
    for (int64_t i = 0; i < s->rows * s->count; i++) {
        const int64_t n = i / s->count, j = i % s->count;
        check_set(&expected, n * s->y_columns + s->y_first + j,
                  check_get(&x, n * s->x_columns + s->x_first + j));
    }
    c->ops->copy_columns(c->device, y, s->y_first, x, s->x_first, s->count);
    check_exact(c, "y", y, expected, "not those columns");
    check_exact(c, "x", x, before, "the source changed");
}

/* x (1 + eps (2u - 1)): the factor, its product with x: three roundings. */
static void run_jitter(struct check *c, const void *args)
{
    const int64_t count = *(const int64_t *)args;
    const uint64_t key = rng_key(c->seed, "jitter"), first = UINT64_C(1) << 33;
    const float eps = 0.25F;
    check_name(c, "jitter count=%lld", (long long)count);
    const struct tensor before = check_random(c, "x", c->dtype, count, 1, 1),
                        x = check_copy(c, "x", before);
    double *expected = check_values(c, before);
    for (int64_t i = 0; i < count; i++) {
        expected[i] *= 1 + (double)eps * (2 * rng_uniform(key, first + (uint64_t)i) - 1);
    }
    c->ops->jitter(c->device, x, key, first, eps);
    check_close(c, "x", x, expected, 3 * CHECK_U);
    for (int i = 0; i < CHECK_PARTS; i++) { /* a shard of the rows draws the same numbers */
        const struct check_part p = check_part(count, i);
        const struct tensor part = check_copy(c, "part", tensor_rows(&before, p.first, p.count));
        c->ops->jitter(c->device, part, key, first + (uint64_t)p.first, eps);
        check_exact(c, "x", part, tensor_rows(&x, p.first, p.count), "depends on the shard");
    }
    const struct tensor still = check_copy(c, "still", before);
    c->ops->jitter(c->device, still, key, first, 0);
    check_exact(c, "x", still, before, "eps 0 changes it");
}

static void run_init_normal(struct check *c, const void *args)
{
    const int64_t count = *(const int64_t *)args;
    const uint64_t key = rng_key(c->seed, "init"), first = 5;
    const float std = 0.02F;
    check_name(c, "init_normal count=%lld", (long long)count);
    const struct tensor x = check_tensor(c, "x", DTYPE_F32, count, 1);
    double *expected = check_doubles(c, count);
    for (int64_t i = 0; i < count; i++) {
        expected[i] = (double)std * rng_normal(key, first + (uint64_t)i);
    }
    c->ops->init_normal(c->device, x.data, key, first, count, std);
    check_close(c, "x", x, expected, 2 * CHECK_U); /* the cast and the product */
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(count, i);
        const struct tensor part = check_tensor(c, "part", DTYPE_F32, p.count, 1);
        c->ops->init_normal(c->device, part.data, key, first + (uint64_t)p.first, p.count, std);
        check_exact(c, "x", part, tensor_rows(&x, p.first, p.count), "depends on the shard");
    }
}

/* A part of a tensor that begins between two vectors; what stands before and after it stays. The
 * CPU clears 32 MiB and more another way. */
static void run_zero(struct check *c, const void *args)
{
    const int64_t count = *(const int64_t *)args;
    check_name(c, "zero count=%lld", (long long)count);
    const struct tensor x = check_tensor(c, "x", DTYPE_F32, count + 2, 1);
    const unsigned char *bytes = x.data;
    const size_t width = sizeof(float), end = (size_t)(count + 1) * width;
    c->ops->zero(c->device, (float *)x.data + 1, (size_t)count * width);
    c->ops->synchronize(c->device);
    for (size_t i = 0; i < end + width; i++) {
        const bool inside = i >= width && i < end;
        if (bytes[i] != (inside ? 0 : CHECK_POISON_BYTE)) {
            check_fail(c, "x", &x, (int64_t)(i / width), bytes[i], 0, "not cleared, or too much");
        }
    }
}

static void test_add(void **state)
{
    run_all(state, run_add, CHECK_BF16);
}

static void test_cast(void **state)
{
    run_all(state, run_cast, CHECK_BF16);
    check_run(*state, run_cast_corners, NULL, 0);
}

static void test_sum_squares(void **state)
{
    run_all(state, run_sum_squares, 0);
    check_run(*state, run_sum_squares_wide, NULL, 0);
}

static void test_zero(void **state)
{
    static const int64_t large[] = {(8 << 20) - 1, 8 << 20, (9 << 20) + 5};
    run_all(state, run_zero, 0);
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) {
        check_run(*state, run_zero, &large[i], 0);
    }
}

static void test_copy_columns(void **state)
{
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        check_run(*state, run_copy_columns, &columns[i], CHECK_BF16);
    }
}

static void test_jitter(void **state)
{
    run_all(state, run_jitter, CHECK_BF16);
}

static void test_init_normal(void **state)
{
    run_all(state, run_init_normal, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add),         cmocka_unit_test(test_cast),
        cmocka_unit_test(test_sum_squares), cmocka_unit_test(test_copy_columns),
        cmocka_unit_test(test_jitter),      cmocka_unit_test(test_init_normal),
        cmocka_unit_test(test_zero),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
