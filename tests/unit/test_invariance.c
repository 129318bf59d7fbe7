/* Batch invariance of the CPU's ops: with oneDNN and with our own GEMM, by 1 to 4 threads; that a
 * product that depends on its rows is found. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "invariance_check.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/tile.h"
#include "kernels/invariance.h"

enum { THREADS = 4 };
static struct device *devices[THREADS];

/* Products of oneDNN's, or of our own. */
static bool holds(bool own, int64_t pool, int64_t width, int64_t inner)
{
    struct onednn *kept[THREADS];
    const enum cpu_wide wide = cpu_device_of(devices[0])->wide;
    const struct invariance_devices which = {.device = devices,
                                             .count = THREADS,
                                             .pool = pool,
                                             .width = width,
                                             .inner = inner,
                                             .name = own ? "own GEMM" : "oneDNN's GEMM"};
    for (int t = 0; t < THREADS; t++) {
        kept[t] = cpu_device_of(devices[t])->onednn;
        cpu_device_of(devices[t])->onednn = own ? NULL : kept[t];
        cpu_device_of(devices[t])->wide = own ? CPU_WIDE_OFF : wide;
    }
    const bool right = invariance_check_all(&which);
    for (int t = 0; t < THREADS; t++) {
        cpu_device_of(devices[t])->onednn = kept[t];
        cpu_device_of(devices[t])->wide = wide;
    }
    return right;
}

static void test_onednn(void **state)
{
    (void)state;
    assert_true(holds(false, INVARIANCE_POOL, 144, 96));
}

static void test_own(void **state)
{
    (void)state;
    assert_true(holds(true, 37, 80, 48));
}

static void test_quick_check(void **state)
{
    (void)state;
    for (int act = DTYPE_F32; act <= DTYPE_BF16; act++) {
        assert_int_equal(invariance_check(devices[1], (enum dtype)act, 512, 256), STATUS_OK);
        assert_int_equal(invariance_check(devices[0], (enum dtype)act, 48, 1024), STATUS_OK);
    }
}

/* Adds what depends on the number of rows of the call. */
static void depends_on_rows(struct device *device, struct tensor y, struct tensor x,
                            struct tensor w, bool add)
{
    device_ops(devices[1])->linear_forward(device, y, x, w, add);
    if (y.dtype == DTYPE_F32) {
        ((float *)y.data)[0] += (float)y.dim[0] * 1e-6F;
    } else {
        ((uint16_t *)y.data)[0] ^= (uint16_t)(y.dim[0] == 1);
    }
}

static void test_finds(void **state)
{
    (void)state;
    struct cpu_device device = *cpu_device_of(devices[0]);
    struct ops ops = *device.head.ops;
    struct device *one[] = {&device.head};
    const struct invariance_devices which = {
        .device = one, .count = 1, .pool = 8, .width = 48, .inner = 32, .name = "a broken GEMM"};
    const struct invariance_family *linear = &invariance_families[2];
    ops.linear_forward = depends_on_rows;
    device.head.ops = &ops;
    assert_string_equal(linear->name, "linear");
    for (int act = DTYPE_F32; act <= DTYPE_BF16; act++) {
        assert_false(invariance_family_check(linear, (enum dtype)act, &which));
        assert_int_equal(invariance_check(&device.head, (enum dtype)act, 64, 64), STATUS_RESOURCE);
        assert_non_null(strstr(status_message(), "linear_forward"));
    }
}

/* More rows than the wide kernel's tiles have (gemm_wide.c goes another way where they have fewer),
 * and more k than its panels: y of few rows, and dx, are those of all, by
 * whichever vectors. */
enum { FEW_ROWS = 300, FEW_IN = 1100, FEW_OUT = 1060 };

struct few {
    float in[FEW_ROWS * FEW_IN], w[FEW_OUT * FEW_IN], all[FEW_ROWS * FEW_IN],
        some[FEW_ROWS * FEW_IN];
};

static struct tensor few_rows(float *data, enum dtype act, int64_t first, int64_t rows,
                              int64_t cols)
{
    return tensor_2d((char *)data + (size_t)(first * cols) * dtype_bytes(act), act, rows, cols);
}

/* Rows [first, first + rows) by a grouped product, to the same rows of out. */
static void few_product(struct device *device, bool backward, float *out, struct few *few,
                        enum dtype act, int64_t first, int64_t rows)
{
    const int64_t offset[] = {0, rows}, stride = FEW_OUT * FEW_IN;
    const int64_t in = backward ? FEW_OUT : FEW_IN, to = backward ? FEW_IN : FEW_OUT;
    (backward ? device_ops(device)->grouped_backward_input : device_ops(device)->grouped_forward)(
        device, few_rows(out, act, first, rows, to), few_rows(few->in, act, first, rows, in),
        few->w, stride, offset, 1);
}

