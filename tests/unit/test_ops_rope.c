/* Rotary position embedding: rotations of rows, tables of angles, YaRN. */
#include "ops_check.h"

#include "kernels/rope_table.h"

static const struct rope_yarn no_yarn = {0};

/* --- rotation --- */

enum { POSITIONS = 70 };

struct rope {
    int64_t rows, columns;
    struct rope_shape shape;
};

/* Heads side by side, with columns beyond them; apart from each other (a query's rope part behind
 * its other part), behind a latent (a shared key), at the end of a row. */
static const struct rope ropes[] = {
    {0, 8, {2, 4, 0, 4, false}},        {1, 2, {1, 2, 0, 2, false}},
    {5, 18, {3, 6, 0, 6, false}},       {7, 35, {2, 10, 0, 10, false}},
    {33, 300, {4, 64, 0, 64, false}},   {9, 31, {3, 10, 4, 6, false}},
    {0, 8, {2, 4, 0, 4, true}},         {1, 2, {1, 2, 0, 2, true}},
    {5, 18, {3, 6, 0, 6, true}},        {7, 35, {2, 10, 5, 10, true}},
    {9, 40, {1, 8, 32, 8, true}},       {33, 4 * 192, {4, 192, 128, 64, true}},
    {6, 3 * 24, {3, 24, 16, 8, false}}, {3, 1024, {1, 1024, 0, 1024, true}},
};

struct rotation {
    const struct rope *rope;
    const int32_t *position;
    const float *table;
    double *x, *dy;
};

/* Columns of pair `j` of a head. */
static int64_t left_column(const struct rope_shape *s, int64_t head, int64_t j)
{
    return s->first + head * s->head_stride + (s->interleaved ? 2 * j : j);
}

static int64_t right_column(const struct rope_shape *s, int64_t head, int64_t j)
{
    return left_column(s, head, j) + (s->interleaved ? 1 : s->dim / 2);
}

static void reference_rope(const struct rotation *r, double *x, double sign)
{
    const struct rope_shape *s = &r->rope->shape;
    const int64_t half = s->dim / 2;
    for (int64_t n = 0; n < r->rope->rows; n++) {
        const float *angle = r->table + r->position[n] * s->dim;
        for (int64_t i = 0; i < s->heads * half; i++) {
            double *left = x + n * r->rope->columns + left_column(s, i / half, i % half),
                   *right = x + n * r->rope->columns + right_column(s, i / half, i % half);
            const double a = *left, b = *right, cosine = (double)angle[i % half],
                         sine = sign * (double)angle[half + i % half];
            *left = a * cosine - b * sine;
            *right = b * cosine + a * sine;
        }
    }
}

/* <dy, rope(x)>; what is not rotated counts as it is */
static double rope_loss(const void *args)
{
    const struct rotation *r = args;
    const int64_t count = r->rope->rows * r->rope->columns;
    double *x = malloc((size_t)count * sizeof *x), sum = 0;
    assert_non_null(x);
    memcpy(x, r->x, (size_t)count * sizeof *x);
    reference_rope(r, x, 1);
    for (int64_t i = 0; i < count; i++) {
        sum += r->dy[i] * x[i];
    }
    free(x);
    return sum;
}

/* Columns that belong to no head have the bits they had. */
static void check_outside(struct check *c, const struct rope *rope, struct tensor x,
                          struct tensor before)
{
    const struct rope_shape *s = &rope->shape;
    for (int64_t i = 0; i < tensor_count(&x); i++) {
        const int64_t column = i % rope->columns - s->first;
        const bool inside =
            column >= 0 && column / s->head_stride < s->heads && column % s->head_stride < s->dim;
        if (!inside && check_get(&x, i) != check_get(&before, i)) {
            check_fail(c, "x", &x, i, check_get(&x, i), check_get(&before, i), "outside the heads");
        }
    }
}

