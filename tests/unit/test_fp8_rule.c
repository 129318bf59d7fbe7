/* How numbers become codes: every bf16, every tie, every scale, and E5M6 code by code. */
#include "fp8_check.h"

#include "kernels/cpu/fp8.h"

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* --- scales --- */

/* Around every bf16: the scale is the least power of two that brings amax below the largest code,
 * by trying them in double. */
static void test_scales(void **state)
{
    (void)state;
    for (uint32_t upper = 0; upper < 0x7f80; upper++) {
        for (uint32_t lower = 0; lower < 3; lower++) {
            const uint32_t bits = (upper << 16) + lower - (upper > 0 ? 1 : 0);
            const double amax = fmax((double)float_of(bits), (double)1e-4F);
            const struct fp8_scale power = fp8_scale_of(bits, true),
                                   any = fp8_scale_of(bits, false), e5m6 = e5m6_scale_of(bits);
            assert_true((double)power.scale == power_for(amax, 448));
            assert_true((double)power.scale == exp2(ceil(log2(amax / 448))) || lower != 1);
            assert_true((double)power.inverse * (double)power.scale == 1);
            assert_true(any.scale == (float)amax / 448.0F && any.inverse == 448.0F / (float)amax);
            assert_true((double)e5m6.scale == power_for(amax, 65024));
            assert_true((double)e5m6.inverse * (double)e5m6.scale == 1);
        }
    }
    assert_false(fp8_is_bad(0x7f7fffff));
    assert_true(fp8_is_bad(0x7f800000));
    assert_true(fp8_is_bad(0x7f800001));
}

/* --- codes --- */

/* The reference itself: no value of E4M3 is nearer, or as near and even. */
static void test_reference(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x7f80; bits++) {
        const double y = (double)float_of(bits << 16);
        const uint8_t found = e4m3_nearest(y);
        const double distance = fabs(y - e4m3_value(found));
        for (int code = 0; code < 0x7f; code++) {
            const double other = fabs(y - e4m3_value((uint8_t)code));
            assert_true(other > distance || code == found || (other == distance && found % 2 == 0));
        }
    }
}

struct sweep {
    double amax;
    bool power_of_two;
};

/* Every bf16 up to amax, each in a tile whose first number is amax. */
static void run_sweep(struct check *c, const void *args)
{
    enum { SIDE = FP8_TILE - 1, ROWS = 65536 / SIDE + 1 };
    const struct sweep *s = args;
    check_name(c, "codes of all bf16 up to %g, %s", s->amax, s->power_of_two ? "2^k" : "amax/448");
    struct tensor x = check_tensor(c, "x", DTYPE_BF16, ROWS, FP8_TILE);
    uint16_t *data = x.data;
    int64_t ties = 0;
    for (int64_t r = 0; r < ROWS; r++) {
        data[r * FP8_TILE] = bf16_from_float((float)s->amax);
        for (int64_t i = 0; i < SIDE; i++) {
            const int64_t code = r * SIDE + i;
            const bool use = code < 65536 && fabsf(bf16_to_float((uint16_t)code)) <=
                                                 bf16_to_float(data[r * FP8_TILE]);
            data[r * FP8_TILE + 1 + i] = use ? (uint16_t)code : 0;
        }
    }
    const struct fp8_rows q = fp8_check_rows(c, "q", ROWS, FP8_TILE), none = {0};
    struct fp8_counters counters = {0}, expected = {0};
    const struct fp8_how how = {.power_of_two = s->power_of_two, .counters = &counters};
    c->ops->fp8->quantize(c->device, q, none, x, NULL, ROWS, NULL, 0, &how);
    if (c->threads > 1) {
        return;
    }
    fp8_expect_rows(c, "q", q, check_values(c, x), s->power_of_two, &expected);
    fp8_expect_counters(c, counters, expected);
    const double scale = (double)q.scale[0];
    for (int64_t code = 0; code < 0x7e; code++) {
        const double middle = (e4m3_value((uint8_t)code) + e4m3_value((uint8_t)(code + 1))) / 2;
        ties += check_round(middle * scale, DTYPE_BF16) == middle * scale ? 1 : 0;
    }
    assert_true(ties == 126 || !s->power_of_two || s->amax != 448); /* every tie was among them */
}

static void test_codes(void **state)
{
    static const double amax[] = {448, 1, 1e-4, 2e-6, 1.75, 1.7578125, 3.38953139e38, 7e-3, 0};
    for (size_t i = 0; i < sizeof amax / sizeof amax[0]; i++) {
        for (int power = 0; power < 2; power++) {
            const struct sweep sweep = {amax[i], power != 0};
            struct check *c = *state;
            c->seed = 1;
            c->dtype = DTYPE_BF16;
            check_passes(c, run_sweep, &sweep);
        }
    }
}

/* Every code times scales of all sizes, and with arbitrary ones. */
static void test_decode(void **state)
{
    static const float scales[] = {1.0F, 0x1p-22F, 0x1p118F, 0x1p-3F, 0.0371F, 1.1e-7F};
    uint8_t code[256];
    float x[256];
    uint16_t bf16[256];
    (void)state;
    for (int i = 0; i < 256; i++) {
        code[i] = (uint8_t)i;
    }
    for (size_t s = 0; s < sizeof scales / sizeof scales[0]; s++) {
        fp8_decode(x, code, scales[s], 256);
        fp8_decode_bf16(bf16, code, scales[s], 256);
        for (int i = 0; i < 256; i++) {
            const float expected = (float)(e4m3_value((uint8_t)i) * (double)scales[s]);
            assert_true(isnan(expected) ? isnan(x[i]) : memcmp(&x[i], &expected, sizeof x[i]) == 0);
            if (s < 4) {
                const float exact = bf16_to_float(bf16[i]);
                assert_true(isnan(expected) ? isnan(exact)
                                            : memcmp(&exact, &expected, sizeof exact) == 0);
            }
        }
    }
}

