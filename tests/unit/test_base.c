/* status, tensor, rng and hash: the bottom layer. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/base/hash.h"
#include "kernels/base/rng.h"
#include "kernels/base/small_float.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

/* --- status --- */

static enum status halve(int number, int *half)
{
    if (number % 2 != 0) {
        return status_fail(STATUS_DATA, "number %d: odd", number);
    }
    *half = number / 2;
    return STATUS_OK;
}

static enum status quarter(int number, int *result)
{
    int half = 0;
    TRY(halve(number, &half));
    return halve(half, result);
}

static void test_status_travels_up(void **state)
{
    (void)state;
    int result = -1;
    assert_int_equal(quarter(8, &result), STATUS_OK);
    assert_int_equal(result, 2);
    assert_int_equal(quarter(6, &result), STATUS_DATA);
    assert_string_equal(status_message(), "number 3: odd");
    assert_int_equal(result, 2);
}

static void test_status_may_quote_itself(void **state)
{
    (void)state;
    enum status status = status_fail(STATUS_IO, "inner");
    status = status_fail(status, "outer: %s", status_message());
    assert_int_equal(status, STATUS_IO);
    assert_string_equal(status_message(), "outer: inner");
}

static void test_status_cuts_long_messages(void **state)
{
    (void)state;
    char text[8192];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    assert_int_equal(status_fail(STATUS_USAGE, "%s", text), STATUS_USAGE);
    assert_true(strlen(status_message()) > 1000 && strlen(status_message()) < sizeof text - 1);
    assert_memory_equal(status_message(), text, strlen(status_message()));
}

static void test_status_exit_codes(void **state)
{
    (void)state;
    static const struct {
        enum status status;
        int code;
    } cases[] = {{STATUS_OK, 0},        {STATUS_DIFFERENT, 1}, {STATUS_USAGE, 64},
                 {STATUS_DATA, 65},     {STATUS_MISMATCH, 65}, {STATUS_INTERNAL, 70},
                 {STATUS_RESOURCE, 71}, {STATUS_IO, 74},       {STATUS_HANG, 76},
                 {STATUS_DIVERGED, 77}, {STATUS_PREEMPTED, 85}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(status_exit_code(cases[i].status), cases[i].code);
    }
}

/* --- tensor --- */

static void test_tensor_counts_and_rows(void **state)
{
    (void)state;
    float data[6] = {0, 1, 2, 3, 4, 5};
    const struct tensor matrix = tensor_2d(data, DTYPE_F32, 3, 2);
    assert_int_equal(tensor_count(&matrix), 6);
    assert_int_equal(tensor_bytes(&matrix), 24);
    assert_true(tensor_is(&matrix, DTYPE_F32, 3, 2));
    assert_false(tensor_is(&matrix, DTYPE_F32, 2, 3));
    assert_false(tensor_is(&matrix, DTYPE_I32, 3, 2));
    const struct tensor rows = tensor_rows(&matrix, 1, 2);
    assert_true(tensor_is(&rows, DTYPE_F32, 2, 2));
    assert_ptr_equal(rows.data, &data[2]);
    const struct tensor none = tensor_rows(&matrix, 3, 0);
    assert_int_equal(tensor_count(&none), 0);
    const struct tensor vector = tensor_1d(data, DTYPE_BF16, 5);
    assert_int_equal(vector.ndim, 1);
    assert_int_equal(tensor_bytes(&vector), 10);
    assert_false(tensor_is(&vector, DTYPE_BF16, 5, 1));
}

static void test_tensor_dtypes(void **state)
{
    (void)state;
    static const size_t bytes[DTYPE_COUNT] = {
        [DTYPE_F32] = 4, [DTYPE_BF16] = 2, [DTYPE_I32] = 4, [DTYPE_I64] = 8,
        [DTYPE_F64] = 8, [DTYPE_U8] = 1,   [DTYPE_F16] = 2, [DTYPE_E4M3] = 1};
    for (int i = 0; i < DTYPE_COUNT; i++) {
        assert_int_equal(dtype_bytes((enum dtype)i), bytes[i]);
        assert_non_null(dtype_name((enum dtype)i));
    }
    assert_string_equal(dtype_name(DTYPE_BF16), "bfloat16");
}

