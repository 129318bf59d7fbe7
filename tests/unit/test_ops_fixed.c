/* Sums of gradients as integers (kernels/ops_fixed.h). Random numbers are keyed by constants. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "kernels/device.h"
#include "kernels/ops_fixed.h"

enum { COUNT = 5000, SMALL = COUNT / FIXED_CHUNK * FIXED_CHUNK };

static struct device *open_device(int threads)
{
    struct device *device = NULL;
    const struct device_options options = {.name = "cpu", .threads = threads};
    assert_int_equal(device_open(&device, &options), STATUS_OK);
    return device;
}

/* Of every size from far below a quantum to 2^20. */
static void fill(float *x, uint64_t key, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        x[i] = (float)ldexp(rng_normal(key, (uint64_t)i), (int)(i % 80) - 60);
    }
}

static void test_add(void **state)
{
    (void)state;
    static const int threads[] = {1, 2, 3};
    static float x[COUNT], kept[COUNT];
    static int64_t sum[COUNT];
    fill(kept, 1, COUNT);
    for (int t = 0; t < 3; t++) {
        struct device *device = open_device(threads[t]);
        struct fixed_point fixed = {.scale = 0x1p40F, .limit = 0x1p62F};
        memcpy(x, kept, sizeof x);
        for (int64_t i = 0; i < COUNT; i++) {
            sum[i] = i - COUNT / 2;
        }
        device_ops(device)->fixed->add(device, sum, x, COUNT, &fixed);
        for (int64_t i = 0; i < COUNT; i++) {
            assert_true(sum[i] == i - COUNT / 2 + llrint(ldexp((double)kept[i], 40)));
            assert_true(x[i] == 0);
        }
        assert_int_equal(fixed.saturated + fixed.bad, 0);
        device_close(device);
    }
}

/* Left out, counted exactly, and cleared like the rest. */
static void test_left_out(void **state)
{
    (void)state;
    static float x[COUNT];
    static int64_t sum[COUNT];
    struct device *device = open_device(2);
    struct fixed_point fixed = {.scale = 0x1p40F, .limit = 0x1p50F, .bad = 5};
    for (int64_t i = 0; i < COUNT; i++) {
        x[i] = i % 11 == 0   ? NAN
               : i % 13 == 0 ? -INFINITY
               : i % 17 == 0 ? 1024.5F
               : i % 19 == 0 ? 3e38F
                             : -1024.0F;
        sum[i] = 0;
    }
    device_ops(device)->fixed->add(device, sum, x, COUNT, &fixed);
    int64_t bad = 5, saturated = 0;
    for (int64_t i = 0; i < COUNT; i++) {
        const bool is_bad = i % 11 == 0 || i % 13 == 0,
                   is_beyond = !is_bad && (i % 17 == 0 || i % 19 == 0);
        bad += is_bad;
        saturated += is_beyond;
        assert_true(sum[i] == (is_bad || is_beyond ? 0 : -((int64_t)1 << 50)));
        assert_true(x[i] == 0);
    }
    assert_true(fixed.bad == bad && fixed.saturated == saturated);
    device_close(device);
}

/* The integer that `limb` stands for, as limbs below 2^32. */
static void carry(uint64_t out[FIXED_LIMBS], const int64_t limb[FIXED_LIMBS])
{
    uint64_t over = 0;
    for (int i = 0; i < FIXED_LIMBS; i++) {
        const uint64_t all = (uint64_t)limb[i] + over;
        out[i] = i + 1 < FIXED_LIMBS ? all & 0xffffffffU : all;
        over = all >> 32;
    }
}

/* limb += value 2^shift; value below 2^32. */
static void add_shifted(uint64_t limb[FIXED_LIMBS], uint64_t value, int64_t shift)
{
    uint64_t over = value << shift % 32;
    for (int64_t i = shift / 32; i < FIXED_LIMBS; i++) {
        const uint64_t all = limb[i] + (over & 0xffffffffU);
        limb[i] = all & 0xffffffffU;
        over = (over >> 32) + (all >> 32);
    }
}