static struct tensor make_positions(struct check *c, int64_t rows)
{
    const struct tensor position = check_tensor(c, "position", DTYPE_I32, rows, 1);
    for (int64_t n = 0; n < rows; n++) {
        ((int32_t *)position.data)[n] = (int32_t)(rng_uniform(c->seed, (uint64_t)n) * POSITIONS);
    }
    return position;
}

static void name_rope(struct check *c, const struct rope *rope)
{
    const struct rope_shape *s = &rope->shape;
    check_name(c, "rope rows=%lld columns=%lld heads=%lld stride=%lld first=%lld dim=%lld%s",
               (long long)rope->rows, (long long)rope->columns, (long long)s->heads,
               (long long)s->head_stride, (long long)s->first, (long long)s->dim,
               s->interleaved ? " interleaved" : "");
}

static void run_rope(struct check *c, const void *args)
{
    const struct rope *s = args;
    const double error = 3 * CHECK_U; /* two products, one sum */
    name_rope(c, s);
    const struct tensor table = check_tensor(c, "table", DTYPE_F32, POSITIONS, s->shape.dim),
                        position = make_positions(c, s->rows),
                        before = check_random(c, "x", c->dtype, s->rows, s->columns, 1),
                        x = check_copy(c, "x", before),
                        dy = check_random(c, "dy", c->dtype, s->rows, s->columns, 1),
                        dx = check_copy(c, "dx", dy);
    rope_table(table.data, POSITIONS, s->shape.dim, 100.0, &no_yarn);
    const struct rotation r = {s, position.data, table.data, check_values(c, before),
                               check_values(c, dy)};
    double *expected = check_values(c, x), *dx_expected = check_values(c, dy);
    reference_rope(&r, expected, 1);
    reference_rope(&r, dx_expected, -1);
    c->ops->rope(c->device, x, position.data, table.data, s->shape, false);
    check_close(c, "x", x, expected, error);
    c->ops->rope(c->device, dx, position.data, table.data, s->shape, true);
    check_close(c, "dx", dx, dx_expected, error);
    check_gradient(c, "dx", dx, NULL, r.x, rope_loss, &r, error);
    check_outside(c, s, x, before);
    check_outside(c, s, dx, dy);
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(s->rows, i);
        const struct tensor part = check_copy(c, "part", tensor_rows(&before, p.first, p.count));
        c->ops->rope(c->device, part, r.position + p.first, table.data, s->shape, false);
        check_exact(c, "x", part, tensor_rows(&x, p.first, p.count), "depends on other rows");
    }
}

/* There and back: 1 = cos^2 + sin^2 as rounded twice, and both rotations' own roundings. */
static void run_inverse(struct check *c, const void *args)
{
    const struct rope *s = args;
    name_rope(c, s);
    const struct tensor table = check_tensor(c, "table", DTYPE_F32, POSITIONS, s->shape.dim),
                        position = make_positions(c, s->rows),
                        before = check_random(c, "x", DTYPE_F32, s->rows, s->columns, 1),
                        x = check_copy(c, "x", before);
    rope_table(table.data, POSITIONS, s->shape.dim, 100.0, &no_yarn);
    c->ops->rope(c->device, x, position.data, table.data, s->shape, false);
    c->ops->rope(c->device, x, position.data, table.data, s->shape, true);
    check_close(c, "x", x, check_values(c, before), 8 * CHECK_U);
}