static float float_of(uint32_t bits)
{
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static void test_bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        uint32_t from;
        uint16_t to;
    } cases[] = {
        {0x3f800000u, 0x3f80},                        /* 1 is exact */
        {0x3f808000u, 0x3f80},                        /* tie: down to even */
        {0x3f818000u, 0x3f82},                        /* tie: up to even */
        {0x3f807fffu, 0x3f80},                        /* just below a tie */
        {0x3f808001u, 0x3f81},                        /* just above a tie */
        {0xbf808000u, 0xbf80},                        /* ties know no sign */
        {0xbf818000u, 0xbf82}, {0x3fffffffu, 0x4000}, /* the carry reaches the exponent */
        {0x00000000u, 0x0000}, {0x80000000u, 0x8000}, /* both zeros */
        {0x00008000u, 0x0000}, {0x00018000u, 0x0002}, /* subnormal ties */
        {0x7f7f7fffu, 0x7f7f},                        /* largest finite stays finite */
        {0x7f7f8000u, 0x7f80},                        /* past it: infinity */
        {0x7f800000u, 0x7f80}, {0xff800000u, 0xff80}, /* infinities */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(bf16_from_float(float_of(cases[i].from)), cases[i].to);
    }
}

static void test_bf16_keeps_nan(void **state)
{
    (void)state;
    /* 0x7f800001 has only low bits set: cutting them would make an infinity, rounding 0x7fffffff a
     * zero. */
    static const uint32_t nans[] = {0x7f800001u, 0xff800001u, 0x7fc00000u, 0x7fffffffu,
                                    0xffffffffu};
    for (size_t i = 0; i < sizeof nans / sizeof nans[0]; i++) {
        union {
            uint32_t u;
            float f;
        } value = {.u = nans[i]};
        const uint16_t narrow = bf16_from_float(value.f);
        assert_true(isnan(bf16_to_float(narrow)));
        assert_int_equal(narrow >> 15, nans[i] >> 31);
    }
}

static void test_bf16_round_trip_and_nearest(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000u; bits++) {
        const float wide = bf16_to_float((uint16_t)bits);
        if (!isnan(wide)) {
            assert_int_equal(bf16_from_float(wide), bits);
        }
    }
    for (uint64_t i = 0; i < 100000; i++) { /* no neighbour is nearer */
        const float number = (float)rng_normal(1, i);
        const uint16_t narrow = bf16_from_float(number);
        const double error = fabs((double)bf16_to_float(narrow) - (double)number);
        assert_true(error <= fabs((double)bf16_to_float((uint16_t)(narrow + 1)) - (double)number));
        assert_true(error <= fabs((double)bf16_to_float((uint16_t)(narrow - 1)) - (double)number));
    }
}

/* --- small floats: every code, and every value a float rounds to --- */

/* By the definition: sign, exponent, mantissa as powers of two. */
static double defined(uint32_t code, int exponent_bits, int mantissa_bits, int bias)
{
    const int sign = (int)(code >> (exponent_bits + mantissa_bits)) & 1;
    const int exponent = (int)(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const int mantissa = (int)code & ((1 << mantissa_bits) - 1);
    const double value =
        exponent == 0 ? ldexp(mantissa, 1 - bias - mantissa_bits)
                      : ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    return sign != 0 ? -value : value;
}

static void test_f16_every_code(void **state)
{
    (void)state;
    for (uint32_t code = 0; code <= 0xffff; code++) {
        const float wide = f16_to_float((uint16_t)code);
        if ((code & 0x7fff) > 0x7c00) {
            assert_true(isnan(wide));
            assert_true((f16_from_float(wide) & 0x7fff) > 0x7c00);
            continue;
        }
        const bool infinite = (code & 0x7fff) == 0x7c00;
        assert_true(infinite ? isinf(wide) && (wide < 0) == (code >> 15 == 1)
                             : (double)wide == defined(code, 5, 10, 15));
        assert_int_equal(f16_from_float(wide), code);
    }
    assert_int_equal(f16_from_float(65519.996f), 0x7bff);
    assert_int_equal(f16_from_float(65520.0f), 0x7c00);
    assert_int_equal(f16_from_float(-1e30f), 0xfc00);
    assert_int_equal(f16_from_float(1e-45f), 0);
    assert_int_equal(f16_from_float(-0.0f), 0x8000);
}

/* Halfway between two neighbours goes to the even one, a hair beside it to the nearer. */
static void test_f16_ties(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 0x7bff; code++) {
        const float a = f16_to_float((uint16_t)code), b = f16_to_float((uint16_t)(code + 1));
        const float middle = (a + b) / 2;
        assert_int_equal(f16_from_float(middle), code + (code & 1));
        assert_int_equal(f16_from_float(nextafterf(middle, 0)), code);
        assert_int_equal(f16_from_float(-nextafterf(middle, b)), 0x8000 | (code + 1));
    }
}

static void test_e4m3_every_code(void **state)
{
    (void)state;
    for (uint32_t code = 0; code <= 0xff; code++) {
        const float wide = e4m3_to_float((uint8_t)code);
        if ((code & 0x7f) == 0x7f) {
            assert_true(isnan(wide));
            assert_int_equal(e4m3_from_float(wide) & 0x7f, 0x7f);
            continue;
        }
        assert_true((double)wide == defined(code, 4, 3, 7));
        assert_int_equal(e4m3_from_float(wide), code);
    }
    assert_int_equal(e4m3_from_float(1), 0x38);
    assert_int_equal(e4m3_from_float(ldexpf(1, -10)), 0); /* a tie, to even */
    assert_int_equal(e4m3_from_float(ldexpf(1.001f, -10)), 1);
    assert_int_equal(e4m3_from_float(449), 0x7e);
    assert_int_equal(e4m3_from_float(1e30f), 0x7e);
    assert_int_equal(e4m3_from_float(-HUGE_VALF), 0xfe);
}