/* Against sums in 160 bits, where no chunk's sum needs more than 53. */
static void test_decode(void **state)
{
    (void)state;
    static int64_t sum[SMALL];
    static float out[SMALL];
    uint64_t expected[FIXED_LIMBS] = {0};
    for (int64_t i = 0; i < SMALL; i++) {
        const int64_t chunk = i / FIXED_CHUNK;
        const int64_t value = (int64_t)(rng_normal(7, (uint64_t)i) * 1000), shift = chunk % 40;
        sum[i] = value * ((int64_t)1 << shift);
        add_shifted(expected, (uint64_t)(value * value), 2 * shift);
    }
    for (int threads = 1; threads <= 3; threads++) {
        struct device *device = open_device(threads);
        int64_t limb[FIXED_LIMBS] = {0};
        uint64_t got[FIXED_LIMBS];
        /* In two calls, as two ranks would. */
        const int64_t first = 3 * FIXED_CHUNK;
        const struct fixed_ops *ops = device_ops(device)->fixed;
        ops->squares(device, limb, sum, first);
        ops->squares(device, limb, sum + first, SMALL - first);
        ops->decode(device, out, sum, SMALL, 0x1p-40F);
        carry(got, limb);
        assert_memory_equal(got, expected, sizeof got);
        for (int64_t i = 0; i < SMALL; i++) {
            assert_true(out[i] == ldexpf((float)sum[i], -40));
        }
        device_close(device);
    }
}

/* The largest sums there may be. */
static void test_squares_most(void **state)
{
    (void)state;
    static int64_t sum[FIXED_CHUNK];
    struct device *device = open_device(1);
    int64_t limb[FIXED_LIMBS] = {0};
    uint64_t got[FIXED_LIMBS];
    for (int64_t i = 0; i < FIXED_CHUNK; i++) {
        sum[i] = i % 2 == 0 ? (int64_t)1 << 62 : -((int64_t)1 << 62);
    }
    device_ops(device)->fixed->squares(device, limb, sum, FIXED_CHUNK);
    carry(got, limb);
    assert_true(got[4] == 4 && got[3] == 0 && got[0] == 0); /* 64 2^124 = 2^130 */
    device_close(device);
}

/* Rows of two experts from three sources. */
enum { OUT = 48, IN = 40, GROUPS = 6, ROWS = 300 };
static const int64_t boundaries[GROUPS + 1] = {0, 70, 70, 133, 200, 299, 300};

/* Of one group by itself, in two passes: the product in f32, then what is wanted of it. */
static void add_alone(struct device *device, int64_t *sum, struct tensor dy, struct tensor x,
                      const int64_t *offset, struct fixed_rows rows, struct fixed_point *fixed)
{
    static float unit[OUT * IN];
    const struct ops *ops = device_ops(device);
    memset(unit, 0, sizeof unit);
    ops->grouped_backward_weight(device, unit, 0, dy, x, offset, 1);
    ops->fixed->add(device, sum + rows.first * IN, unit + rows.first * IN,
                    (rows.last - rows.first) * IN, fixed);
}

/* Each group as if it were alone, whatever else is in the call; of the wanted rows only; what is
 * left out counts the same. dy's column 5 is too large, 9 no number, in some rows. */
static void check_grouped(int threads, enum dtype dtype, const struct fixed_rows *live)
{
    static float dy[ROWS * OUT], x[ROWS * IN], unit[OUT * IN];
    static uint16_t dy16[ROWS * OUT], x16[ROWS * IN];
    static int64_t sum[2 * OUT * IN], alone[2 * OUT * IN];
    const bool f32 = dtype == DTYPE_F32;
    struct device *device = open_device(threads);
    struct fixed_point fixed = {.scale = 0x1p30F, .limit = 0x1p62F}, apart = fixed;
    for (int i = 0; i < ROWS * OUT; i++) {
        const bool some = i / OUT % 90 == 3;
        dy[i] = some && i % OUT == 5   ? 0x1p60F
                : some && i % OUT == 9 ? INFINITY
                                       : (float)rng_normal(3, (uint64_t)i);
        dy16[i] = bf16_from_float(dy[i]);
    }
    for (int i = 0; i < ROWS * IN; i++) {
        x[i] = (float)rng_normal(4, (uint64_t)i);
        x16[i] = bf16_from_float(x[i]);
    }
    const struct tensor a = tensor_2d(f32 ? (void *)dy : dy16, dtype, ROWS, OUT),
                        b = tensor_2d(f32 ? (void *)x : x16, dtype, ROWS, IN);
    memset(sum, 0, sizeof sum);
    memset(alone, 0, sizeof alone);
    device_ops(device)->fixed->grouped_backward_weight(device, sum, OUT * IN, unit, a, b,
                                                       boundaries, 2, 3, live, &fixed);
    for (int g = 0; g < GROUPS; g++) {
        const struct fixed_rows rows = live != NULL ? live[g / 3] : (struct fixed_rows){0, OUT};
        add_alone(device, alone + g / 3 * OUT * IN, a, b, boundaries + g, rows, &apart);
    }
    assert_memory_equal(sum, alone, sizeof sum);
    assert_memory_equal(&fixed, &apart, sizeof fixed);
    assert_true(fixed.saturated > 0 && fixed.bad > 0);
    for (int i = 0; i < OUT * IN; i++) {
        assert_true(unit[i] == 0);
        assert_true((sum[i] != 0) ==
                    (i / IN != 5 && i / IN != 9 &&
                     (live == NULL || (i / IN >= live[0].first && i / IN < live[0].last))));
    }
    device_close(device);
}