/* Both layouts are the same rotation of the same pairs: the same bits, elsewhere. */
static void run_layouts(struct check *c, const void *args)
{
    enum { ROWS = 11, HEADS = 2, DIM = 12, COLUMNS = HEADS * DIM };
    const struct rope_shape pairs = {HEADS, DIM, 0, DIM, true},
                            halves = {HEADS, DIM, 0, DIM, false};
    (void)args;
    check_name(c, "rope of both layouts");
    const struct tensor table = check_tensor(c, "table", DTYPE_F32, POSITIONS, DIM),
                        position = make_positions(c, ROWS),
                        x = check_random(c, "x", c->dtype, ROWS, COLUMNS, 1),
                        y = check_tensor(c, "y", c->dtype, ROWS, COLUMNS);
    struct tensor moved = check_tensor(c, "moved", c->dtype, ROWS, COLUMNS), back = y;
    int64_t from[COLUMNS];
    for (int64_t i = 0; i < HEADS * DIM / 2; i++) {
        const int64_t head = i / (DIM / 2), j = i % (DIM / 2);
        from[left_column(&halves, head, j)] = left_column(&pairs, head, j);
        from[right_column(&halves, head, j)] = right_column(&pairs, head, j);
    }
    for (int64_t i = 0; i < ROWS * COLUMNS; i++) {
        check_set(&moved, i, check_get(&x, i / COLUMNS * COLUMNS + from[i % COLUMNS]));
    }
    rope_table(table.data, POSITIONS, DIM, 10000.0, &no_yarn);
    c->ops->rope(c->device, x, position.data, table.data, pairs, false);
    c->ops->rope(c->device, moved, position.data, table.data, halves, false);
    for (int64_t i = 0; i < ROWS * COLUMNS; i++) {
        check_set(&back, i / COLUMNS * COLUMNS + from[i % COLUMNS], check_get(&moved, i));
    }
    check_exact(c, "y", back, x, "the layouts differ in more than places");
}

static void test_rope(void **state)
{
    for (size_t i = 0; i < sizeof ropes / sizeof ropes[0]; i++) {
        check_run(*state, run_rope, &ropes[i], CHECK_BF16);
        check_run(*state, run_inverse, &ropes[i], 0);
    }
    check_run(*state, run_layouts, NULL, CHECK_BF16);
}

/* --- tables --- */

/* The angle is an f32 product of an f32 frequency: two roundings of up to `position` radians; the
 * frequency itself is a power, rounded, and its reciprocal. */
static void check_table(struct check *c, int64_t dim, const struct rope_yarn *yarn)
{
    const struct tensor table = check_tensor(c, "table", DTYPE_F32, POSITIONS, dim);
    const int64_t half = dim / 2;
    const double factor = yarn->factor > 0 ? yarn->attention_factor : 1;
    float inverse[512];
    rope_frequencies(inverse, dim, 10000.0, yarn);
    rope_table(table.data, POSITIONS, dim, 10000.0, yarn);
    for (int64_t i = 0; i < POSITIONS * dim; i++) {
        const double angle = (double)(i / dim) * (double)inverse[i % half],
                     expected = factor * (i % dim < half ? cos(angle) : sin(angle));
        if (!(fabs(check_get(&table, i) - expected) <= CHECK_U * factor * (2 + angle))) {
            check_fail(c, "table", &table, i, check_get(&table, i), expected, "out of tolerance");
        }
    }
}

static void run_rope_table(struct check *c, const void *args)
{
    const struct rope_yarn yarn = {40, 32, 1, 4096, 1.25};
    (void)args;
    check_name(c, "rope_table");
    check_table(c, 6, &no_yarn);
    check_table(c, 64, &no_yarn);
    check_table(c, 64, &yarn);
    check_table(c, 2, &yarn);
}

static void test_rope_table(void **state)
{
    check_run(*state, run_rope_table, NULL, 0);
}

/* Element `i` of a table of frequencies. */
struct golden {
    int64_t dim, i;
    double value; /* written with ten digits */
};

static void check_golden(const struct rope_yarn *yarn, const struct golden *golden, size_t count)
{
    for (size_t g = 0; g < count; g++) {
        float inverse[32];
        rope_frequencies(inverse, golden[g].dim, 10000.0, yarn);
        const double value = (double)inverse[golden[g].i];
        /* a power, its product with s, two reciprocals, two products, one sum */
        if (!(fabs(value / golden[g].value - 1) <= 8 * CHECK_U + 1e-9)) {
            fail_msg("frequency %lld of %lld: %.10g, expected %.10g", (long long)golden[g].i,
                     (long long)golden[g].dim, value, golden[g].value);
        }
    }
}