static void test_e4m3_nearest(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 0x7e; code++) {
        const float a = e4m3_to_float((uint8_t)code), b = e4m3_to_float((uint8_t)(code + 1));
        const float middle = (a + b) / 2;
        assert_int_equal(e4m3_from_float(middle), code + (code & 1));
        assert_int_equal(e4m3_from_float(nextafterf(middle, 0)), code);
        assert_int_equal(e4m3_from_float(-nextafterf(middle, b)), 0x80 | (code + 1));
        assert_int_equal(e4m3_from_float(a + (b - a) / 8), code);
    }
}

/* --- rng --- */

/* Philox 4x32-10 with all four counter words, to hold the known answers that rng_bits cannot reach.
 */
static void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
    for (uint32_t round = 0; round < 10; round++) {
        const uint64_t p0 = UINT64_C(0xD2511F53) * c[0], p1 = UINT64_C(0xCD9E8D57) * c[2];
        const uint32_t k0 = key[0] + round * 0x9E3779B9u, k1 = key[1] + round * 0xBB67AE85u;
        const uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k0, (uint32_t)p1,
                                  (uint32_t)(p0 >> 32) ^ c[3] ^ k1, (uint32_t)p0};
        memcpy(c, next, sizeof c);
    }
    memcpy(out, c, sizeof c);
}

/* The kat_vectors of Random123 (Salmon et al. 2011). */
static void test_rng_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}},
        {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
         {0xa4093822u, 0x299f31d0u},
         {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}},
    };
    uint32_t out[4];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        philox(cases[i].counter, cases[i].key, out);
        assert_memory_equal(out, cases[i].out, sizeof out);
    }
    rng_bits(0, 0, out);
    assert_memory_equal(out, cases[0].out, sizeof out);
}

static void test_rng_bits_are_philox(void **state)
{
    (void)state;
    uint64_t key = 0x0123456789abcdefu, index = 0xfedcba9876543210u;
    for (int i = 0; i < 1000; i++) {
        const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0};
        const uint32_t words[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
        uint32_t expected[4], out[4];
        philox(counter, words, expected);
        rng_bits(key, index, out);
        assert_memory_equal(out, expected, sizeof out);
        key = key * 6364136223846793005u + 1442695040888963407u;
        index = index * 2862933555777941757u + 3037000493u;
    }
}

static void test_rng_uniform_range_and_moments(void **state)
{
    (void)state;
    enum { DRAWS = 200000, BINS = 16 };
    int bin[BINS] = {0};
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        const double u = rng_uniform(7, i);
        assert_true(u >= 0.0 && u < 1.0);
        bin[(int)(u * BINS)]++;
        sum += u;
        squares += u * u;
    }
    assert_true(fabs(sum / DRAWS - 0.5) < 0.004);           /* 6 sigma: 0.0039 */
    assert_true(fabs(squares / DRAWS - 1.0 / 3.0) < 0.004); /* 6 sigma: 0.0040 */
    for (int i = 0; i < BINS; i++) {
        assert_true(abs(bin[i] - DRAWS / BINS) < 650); /* 6 sigma: 649 */
    }
}

static void test_rng_normal_moments(void **state)
{
    (void)state;
    enum { DRAWS = 200000 };
    double sum[5] = {0};
    for (uint64_t i = 0; i < DRAWS; i++) {
        const double x = rng_normal(11, i);
        assert_true(isfinite(x));
        sum[1] += x, sum[2] += x * x, sum[3] += x * x * x, sum[4] += x * x * x * x;
    }
    assert_true(fabs(sum[1] / DRAWS) < 0.0135); /* 6 sigma each */
    assert_true(fabs(sum[2] / DRAWS - 1.0) < 0.019);
    assert_true(fabs(sum[3] / DRAWS) < 0.052);
    assert_true(fabs(sum[4] / DRAWS - 3.0) < 0.132);
}