static void test_grouped(void **state)
{
    static const struct fixed_rows halves[2] = {{0, OUT / 2}, {OUT / 2, OUT}},
                                   one[2] = {{5, OUT}, {7, 7}};
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        for (int wide = 0; wide < 2; wide++) {
            const enum dtype dtype = wide != 0 ? DTYPE_F32 : DTYPE_BF16;
            check_grouped(threads, dtype, NULL);
            check_grouped(threads, dtype, halves);
            check_grouped(threads, dtype, one);
        }
    }
}

/* In one pass from integers what decode and then AdamW give, bit for bit. */
static void check_adamw(struct device *device, enum dtype moments)
{
    static int64_t sum[COUNT];
    static float grad[COUNT], param[2][COUNT], m[2][COUNT], v[2][COUNT];
    static uint16_t out[2][COUNT];
    const struct ops *ops = device_ops(device);
    const struct adamw args = {.lr = 0.01F,
                               .beta1 = 0.9F,
                               .beta2 = 0.95F,
                               .eps = 1e-8F,
                               .grad_scale = 0.3F,
                               .step = 2,
                               .moments = moments,
                               .quantum = 0x1p-48F};
    for (int64_t i = 0; i < COUNT; i++) {
        sum[i] = (int64_t)(rng_normal(9, (uint64_t)i) * ldexp(1, (int)(i % 62)));
        for (int k = 0; k < 2; k++) {
            param[k][i] = (float)rng_normal(8, (uint64_t)i);
            m[k][i] = v[k][i] = 0.125F;
        }
    }
    ops->fixed->decode(device, grad, sum, COUNT, args.quantum);
    for (int k = 0; k < 2; k++) {
        const struct adamw_piece piece = {.param = param[k],
                                          .m = m[k],
                                          .v = v[k],
                                          .out = out[k],
                                          .grad = k == 0 ? grad : NULL,
                                          .sum = k == 0 ? NULL : sum,
                                          .count = COUNT,
                                          .weight_decay = 0.1F,
                                          .key = 5,
                                          .first = 3};
        ops->adamw(device, &piece, 1, args);
    }
    assert_memory_equal(param[0], param[1], sizeof param[0]);
    assert_memory_equal(m[0], m[1], sizeof m[0]);
    assert_memory_equal(v[0], v[1], sizeof v[0]);
    assert_memory_equal(out[0], out[1], sizeof out[0]);
}

static void test_adamw(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        struct device *device = open_device(threads);
        check_adamw(device, DTYPE_F32);
        check_adamw(device, DTYPE_BF16);
        device_close(device);
    }
}

/* Three sources' messages for two experts, five slots of room. */
static void test_sources(void **state)
{
    (void)state;
    enum { LINE = 2 + 5 };
    int32_t message[3 * LINE] = {0};
    const int64_t expected[] = {0, 2, 2, 6, 9, 14, 14};
    int64_t offset[7];
    const struct padded_shape shape = {.experts = 6, .ranks = 3, .pair_slots = 5, .pair_tokens = 5};
    struct device *device = open_device(1);
    message[0] = 2;
    message[1] = 3;
    message[LINE + 1] = 5;
    message[2 * LINE] = 4;
    device_ops(device)->fixed->expert_sources(device, offset, message, &shape);
    assert_memory_equal(offset, expected, sizeof expected);
    device_close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add),     cmocka_unit_test(test_left_out),
        cmocka_unit_test(test_decode),  cmocka_unit_test(test_squares_most),
        cmocka_unit_test(test_grouped), cmocka_unit_test(test_sources),
        cmocka_unit_test(test_adamw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
