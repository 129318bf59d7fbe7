/* Muon: momentum and update against their formulas, Newton-Schulz against its closed form on
 * singular values and against orthogonality, all three stages against torch.optim.Muon; the running
 * average. */
#include "ops_check.h"

#include "unit/muon_numbers.h"

/* --- Newton-Schulz --- */

static const struct shape {
    int64_t rows, cols;
} shapes[] = {{1, 1}, {1, 17}, {17, 1}, {5, 5}, {16, 48}, {33, 20}, {64, 7}, {70, 130}, {128, 128}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* Where five steps take a singular value. */
static double step_value(double s)
{
    for (int i = 0; i < 5; i++) {
        s = 3.4445 * s - 4.7750 * pow(s, 3) + 2.0315 * pow(s, 5);
    }
    return s;
}

/* x = (I - 2 u u^T) diag(values) (I - 2 v v^T), u and v of length 1: singular values known. */
static void compose(double *x, const double *values, struct shape shape, uint64_t key)
{
    const int64_t rows = shape.rows, cols = shape.cols, side = rows < cols ? rows : cols;
    double *u = calloc((size_t)(rows + cols), sizeof *u), *v = u + rows, uu = 0, vv = 0;
    assert_non_null(u);
    for (int64_t i = 0; i < rows + cols; i++) {
        u[i] = rng_normal(key, (uint64_t)i);
        *(i < rows ? &uu : &vv) += u[i] * u[i];
    }
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < cols; j++) {
            double sum = 0;
            for (int64_t k = 0; k < side; k++) {
                sum += ((i == k ? 1 : 0) - 2 * u[i] * u[k] / uu) * values[k] *
                       ((j == k ? 1 : 0) - 2 * v[j] * v[k] / vv);
            }
            x[i * cols + j] = sum;
        }
    }
    free(u);
}

static void run_orthogonalize(struct check *c, const void *arg)
{
    const struct shape shape = *(const struct shape *)arg;
    const int64_t side = shape.rows < shape.cols ? shape.rows : shape.cols,
                  count = shape.rows * shape.cols;
    check_name(c, "muon_orthogonalize %lld x %lld", (long long)shape.rows, (long long)shape.cols);
    struct tensor x = check_tensor(c, "x", DTYPE_F32, shape.rows, shape.cols),
                  scratch = check_tensor(c, "scratch", DTYPE_F32, count + 2 * side * side, 1);
    double *values = check_doubles(c, side), *expected = check_doubles(c, count), norm = 0;
    const uint64_t key = rng_key(c->seed, "muon");
    for (int64_t i = 0; i < side; i++) { /* a wide spread; the norm of x is nothing special */
        values[i] = 7 * exp(-3 * rng_uniform(key, 1000000 + (uint64_t)i));
        norm += values[i] * values[i];
    }
    compose(expected, values, shape, key);
    for (int64_t i = 0; i < count; i++) {
        check_set(&x, i, expected[i]);
    }
    for (int64_t i = 0; i < side; i++) {
        values[i] = step_value(values[i] / sqrt(norm));
        assert_true(values[i] > 0.6 && values[i] < 1.25); /* nearly orthogonal */
    }
    compose(expected, values, shape, key);
    c->ops->muon_orthogonalize(c->device, x, scratch.data);
    /* Errors of the smallest singular values grow by up to 3.4445^5 = 485. */
    check_close(c, "x", x, expected, 485 * 2 * CHECK_U);
}

static void run_zero(struct check *c, const void *arg)
{
    (void)arg;
    float x[6] = {0}, scratch[6 + 8];
    check_name(c, "muon_orthogonalize of zeros");
    c->ops->muon_orthogonalize(c->device, tensor_2d(x, DTYPE_F32, 3, 2), scratch);
    for (int i = 0; i < 6; i++) {
        assert_true(x[i] == 0.0F); /* an expert that never saw a token */
    }
}

static void test_orthogonalize(void **state)
{
    for (int i = 0; i < SHAPES; i++) {
        check_run(*state, run_orthogonalize, &shapes[i], CHECK_KERNELS);
    }
    check_run(*state, run_zero, NULL, 0);
}

/* --- momentum and update --- */

static const int64_t counts[] = {0, 1, 33, 4097, 9001};
enum { COUNTS = sizeof counts / sizeof counts[0] };
static const struct muon ARGS = {.lr = 0.03F,
                                 .momentum = 0.9F,
                                 .weight_decay = 0.7F,
                                 .grad_scale = 0.37F,
                                 .scale = 1.7F,
                                 .moments = {.dtype = DTYPE_F32, .key = 77, .first = 5}};

static void run_momentum(struct check *c, const void *arg)
{
    const int64_t count = *(const int64_t *)arg;
    check_name(c, "muon_momentum count=%lld", (long long)count);
    struct tensor grad = check_random(c, "grad", DTYPE_F32, count, 1, 1),
                  m = check_random(c, "m", c->dtype, count, 1, 0.5),
                  wide = check_tensor(c, "wide", DTYPE_F32, count, 1),
                  again = check_copy(c, "again", grad);
    double *new_m = check_doubles(c, count), *new_grad = check_doubles(c, count);
    struct muon args = ARGS;
    for (int64_t i = 0; i < count; i++) {
        const double g = (double)args.grad_scale * check_get(&grad, i), mu = (double)args.momentum;
        check_set(&wide, i, check_get(&m, i));
        new_m[i] = mu * check_get(&m, i) + (1 - mu) * g;
        new_grad[i] = (1 - mu) * g + mu * new_m[i];
    }
    c->floor = 0.1;
    c->ops->muon_momentum(c->device, again.data, wide.data, count, args);
    check_close(c, "m", wide, new_m, 6 * CHECK_U);
    check_close(c, "grad", again, new_grad, 8 * CHECK_U);
    args.moments.dtype = c->dtype;
    c->ops->muon_momentum(c->device, grad.data, m.data, count, args);
    check_exact(c, "grad", grad, again, "depends on how the momentum is kept");
    for (int64_t i = 0; i < count && c->dtype == DTYPE_BF16; i++) {
        uint32_t bits[4];
        const uint64_t at = args.moments.first + (uint64_t)i;
        rng_bits(args.moments.key, at / 4, bits);
        const uint16_t expected =
            bf16_from_float_noise(((const float *)wide.data)[i], (uint16_t)bits[at % 4]);
        assert_int_equal(((const uint16_t *)m.data)[i], expected);
    }
}