static void few_fill(void *data, enum dtype act, int64_t count, uint64_t seed)
{
    for (int64_t i = 0; i < count; i++) {
        const float value = (float)rng_normal(seed, (uint64_t)i);
        if (act == DTYPE_F32) {
            ((float *)data)[i] = value;
        } else {
            ((uint16_t *)data)[i] = bf16_from_float(value);
        }
    }
}

static double few_get(const void *data, enum dtype act, int64_t i)
{
    return (double)(act == DTYPE_F32 ? ((const float *)data)[i]
                                     : bf16_to_float(((const uint16_t *)data)[i]));
}

static void few_check(struct few *few, enum dtype act, bool backward)
{
    static const int64_t counts[] = {1, 14, 15, 111, 112, 113, 225};
    const size_t row = (size_t)(backward ? FEW_IN : FEW_OUT) * dtype_bytes(act);
    few_fill(few->in, act, FEW_ROWS * FEW_IN, 1);
    few_fill(few->w, act, FEW_OUT * FEW_IN, 2);
    few_product(devices[1], backward, few->all, few, act, 0, FEW_ROWS);
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const int64_t first = FEW_ROWS - counts[i];
        memset(few->some, 0xff, sizeof few->some);
        few_product(devices[i % THREADS], backward, few->some, few, act, first, counts[i]);
        assert_memory_equal((char *)few->some + (size_t)first * row,
                            (char *)few->all + (size_t)first * row, (size_t)counts[i] * row);
    }
}

static void test_few_rows(void **state)
{
    (void)state;
    const enum cpu_wide chosen = cpu_device_of(devices[0])->wide;
    struct few *few = calloc(1, sizeof *few);
    assert_non_null(few);
    for (enum cpu_wide wide = CPU_WIDE_OFF; wide <= CPU_WIDE_WIDENED; wide++) {
        if (wide != chosen && (wide == CPU_WIDE_OFF || !tile_has_pairs())) {
            continue;
        }
        for (int t = 0; t < THREADS; t++) {
            cpu_device_of(devices[t])->wide = wide;
        }
        for (int mode = 0; mode < 4; mode++) {
            few_check(few, mode % 2 != 0 ? DTYPE_BF16 : DTYPE_F32, mode / 2 != 0);
        }
    }
    for (int t = 0; t < THREADS; t++) {
        cpu_device_of(devices[t])->wide = chosen;
    }
    free(few);
}

/* Of so many tokens, and so few columns, oneDNN has each thread sum some of them if it is asked for
 * all at once (gemm_onednn.c): a power of two for bf16, any number above 2048 for f32. */
enum { LONG_SUM = 4096, SUM_OUT = 40, SUM_IN = 60 };

struct sums {
    float dy[LONG_SUM * SUM_OUT], x[LONG_SUM * SUM_IN], dw[THREADS][SUM_OUT * SUM_IN];
};

/* By oneDNN where it can, else by our own kernel: a gradient of weights that is added to ones. */
static void sums_check(struct sums *sums, enum dtype act, int64_t tokens)
{
    const struct tensor dy = tensor_2d(sums->dy, act, tokens, SUM_OUT),
                        x = tensor_2d(sums->x, act, tokens, SUM_IN);
    few_fill(sums->dy, act, tokens * SUM_OUT, 3);
    few_fill(sums->x, act, tokens * SUM_IN, 4);
    for (int t = 0; t < THREADS; t++) {
        for (int i = 0; i < SUM_OUT * SUM_IN; i++) {
            sums->dw[t][i] = 1;
        }
        device_ops(devices[t])
            ->linear_backward_weight(devices[t], tensor_2d(sums->dw[t], DTYPE_F32, SUM_OUT, SUM_IN),
                                     dy, x);
        assert_memory_equal(sums->dw[t], sums->dw[0], sizeof sums->dw[0]);
    }
    for (int i = 0; i < SUM_OUT * SUM_IN; i++) {
        double sum = 1, terms = 1; /* a rounding for each of them at most */
        for (int64_t n = 0; n < tokens; n++) {
            const double term = few_get(sums->dy, act, n * SUM_OUT + i / SUM_IN) *
                                few_get(sums->x, act, n * SUM_IN + i % SUM_IN);
            sum += term;
            terms += fabs(term);
        }
        assert_true(fabs((double)sums->dw[0][i] - sum) <= (double)(tokens + 1) * 0x1p-24 * terms);
    }
}