/* --- E5M6 --- */

static double e5m6_value(uint32_t code)
{
    const int exponent = (int)(code >> 6 & 31), mantissa = (int)(code & 63);
    const double magnitude =
        exponent == 0 ? ldexp(mantissa, -20) : ldexp(64 + mantissa, exponent - 21);
    return (code & 0x800) != 0 ? -magnitude : magnitude;
}

enum { E5M6_MOST = 31 * 64 - 1 }; /* the largest code without sign */

static void test_e5m6_codes(void **state)
{
    (void)state;
    assert_true(e5m6_value(E5M6_MOST) == (double)E5M6_LARGEST);
    for (uint32_t code = 0; code < 4096; code++) {
        const double value = e5m6_value(code);
        assert_true((double)e5m6_to_float(code) == value);
        assert_int_equal(signbit(e5m6_to_float(code)) != 0, code >> 11);
        if ((code & 0x7ff) > E5M6_MOST) {
            continue;
        }
        assert_int_equal(e5m6_from_float((float)value), code);
        if ((code & 0x7ff) < E5M6_MOST) {
            const float middle = (float)((value + e5m6_value(code + 1)) / 2);
            assert_int_equal(e5m6_from_float(middle), code + (code & 1));
            assert_int_equal(e5m6_from_float(nextafterf(middle, 0)), code);
            assert_int_equal(e5m6_from_float(nextafterf(middle, 2 * middle)), code + 1);
        }
    }
}

static uint32_t e5m6_nearest(double y)
{
    uint32_t best = 0;
    for (uint32_t code = 1; code <= E5M6_MOST; code++) {
        const double now = fabs(fabs(y) - e5m6_value(code)),
                     then = fabs(fabs(y) - e5m6_value(best));
        best = now < then || (now == then && code % 2 == 0) ? code : best;
    }
    return best | (signbit(y) ? 0x800 : 0);
}

static void expect_e5m6_tile(struct check *c, const uint8_t *packed, struct tensor back,
                             const double *x, int64_t row, int64_t col, int64_t count)
{
    const int64_t cols = back.dim[1];
    const uint8_t *in = packed + row * fp8_e5m6_bytes(cols);
    float scale, expected = NAN;
    double amax = (double)1e-4F;
    bool bad = false;
    memcpy(&scale, in + cols / 2 * 3 + col / FP8_TILE * 4, sizeof scale);
    for (int64_t i = 0; i < count; i++) {
        amax = fmax(amax, fabs(x[row * cols + col + i]));
        bad = bad || !isfinite(x[row * cols + col + i]);
    }
    expected = bad ? NAN : (float)power_for(amax, 65024);
    if (memcmp(&scale, &expected, sizeof scale) != 0) {
        fp8_fail(c, "packed", "scale", row, col, (double)scale, (double)expected);
    }
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = col + i, at_byte = at / 2 * 3;
        const uint32_t code = at % 2 == 0 ? in[at_byte] | (in[at_byte + 1] & 15U) << 8
                                          : in[at_byte + 1] >> 4 | (uint32_t)in[at_byte + 2] << 4;
        const uint32_t nearest = bad ? 0 : e5m6_nearest(x[row * cols + at] / (double)scale);
        const double value = check_get(&back, row * cols + at),
                     exact = (double)(float)(e5m6_value(nearest) * (double)scale);
        if (code != nearest) {
            fp8_fail(c, "packed", "code", row, at, code, nearest);
        }
        if (!(bad ? isnan(value) : value == exact)) {
            fp8_fail(c, "unpacked", "value", row, at, value, exact);
        }
    }
}

struct e5m6_shape {
    int64_t rows, cols;
};

static void run_e5m6(struct check *c, const void *args)
{
    const struct e5m6_shape *s = args;
    const int64_t bytes = fp8_e5m6_bytes(s->cols), used = s->cols / 2 * 3 + fp8_tiles(s->cols) * 4;
    check_name(c, "e5m6 %lld x %lld", (long long)s->rows, (long long)s->cols);
    const struct tensor x = fp8_check_random(c, "x", s->rows, s->cols, true),
                        packed = check_tensor(c, "packed", DTYPE_U8, s->rows, bytes),
                        back = check_tensor(c, "back", DTYPE_BF16, s->rows, s->cols);
    const uint8_t *data = packed.data;
    c->ops->fp8->e5m6_pack(c->device, packed.data, x);
    c->ops->fp8->e5m6_unpack(c->device, back, packed.data);
    const double *in = check_values(c, x);
    for (int64_t r = 0; r < s->rows && c->threads == 1; r++) {
        for (int64_t col = 0; col < s->cols; col += FP8_TILE) {
            const int64_t count = s->cols - col < FP8_TILE ? s->cols - col : FP8_TILE;
            expect_e5m6_tile(c, packed.data, back, in, r, col, count);
        }
        for (int64_t i = used; i < bytes; i++) {
            assert_int_equal(data[r * bytes + i], 0);
        }
    }
}

static void test_e5m6_rows(void **state)
{
    static const struct e5m6_shape shapes[] = {{0, 16}, {1, 16}, {12, 128}, {7, 144}, {5, 416}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        fp8_run(*state, run_e5m6, &shapes[i], false);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),  cmocka_unit_test(test_scales),
        cmocka_unit_test(test_codes),      cmocka_unit_test(test_decode),
        cmocka_unit_test(test_e5m6_codes), cmocka_unit_test(test_e5m6_rows),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