/* Computed by an independent float64 program: theta 1e4, factor 40, L0 4096, beta 32 and 1. The
 * ramp runs from pair 10 to pair 23 of 64 dims. */
static void test_golden_frequencies(void **state)
{
    static const struct rope_yarn yarn = {40, 32, 1, 4096, 1};
    static const struct golden golden[] = {
        {64, 0, 1},
        {64, 9, 7.498942093e-2},
        {64, 10, 5.623413252e-2},
        {64, 11, 3.900692657e-2},
        {64, 15, 8.334508951e-3},
        {64, 22, 1.778279410e-4},
        {64, 23, 3.333803580e-5},
        {64, 24, 2.5e-5},
        {64, 31, 3.333803580e-6},
        {8, 0, 1},
        {8, 1, 0.1},
        {8, 2, 5.125e-3},
        {8, 3, 2.5e-5},
    };
    (void)state;
    check_golden(&yarn, golden, sizeof golden / sizeof golden[0]);
}

/* theta^(-2i/d) */
static void test_plain_frequencies(void **state)
{
    static const struct golden golden[] = {
        {64, 0, 1},     {64, 10, 5.623413252e-2},
        {64, 24, 1e-3}, {8, 0, 1},
        {8, 1, 0.1},    {8, 2, 0.01},
        {8, 3, 1e-3},   {2, 0, 1},
    };
    (void)state;
    check_golden(&no_yarn, golden, sizeof golden / sizeof golden[0]);
}

/* Where the ramp would begin before pair 0 it begins there, where it would end behind dim - 1 it
 * ends there (not at dim / 2 - 1), and where both fall together it is a step. */
static void test_clamps(void **state)
{
    /* d 8: corr(r) = 8 ln(L0 / (2 pi r)) / (2 ln 1e4); L0 16 turns less than 32 times even in pair
     * 0: corr = -1.1, 0.41, so low 0, high 1 */
    static const struct rope_yarn low = {4, 32, 1, 16, 1};
    static const struct golden at_low[] = {{8, 0, 1}, {8, 1, 0.1 / 4}, {8, 2, 0.01 / 4}};
    /* beta_slow 1e-9: corr = 1.309, 11.81, so low 1, high 7: pair 2 is 1/6, pair 3 is 2/6 on */
    static const struct rope_yarn high = {4, 32, 1e-9, 4096, 1};
    static const struct golden at_high[] = {
        {8, 1, 0.1},
        {8, 2, 0.01 * (1.0 / 6 / 4 + 5.0 / 6)},
        {8, 3, 1e-3 * (1.0 / 3 / 4 + 2.0 / 3)},
    };
    /* both beyond the end: low = floor(corr) = 7 = high */
    static const struct rope_yarn none = {4, 1e-5, 1e-9, 4096, 1};
    static const struct golden at_none[] = {{8, 0, 1}, {8, 1, 0.1}, {8, 2, 0.01}, {8, 3, 1e-3}};
    /* both before the start: high = low = 0: pair 0 stays, all others are stretched */
    static const struct rope_yarn all = {4, 4096, 2048, 4096, 1};
    static const struct golden at_all[] = {{8, 0, 1}, {8, 1, 0.1 / 4}, {8, 3, 1e-3 / 4}};
    (void)state;
    check_golden(&low, at_low, 3);
    check_golden(&high, at_high, 3);
    check_golden(&none, at_none, 4);
    check_golden(&all, at_all, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_rope_table),
        cmocka_unit_test(test_golden_frequencies),
        cmocka_unit_test(test_plain_frequencies),
        cmocka_unit_test(test_clamps),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
