/* Rows to codes in all their orders: plain, transposed, both, gathered, grouped, packed; weights.
 */
#include "fp8_check.h"

/* --- groups --- */

struct groups {
    int64_t count, offset[6]; /* count 0: no offsets */
};

/* Ragged, empty at both ends and between, single rows, exactly one tile, rows of no group. */
static const struct groups none = {0, {0}}, ragged = {5, {0, 0, 1, 130, 130, 300}},
                           single = {3, {0, 1, 2, 2}}, whole = {3, {0, 128, 128, 256}},
                           spare = {2, {0, 60, 100}}, empty = {2, {0, 0, 0}};

struct shape {
    int64_t rows, cols;
    const struct groups *groups;
    bool special; /* NaN, infinity, the largest numbers */
};
static const struct shape shapes[] = {
    {0, 16, &none, false},     {1, 16, &none, false},     {1, 128, &none, true},
    {5, 144, &none, true},     {130, 272, &none, false},  {257, 48, &none, true},
    {300, 400, &none, true},   {300, 144, &ragged, true}, {2, 128, &single, false},
    {256, 160, &whole, false}, {130, 256, &spare, true},  {7, 32, &empty, false},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static const int64_t *offset_of(const struct shape *s)
{
    return s->groups->count > 0 ? s->groups->offset : NULL;
}

/* A shape's rows as groups, one where there are no offsets. */
static struct groups groups_of(const struct shape *s)
{
    return s->groups->count > 0 ? *s->groups : (struct groups){1, {0, s->rows}};
}

static struct fp8_rows tokens(struct check *c, const char *name, const struct shape *s)
{
    return fp8_check_rows(c, name, s->cols, fp8_token_columns(s->rows, groups_of(s).count));
}

static void name_case(struct check *c, const char *op, const struct shape *s, bool power)
{
    check_name(c, "%s R=%lld C=%lld groups=%lld, %s", op, (long long)s->rows, (long long)s->cols,
               (long long)s->groups->count, power ? "2^k" : "amax/448");
}

/* --- quantize --- */

/* Which row of x[rows + 3] each row is; every ninth is none. */
static struct tensor pick_rows(struct check *c, int64_t rows)
{
    const struct tensor row = check_tensor(c, "row", DTYPE_I32, rows, 1);
    for (int64_t r = 0; r < rows; r++) {
        ((int32_t *)row.data)[r] =
            r % 9 == 4 ? -1 : (int32_t)rng_permute(c->seed, (uint64_t)r, (uint64_t)rows + 3);
    }
    return row;
}

static double *gathered(struct check *c, struct tensor x, const int32_t *row, int64_t rows)
{
    const int64_t cols = x.dim[1];
    double *out = check_doubles(c, rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        const int64_t source = row != NULL ? row[i / cols] : i / cols;
        out[i] = source < 0 ? 0 : check_get(&x, source * cols + i % cols);
    }
    return out;
}

static void quantize_kind(struct check *c, const struct shape *s, bool power, bool gather)
{
    name_case(c, gather ? "quantize gathered" : "quantize", s, power);
    const struct tensor x = fp8_check_random(c, "x", s->rows + 3, s->cols, s->special);
    const int32_t *row = gather ? pick_rows(c, s->rows).data : NULL;
    const struct groups groups = groups_of(s);
    const struct fp8_rows nothing = {0}, both = fp8_check_rows(c, "q of both", s->rows, s->cols),
                          both_t = tokens(c, "t of both", s),
                          q = fp8_check_rows(c, "q", s->rows, s->cols), t = tokens(c, "t", s);
    const struct fp8_counters start = {5, 6, 7, 8, 0, 0};
    struct fp8_counters count[3] = {start, start, start}, expected[3] = {start, start, start};
    struct fp8_how how = {.power_of_two = power, .counters = &count[0]};
    const struct fp8_ops *ops = c->ops->fp8;
    ops->quantize(c->device, both, both_t, x, row, s->rows, offset_of(s), groups.count, &how);
    how.counters = &count[1];
    ops->quantize(c->device, q, nothing, x, row, s->rows, NULL, 0, &how);
    how.counters = &count[2];
    ops->quantize(c->device, nothing, t, x, row, s->rows, offset_of(s), groups.count, &how);
    if (c->threads > 1) {
        return;
    }
    const double *in = gathered(c, x, row, s->rows);
    const int64_t there = groups.offset[groups.count];
    struct fp8_rows grouped = both, plain = q;
    grouped.rows = plain.rows = there;
    fp8_expect_rows(c, "q", q, in, power, &expected[0]);
    fp8_expect_tokens(c, "t", t, in, groups.offset, groups.count, power, &expected[1]);
    fp8_expect_rows(c, "q of both", grouped, in, power, &expected[2]);
    fp8_expect_same(c, "q of both", grouped, plain);
    for (int64_t i = there * s->cols; i < s->rows * s->cols; i++) {
        assert_int_equal(both.code[i], 0xff); /* not there */
    }
    for (int64_t r = 0; r < s->rows && gather; r++) {
        const uint64_t none_of = row[r] < 0 ? (uint64_t)s->cols : 0;
        expected[0].values -= none_of;
        expected[1].values -= r < there ? none_of : 0;
        expected[2].values -= r < there ? none_of : 0;
    }
    for (int64_t i = 0; i < t.rows * t.cols; i++) {
        assert_int_equal(both_t.code[i], t.code[i]);
    }
    for (int64_t i = 0; i < fp8_tiles(t.cols) * t.pitch; i++) {
        assert_memory_equal(&both_t.scale[i], &t.scale[i], sizeof(float));
    }
    fp8_expect_counters(c, count[0], expected[2]);
    fp8_expect_counters(c, count[1], expected[0]);
    fp8_expect_counters(c, count[2], expected[1]);
    for (int64_t i = 0; i < fp8_tiles(q.cols) * q.pitch; i++) {
        uint32_t bits;
        memcpy(&bits, &q.scale[i], sizeof bits);
        assert_true(i % q.pitch < q.rows || bits == 0xffffffffU); /* only its own scales */
    }
}

static void run_quantize(struct check *c, const void *args)
{
    for (int kind = 0; kind < 4; kind++) {
        quantize_kind(c, args, kind % 2 != 0, kind / 2 != 0);
    }
}

/* --- transpose --- */

static void run_transpose(struct check *c, const void *args)
{
    const struct shape *s = args;
    const struct groups groups = groups_of(s);
    for (int power = 0; power < 2; power++) {
        name_case(c, "transpose", s, power != 0);
        const struct tensor x = fp8_check_random(c, "x", s->rows, s->cols, s->special);
        const struct fp8_rows q = fp8_check_rows(c, "q", s->rows, s->cols), t = tokens(c, "t", s),
                              nothing = {0};
        struct fp8_counters count = {0}, expected = {0};
        struct fp8_how how = {.power_of_two = power != 0};
        c->ops->fp8->quantize(c->device, q, nothing, x, NULL, s->rows, NULL, 0, &how);
        how.counters = &count;
        c->ops->fp8->transpose(c->device, t, q, offset_of(s), groups.count, &how);
        if (c->threads > 1) {
            continue;
        }
        const double *values = fp8_numbers(c, q);
        fp8_expect_tokens(c, "t", t, values, groups.offset, groups.count, power != 0, &expected);
        fp8_expect_counters(c, count, expected);
        int64_t begin = 0;
        for (int64_t g = 0; g < groups.count && power != 0; g++) {
            for (int64_t r = groups.offset[g]; r < groups.offset[g + 1]; r++) {
                for (int64_t ch = 0; ch < s->cols; ch++) { /* only exponents move */
                    const int64_t at = begin + r - groups.offset[g];
                    const double scale = (double)t.scale[at / FP8_TILE * t.pitch + ch],
                                 value = values[r * s->cols + ch], now = fp8_number(&t, ch, at);
                    assert_true(isnan(now) || now == value || fabs(value) < scale * 0x1p-6);
                }
            }
            begin += fp8_tiles(groups.offset[g + 1] - groups.offset[g]) * FP8_TILE;
        }
    }
}

/* --- pack, unpack --- */

static void run_pack(struct check *c, const void *args)
{
    const struct shape *s = args;
    const int64_t bytes = fp8_packed_bytes(s->cols), used = s->cols + fp8_tiles(s->cols) * 4;
    for (int kind = 0; kind < 4; kind++) {
        const bool power = kind % 2 != 0;
        name_case(c, kind / 2 != 0 ? "pack gathered" : "pack", s, power);
        const struct tensor x = fp8_check_random(c, "x", s->rows + 3, s->cols, s->special),
                            picked = pick_rows(c, s->rows),
                            packed = check_tensor(c, "packed", DTYPE_U8, s->rows, bytes);
        const int32_t *row = kind / 2 != 0 ? picked.data : NULL;
        const struct fp8_rows q = fp8_check_rows(c, "q", s->rows, s->cols), nothing = {0},
                              back = fp8_check_rows(c, "unpacked", s->rows, s->cols),
                              mixed = fp8_check_rows(c, "unpacked rows", s->rows, s->cols);
        struct fp8_counters count[2] = {{0}, {0}};
        struct fp8_how how = {.power_of_two = power, .counters = &count[0]};
        c->ops->fp8->pack(c->device, packed.data, x, row, s->rows, &how);
        how.counters = &count[1];
        c->ops->fp8->quantize(c->device, q, nothing, x, row, s->rows, NULL, 0, &how);
        fp8_expect_counters(c, count[0], count[1]);
        c->ops->fp8->unpack(c->device, back, packed.data, s->rows, NULL);
        fp8_expect_same(c, "unpacked", back, q);
        const struct tensor order = check_tensor(c, "order", DTYPE_I32, s->rows, 1);
        for (int64_t r = 0; r < s->rows; r++) {
            ((int32_t *)order.data)[r] =
                r % 5 == 2 ? -1 : (int32_t)rng_permute(c->seed, (uint64_t)r, (uint64_t)s->rows);
        }
        c->ops->fp8->unpack(c->device, mixed, packed.data, s->rows, order.data);
        for (int64_t r = 0; r < s->rows; r++) {
            const int32_t source = ((int32_t *)order.data)[r];
            const uint8_t *data = (uint8_t *)packed.data + r * bytes;
            for (int64_t i = 0; i < s->cols; i++) {
                assert_int_equal(mixed.code[r * s->cols + i],
                                 source < 0 ? 0 : q.code[source * s->cols + i]);
                assert_int_equal(data[i], q.code[r * s->cols + i]);
                assert_true(mixed.scale[i / FP8_TILE * mixed.pitch + r] ==
                            (source < 0 ? 1 : q.scale[i / FP8_TILE * q.pitch + source]));
            }
            for (int64_t i = used; i < bytes; i++) {
                assert_int_equal(data[i], 0);
            }
        }
    }
}

/* --- weights --- */

struct weight_shape {
    int64_t matrices, rows, cols, gap; /* gap: elements between two matrices */
    bool special;
};
static const struct weight_shape weight_shapes[] = {
    {1, 16, 16, 0, false},   {2, 128, 256, 48, true}, {3, 144, 400, 0, true},
    {1, 304, 144, 0, false}, {0, 16, 16, 0, false},   {5, 16, 272, 16, true},
};

static struct fp8_weights weights(struct check *c, const char *name, int64_t matrices, int64_t rows,
                                  int64_t cols)
{
    return (struct fp8_weights){
        .code = check_tensor(c, name, DTYPE_U8, matrices * rows, cols).data,
        .scale = check_tensor(c, name, DTYPE_F32, matrices * fp8_tiles(rows), fp8_tiles(cols)).data,
        .matrices = matrices,
        .rows = rows,
        .cols = cols};
}

/* One block of matrix m from (row, col) on, plain and transposed. */
static void expect_block(struct check *c, const struct fp8_weights *w, const struct fp8_weights *t,
                         const double *x, int64_t m, int64_t row, int64_t col, bool power,
                         struct fp8_counters *tally)
{
    const int64_t rows = w->rows - row < FP8_TILE ? w->rows - row : FP8_TILE,
                  cols = w->cols - col < FP8_TILE ? w->cols - col : FP8_TILE;
    static double block[FP8_TILE * FP8_TILE];
    static uint8_t code[FP8_TILE * FP8_TILE];
    for (int64_t i = 0; i < rows * cols; i++) {
        block[i] = x[(row + i / cols) * w->cols + col + i % cols];
    }
    const float scale = reference_tile(code, block, 1, rows * cols, power, tally);
    const float plain = w->scale[(m * fp8_tiles(w->rows) + row / FP8_TILE) * fp8_tiles(w->cols) +
                                 col / FP8_TILE],
                turned = t->scale[(m * fp8_tiles(t->rows) + col / FP8_TILE) * fp8_tiles(t->cols) +
                                  row / FP8_TILE];
    assert_true(plain == scale && turned == scale);
    for (int64_t i = 0; i < rows * cols; i++) {
        const int64_t r = row + i / cols, k = col + i % cols;
        const uint8_t a = w->code[(m * w->rows + r) * w->cols + k],
                      b = t->code[(m * t->rows + k) * t->cols + r];
        if (a != code[i] || b != code[i]) {
            fp8_fail(c, a != code[i] ? "w" : "t", "code", m * w->rows + r, k, a != code[i] ? a : b,
                     code[i]);
        }
    }
}

static void run_weights(struct check *c, const void *args)
{
    const struct weight_shape *s = args;
    const int64_t stride = s->rows * s->cols + s->gap;
    for (int power = 0; power < 2; power++) {
        check_name(c, "quantize_weights %lld x [%lld, %lld], %s", (long long)s->matrices,
                   (long long)s->rows, (long long)s->cols, power != 0 ? "2^k" : "amax/448");
        const struct tensor x = fp8_check_random(c, "src", s->matrices, stride, s->special);
        const struct fp8_weights w = weights(c, "w", s->matrices, s->rows, s->cols),
                                 t = weights(c, "t", s->matrices, s->cols, s->rows),
                                 alone = weights(c, "w alone", s->matrices, s->rows, s->cols),
                                 nothing = {0};
        struct fp8_counters count = {0}, expected = {0};
        struct fp8_how how = {.power_of_two = power != 0, .counters = &count};
        c->ops->fp8->quantize_weights(c->device, w, t, x.data, stride, &how);
        how.counters = NULL;
        c->ops->fp8->quantize_weights(c->device, alone, nothing, x.data, stride, &how);
        const double *in = check_values(c, x);
        for (int64_t m = 0; m < s->matrices && c->threads == 1; m++) {
            for (int64_t row = 0; row < s->rows; row += FP8_TILE) {
                for (int64_t col = 0; col < s->cols; col += FP8_TILE) {
                    expect_block(c, &w, &t, in + m * stride, m, row, col, power != 0, &expected);
                }
            }
        }
        assert_memory_equal(w.code, alone.code, (size_t)(s->matrices * s->rows * s->cols));
        if (c->threads == 1) {
            fp8_expect_counters(c, count, expected);
        }
    }
}

/* --- tests --- */

static void run_all(void **state, void (*run)(struct check *, const void *))
{
    for (int i = 0; i < SHAPES; i++) {
        fp8_run(*state, run, &shapes[i], false);
    }
}

static void test_quantize(void **state)
{
    run_all(state, run_quantize);
}

static void test_transpose(void **state)
{
    run_all(state, run_transpose);
}

static void test_pack(void **state)
{
    assert_int_equal(fp8_packed_bytes(7168), 7168 + 224); /* DeepSeek-V3's row */
    run_all(state, run_pack);
}

static void test_weights(void **state)
{
    for (size_t i = 0; i < sizeof weight_shapes / sizeof weight_shapes[0]; i++) {
        fp8_run(*state, run_weights, &weight_shapes[i], false);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_transpose),
        cmocka_unit_test(test_pack),
        cmocka_unit_test(test_weights),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