static void test_rng_streams_differ_by_key(void **state)
{
    (void)state;
    static const char *const names[] = {"",   "a",           "b",           "ab",
                                        "ba", "layers.0.w1", "layers.1.w1", "layers.0.w2"};
    enum { NAMES = sizeof names / sizeof names[0], SEEDS = 3, KEYS = NAMES * SEEDS };
    uint64_t key[KEYS];
    for (int i = 0; i < KEYS; i++) {
        key[i] = rng_key((uint64_t)(i / NAMES), names[i % NAMES]);
        assert_true(key[i] == rng_key((uint64_t)(i / NAMES), names[i % NAMES]));
    }
    for (int i = 0; i < KEYS; i++) {
        for (int j = 0; j < i; j++) {
            int same = 0;
            for (uint64_t at = 0; at < 64; at++) {
                uint32_t a[4], b[4];
                rng_bits(key[i], at, a);
                rng_bits(key[j], at, b);
                same += memcmp(a, b, sizeof a) == 0;
            }
            assert_int_equal(same, 0);
        }
    }
}

static void test_rng_permute_is_a_bijection(void **state)
{
    (void)state;
    static const uint64_t counts[] = {1,  2,  3,  4,    5,    7,    16,   17,
                                      63, 64, 65, 1000, 1024, 1025, 40001};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        for (uint64_t key = 0; key < 3; key++) {
            unsigned char *seen = calloc(counts[c], 1);
            assert_non_null(seen);
            for (uint64_t i = 0; i < counts[c]; i++) {
                const uint64_t to = rng_permute(key * 0x9e3779b97f4a7c15u, i, counts[c]);
                assert_true(to < counts[c]);
                assert_int_equal(seen[to]++, 0);
            }
            free(seen);
        }
    }
}

static void test_rng_permute_shuffles(void **state)
{
    (void)state;
    enum { COUNT = 10000 };
    int fixed = 0, agree = 0, neighbours = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        const uint64_t to = rng_permute(5, i, COUNT);
        fixed += to == i;
        agree += to == rng_permute(600, i, COUNT);
        neighbours += i > 0 && to == rng_permute(5, i - 1, COUNT) + 1;
    }
    assert_true(fixed < 12); /* each is Poisson with mean 1 */
    assert_true(agree < 12);
    assert_true(neighbours < 12);
}

static void test_rng_permute_reaches_far(void **state)
{
    (void)state;
    const uint64_t count = UINT64_C(1) << 40;
    uint64_t most = 0;
    for (uint64_t i = 0; i < 100; i++) {
        const uint64_t to = rng_permute(9, i, count);
        assert_true(to < count);
        most = to > most ? to : most;
    }
    assert_true(most > count / 2);
}

/* --- hash --- */

static void test_hash_known_answers(void **state)
{
    (void)state;
    char hex[17];
    hash_hex(hex, hash_bytes("", 0));
    assert_string_equal(hex, "2d06800538d394c2"); /* XXH3-64 of nothing, seed 0 */
    hash_hex(hex, hash_bytes("abc", 3));
    assert_string_equal(hex, "78af5f94892f3950");
    hash_hex(hex, 0xab);
    assert_string_equal(hex, "00000000000000ab");
}

static void test_hash_sees_every_bit(void **state)
{
    (void)state;
    enum { BYTES = 3000 }; /* long enough for the striped path */
    static unsigned char data[BYTES];
    for (int i = 0; i < BYTES; i++) {
        data[i] = (unsigned char)(i * 7);
    }
    const uint64_t whole = hash_bytes(data, BYTES);
    for (int i = 0; i < BYTES * 8; i++) {
        data[i / 8] ^= (unsigned char)(1u << (i % 8));
        assert_true(hash_bytes(data, BYTES) != whole);
        data[i / 8] ^= (unsigned char)(1u << (i % 8));
    }
    assert_true(hash_bytes(data, BYTES) == whole);
    assert_true(hash_bytes(data, BYTES - 1) != whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status_travels_up),
        cmocka_unit_test(test_status_may_quote_itself),
        cmocka_unit_test(test_status_cuts_long_messages),
        cmocka_unit_test(test_status_exit_codes),
        cmocka_unit_test(test_tensor_counts_and_rows),
        cmocka_unit_test(test_tensor_dtypes),
        cmocka_unit_test(test_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_bf16_keeps_nan),
        cmocka_unit_test(test_bf16_round_trip_and_nearest),
        cmocka_unit_test(test_f16_every_code),
        cmocka_unit_test(test_f16_ties),
        cmocka_unit_test(test_e4m3_every_code),
        cmocka_unit_test(test_e4m3_nearest),
        cmocka_unit_test(test_rng_known_answers),
        cmocka_unit_test(test_rng_bits_are_philox),
        cmocka_unit_test(test_rng_uniform_range_and_moments),
        cmocka_unit_test(test_rng_normal_moments),
        cmocka_unit_test(test_rng_streams_differ_by_key),
        cmocka_unit_test(test_rng_permute_is_a_bijection),
        cmocka_unit_test(test_rng_permute_shuffles),
        cmocka_unit_test(test_rng_permute_reaches_far),
        cmocka_unit_test(test_hash_known_answers),
        cmocka_unit_test(test_hash_sees_every_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