static void test_long_sums(void **state)
{
    (void)state;
    const enum cpu_wide chosen = cpu_device_of(devices[0])->wide;
    struct sums *sums = calloc(1, sizeof *sums);
    assert_non_null(sums);
    for (int t = 0; t < THREADS; t++) {
        cpu_device_of(devices[t])->wide = CPU_WIDE_OFF;
    }
    for (int64_t tokens = LONG_SUM - 1; tokens <= LONG_SUM; tokens++) {
        sums_check(sums, DTYPE_F32, tokens);
        sums_check(sums, DTYPE_BF16, tokens);
    }
    for (int t = 0; t < THREADS; t++) {
        cpu_device_of(devices[t])->wide = chosen;
    }
    free(sums);
}

/* A layer's sums over more inputs than oneDNN sums by one thread with AMX (gemm_onednn.c). */
enum { LAYER_ROWS = 301, LAYER_OUT = 400, LAYER_IN = 2100 };

struct layer {
    uint16_t x[LAYER_ROWS * LAYER_IN], w[LAYER_OUT * LAYER_IN];
    uint16_t y[THREADS][LAYER_ROWS * LAYER_OUT], before[LAYER_ROWS * LAYER_OUT], alone[LAYER_OUT];
};

/* Rows of y, which rounds once, and the same rows alone. */
static void layer_rows(struct layer *p, bool add)
{
    static const int64_t some[] = {0, 1, 150, LAYER_ROWS - 1};
    for (size_t i = 0; i < sizeof some / sizeof some[0]; i++) {
        const int64_t row = some[i];
        const uint16_t *y = p->y[0] + row * LAYER_OUT;
        struct tensor alone = tensor_2d(p->alone, DTYPE_BF16, 1, LAYER_OUT);
        memcpy(p->alone, p->before + row * LAYER_OUT, sizeof p->alone);
        device_ops(devices[1])
            ->linear_forward(devices[1], alone,
                             tensor_2d(p->x + row * LAYER_IN, DTYPE_BF16, 1, LAYER_IN),
                             tensor_2d(p->w, DTYPE_BF16, LAYER_OUT, LAYER_IN), add);
        assert_memory_equal(p->alone, y, sizeof p->alone);
        for (int64_t o = 0; o < LAYER_OUT; o += 37) {
            double sum = add ? few_get(p->before, DTYPE_BF16, row * LAYER_OUT + o) : 0;
            double terms = fabs(sum);
            for (int64_t k = 0; k < LAYER_IN; k++) {
                const double term = few_get(p->x, DTYPE_BF16, row * LAYER_IN + k) *
                                    few_get(p->w, DTYPE_BF16, o * LAYER_IN + k);
                sum += term;
                terms += fabs(term);
            }
            assert_true(fabs(few_get(y, DTYPE_BF16, o) - sum) <=
                        0x1p-8 * fabs(sum) + LAYER_IN * 0x1p-24 * terms);
        }
    }
}

static void test_wide_layer(void **state)
{
    (void)state;
    const enum cpu_wide chosen = cpu_device_of(devices[0])->wide;
    struct layer *p = calloc(1, sizeof *p);
    assert_non_null(p);
    few_fill(p->x, DTYPE_BF16, LAYER_ROWS * LAYER_IN, 5);
    few_fill(p->w, DTYPE_BF16, LAYER_OUT * LAYER_IN, 6);
    few_fill(p->before, DTYPE_BF16, LAYER_ROWS * LAYER_OUT, 7);
    for (int t = 0; t < THREADS; t++) {
        cpu_device_of(devices[t])->wide = CPU_WIDE_OFF;
    }
    for (int add = 0; add < 2; add++) {
        for (int t = 0; t < THREADS; t++) {
            memcpy(p->y[t], p->before, sizeof p->before);
            device_ops(devices[t])
                ->linear_forward(devices[t], tensor_2d(p->y[t], DTYPE_BF16, LAYER_ROWS, LAYER_OUT),
                                 tensor_2d(p->x, DTYPE_BF16, LAYER_ROWS, LAYER_IN),
                                 tensor_2d(p->w, DTYPE_BF16, LAYER_OUT, LAYER_IN), add != 0);
            assert_memory_equal(p->y[t], p->y[0], sizeof p->y[0]);
        }
        layer_rows(p, add != 0);
    }
    for (int t = 0; t < THREADS; t++) {
        cpu_device_of(devices[t])->wide = chosen;
    }
    free(p);
}

static int open_devices(void **state)
{
    (void)state;
    for (int t = 0; t < THREADS; t++) {
        const struct device_options options = {.name = "cpu", .threads = t + 1};
        if (device_open(&devices[t], &options) != STATUS_OK) {
            return 1;
        }
    }
    return 0;
}

static int close_devices(void **state)
{
    (void)state;
    for (int t = 0; t < THREADS; t++) {
        device_close(devices[t]);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_onednn),      cmocka_unit_test(test_own),
        cmocka_unit_test(test_quick_check), cmocka_unit_test(test_finds),
        cmocka_unit_test(test_few_rows),    cmocka_unit_test(test_long_sums),
        cmocka_unit_test(test_wide_layer),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