static void run_update(struct check *c, const void *arg)
{
    const int64_t count = *(const int64_t *)arg;
    check_name(c, "muon_update count=%lld", (long long)count);
    struct tensor param = check_random(c, "param", DTYPE_F32, count, 1, 0.5),
                  plain = check_copy(c, "plain", param),
                  change = check_random(c, "change", DTYPE_F32, count, 1, 1),
                  out = check_tensor(c, "out", DTYPE_BF16, count, 1),
                  nearest = check_tensor(c, "nearest", DTYPE_BF16, count, 1);
    double *expected = check_doubles(c, count);
    for (int64_t i = 0; i < count; i++) {
        const double lr = (double)ARGS.lr;
        expected[i] = check_get(&param, i) * (1 - lr * (double)ARGS.weight_decay) -
                      lr * (double)ARGS.scale * check_get(&change, i);
    }
    c->ops->muon_update(c->device, param.data, out.data, change.data, count, ARGS);
    c->ops->muon_update(c->device, plain.data, NULL, change.data, count, ARGS);
    c->floor = 0.1;
    check_close(c, "param", param, expected, 4 * CHECK_U);
    check_exact(c, "plain", plain, param, "depends on out");
    for (int64_t i = 0; i < count; i++) {
        check_set(&nearest, i, check_get(&param, i));
    }
    check_exact(c, "out", out, nearest, "not param in bf16");
}

static void test_momentum_and_update(void **state)
{
    for (int i = 0; i < COUNTS; i++) {
        check_run(*state, run_momentum, &counts[i], CHECK_BF16);
        check_run(*state, run_update, &counts[i], 0);
    }
}

/* --- torch --- */

struct numbers {
    struct shape shape;
    const float *start, *grads, *weights;
};

static void run_torch(struct check *c, const void *arg)
{
    const struct numbers *n = arg;
    const int64_t rows = n->shape.rows, cols = n->shape.cols, count = rows * cols;
    float scratch[256], m[64] = {0};
    check_name(c, "torch.optim.Muon %lld x %lld", (long long)rows, (long long)cols);
    struct tensor param = check_tensor(c, "param", DTYPE_F32, rows, cols),
                  x = check_tensor(c, "x", DTYPE_F32, rows, cols);
    memcpy(param.data, n->start, tensor_bytes(&param));
    struct muon args = {.lr = MUON_LR,
                        .momentum = MUON_MOMENTUM,
                        .weight_decay = MUON_DECAY,
                        .grad_scale = 1,
                        .scale = 0.2F * sqrtf((float)(rows > cols ? rows : cols))};
    for (int step = 0; step < MUON_STEPS; step++) {
        double *expected = check_doubles(c, count);
        memcpy(x.data, n->grads + step * count, tensor_bytes(&x));
        c->ops->muon_momentum(c->device, x.data, m, count, args);
        c->ops->muon_orthogonalize(c->device, x, scratch);
        c->ops->muon_update(c->device, param.data, NULL, x.data, count, args);
        for (int64_t i = 0; i < count; i++) {
            expected[i] = (double)n->weights[step * count + i];
        }
        check_close(c, "param", param, expected, 1e-6);
    }
}

static void test_torch(void **state)
{
    const struct numbers cases[] = {
        {{3, 5}, muon_wide_start, muon_wide_grads, muon_wide_weights},
        {{6, 4}, muon_tall_start, muon_tall_grads, muon_tall_weights},
        {{4, 4}, muon_square_start, muon_square_grads, muon_square_weights},
    };
    for (int i = 0; i < 3; i++) {
        check_run(*state, run_torch, &cases[i], CHECK_KERNELS);
    }
}

/* --- running average --- */

static void run_ema(struct check *c, const void *arg)
{
    const int64_t count = *(const int64_t *)arg;
    check_name(c, "ema count=%lld", (long long)count);
    struct tensor ema = check_random(c, "ema", DTYPE_F32, count, 1, 1),
                  x = check_random(c, "x", DTYPE_F32, count, 1, 1);
    double *expected = check_doubles(c, count);
    for (int64_t i = 0; i < count; i++) {
        expected[i] = 0.99 * check_get(&ema, i) + 0.01 * check_get(&x, i);
    }
    c->ops->ema(c->device, ema.data, x.data, count, 0.99);
    check_close(c, "ema", ema, expected, 4 * CHECK_U);
}

static void test_ema(void **state)
{
    for (int i = 0; i < COUNTS; i++) {
        check_run(*state, run_ema, &counts[i], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orthogonalize),
        cmocka_unit_test(test_momentum_and_update),
        cmocka_unit_test(test_torch),
        cmocka_unit_test(test_ema),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
