/* AdamW against the formula in torch's order of operations, in double; moments in bf16 against
 * those in f32. */
#include "ops_check.h"

/* The op's arguments for one piece. */
struct setting {
    float lr, beta1, beta2, eps, weight_decay, grad_scale;
    int64_t step;
    struct moments moments;
};

static void adamw(struct check *c, float *param, void *m, void *v, void *out, const float *grad,
                  int64_t count, struct setting s)
{
    const struct adamw_piece piece = {.param = param,
                                      .m = m,
                                      .v = v,
                                      .out = out,
                                      .grad = grad,
                                      .count = count,
                                      .weight_decay = s.weight_decay,
                                      .key = s.moments.key,
                                      .first = s.moments.first};
    const struct adamw args = {.lr = s.lr,
                               .beta1 = s.beta1,
                               .beta2 = s.beta2,
                               .eps = s.eps,
                               .grad_scale = s.grad_scale,
                               .step = s.step,
                               .moments = s.moments.dtype};
    c->ops->adamw(c->device, &piece, 1, args);
}

/* The op works in parts of 4096. The constants are chosen so that the place of each one shows. */
static const struct variant {
    int64_t count;
    struct setting args;
} variants[] = {
    {0, {1e-3F, 0.9F, 0.95F, 1e-8F, 0.1F, 1.0F, 1, {0}}},
    {1, {0.05F, 0.9F, 0.999F, 1e-8F, 0.0F, 1.0F, 1, {0}}},
    {7, {0.05F, 0.9F, 0.95F, 1e-8F, 0.5F, 1.0F, 1, {0}}},
    {33, {0.05F, 0.9F, 0.95F, 0.3F, 0.5F, 1.0F, 2, {0}}},
    {4097, {0.5F, 0.8F, 0.99F, 1e-3F, 0.7F, 0.125F, 10, {0}}},
    {9001, {3e-4F, 0.9F, 0.95F, 1e-8F, 0.1F, 0.37F, 100000, {0}}},
};
enum { VARIANTS = sizeof variants / sizeof variants[0], STEPS = 3 };

struct state {
    struct tensor param, m, v, grad;
};

/* param *= 1 - lr wd; m, v; param -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps) */
static void reference_step(double *param, double *m, double *v, double grad, struct setting a)
{
    const double g = grad * (double)a.grad_scale, beta1 = (double)a.beta1, beta2 = (double)a.beta2;
    const double step_size = (double)a.lr / (1 - pow(beta1, (double)a.step));
    *param *= 1 - (double)a.lr * (double)a.weight_decay;
    *m = beta1 * *m + (1 - beta1) * g;
    *v = beta2 * *v + (1 - beta2) * g * g;
    const double denominator = sqrt(*v) / sqrt(1 - pow(beta2, (double)a.step)) + (double)a.eps;
    *param -= step_size * *m / denominator;
}

/* One step from the state the op itself reached: m and v take four roundings, param about eight. */
static void check_step(struct check *c, const struct state *s, void *out, struct setting args)
{
    const int64_t count = tensor_count(&s->param);
    double *param = check_values(c, s->param), *m = check_values(c, s->m),
           *v = check_values(c, s->v);
    const double *grad = check_values(c, s->grad);
    for (int64_t i = 0; i < count; i++) {
        reference_step(&param[i], &m[i], &v[i], grad[i], args);
    }
    adamw(c, s->param.data, s->m.data, s->v.data, out, s->grad.data, count, args);
    check_close(c, "v", s->v, v, 4 * CHECK_U);
    c->floor = 0.1; /* of the terms: they have signs, and one element alone may cancel */
    check_close(c, "m", s->m, m, 4 * CHECK_U);
    check_close(c, "param", s->param, param, 8 * CHECK_U);
    c->floor = 0;
}

static struct state make_state(struct check *c, int64_t count)
{
    struct state s = {.param = check_random(c, "param", DTYPE_F32, count, 1, 0.5),
                      .m = check_tensor(c, "m", DTYPE_F32, count, 1),
                      .v = check_tensor(c, "v", DTYPE_F32, count, 1),
                      .grad = check_random(c, "grad", DTYPE_F32, count, 1, 1)};
    memset(s.m.data, 0, tensor_bytes(&s.m));
    memset(s.v.data, 0, tensor_bytes(&s.v));
    for (int64_t i = 3; i < count; i += 10) {
        check_set(&s.grad, i, 0); /* an expert's weight that saw no token */
    }
    return s;
}

static void run_adamw(struct check *c, const void *arg)
{
    const struct variant *variant = arg;
    struct setting args = variant->args;
    const int64_t count = variant->count;
    check_name(c, "adamw count=%lld lr=%g step=%lld", (long long)count, (double)args.lr,
               (long long)args.step);
    struct state s = make_state(c, count);
    for (int step = 0; step < STEPS; step++) {
        struct tensor out = check_tensor(c, "out", DTYPE_BF16, count, 1),
                      nearest = check_tensor(c, "nearest", DTYPE_BF16, count, 1);
        check_step(c, &s, step == 1 ? NULL : out.data, args);
        for (int64_t i = 0; i < count && step != 1; i++) {
            check_set(&nearest, i, check_get(&s.param, i));
        }
        check_exact(c, "out", out, nearest, "not param in bf16, or written without being asked");
        args.step++;
        const uint64_t key = rng_key(c->seed, "next gradient");
        for (int64_t i = 0; i < count; i += 2) {
            check_set(&s.grad, i, 3 * rng_normal(key, (uint64_t)(step * count + i)));
        }
    }
}

/* A shard's elements come out as in the whole: sharding the optimizer changes no bit. */
static void run_shards(struct check *c, const void *arg)
{
    const struct variant *variant = arg;
    const int64_t count = variant->count;
    check_name(c, "adamw in shards count=%lld", (long long)count);
    const struct state whole = make_state(c, count), start = make_state(c, count);
    adamw(c, whole.param.data, whole.m.data, whole.v.data, NULL, whole.grad.data, count,
          variant->args);
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(count, i);
        const struct tensor param = check_copy(c, "p", tensor_rows(&start.param, p.first, p.count)),
                            m = check_copy(c, "m", tensor_rows(&start.m, p.first, p.count)),
                            v = check_copy(c, "v", tensor_rows(&start.v, p.first, p.count));
        adamw(c, param.data, m.data, v.data, NULL, tensor_rows(&start.grad, p.first, p.count).data,
              p.count, variant->args);
        check_exact(c, "param", param, tensor_rows(&whole.param, p.first, p.count), "shard");
        check_exact(c, "m", m, tensor_rows(&whole.m, p.first, p.count), "shard");
        check_exact(c, "v", v, tensor_rows(&whole.v, p.first, p.count), "shard");
    }
}

/* By hand: first step, so m / sqrt(v) is the gradient's sign: 1 (1 - 0.1 * 0.5) - 0.1 sign. */
static void run_known(struct check *c, const void *arg)
{
    (void)arg;
    const struct setting args = {0.1F, 0.9F, 0.99F, 1e-12F, 0.5F, -2.0F, 1, {0}};
    float param[3] = {1, 1, 1}, m[3] = {0}, v[3] = {0};
    const float grad[3] = {0.25F, -4, 0};
    adamw(c, param, m, v, NULL, grad, 3, args);
    const double expected[3] = {1.05, 0.85, 0.95}; /* grad_scale turns the signs */
    for (int i = 0; i < 3; i++) {
        assert_true(fabs((double)param[i] - expected[i]) < 1e-6);
    }
    assert_true(fabs((double)m[1] - 0.8) < 1e-6 && fabs((double)v[1] - 0.64) < 1e-6);
}

/* Moments in bf16: the same step as with these moments in f32, and each new moment is rounded by
 * its own word of the keyed noise, whatever the share it is in. */
static void run_bf16(struct check *c, const void *arg)
{
    const struct variant *variant = arg;
    const int64_t count = variant->count;
    check_name(c, "adamw in bf16 count=%lld", (long long)count);
    const struct state wide = make_state(c, count);
    struct tensor param = check_copy(c, "param", wide.param),
                  m = check_tensor(c, "bf16 m", DTYPE_BF16, count, 1),
                  v = check_tensor(c, "bf16 v", DTYPE_BF16, count, 1);
    struct setting args = variant->args;
    memset(m.data, 0, tensor_bytes(&m));
    memset(v.data, 0, tensor_bytes(&v));
    uint16_t *m_bits = m.data, *v_bits = v.data;
    for (int step = 0; step < STEPS; step++, args.step++) {
        args.moments = (struct moments){.dtype = DTYPE_F32};
        adamw(c, wide.param.data, wide.m.data, wide.v.data, NULL, wide.grad.data, count, args);
        for (int i = 0; i < CHECK_PARTS - 1; i++) { /* three shares of odd lengths */
            const int64_t cut[] = {0, count / 3, count / 3 + count / 5, count}, first = cut[i];
            args.moments = (struct moments){.dtype = DTYPE_BF16,
                                            .key = c->seed + (uint64_t)step,
                                            .first = (uint64_t)(first + 11)};
            adamw(c, (float *)param.data + first, m_bits + first, v_bits + first, NULL,
                  (float *)wide.grad.data + first, cut[i + 1] - first, args);
        }
        check_exact(c, "param", param, wide.param, "not computed in f32");
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits[4];
            rng_bits(args.moments.key, (uint64_t)(i + 11) / 4, bits);
            const uint32_t noise = bits[(i + 11) % 4];
            float *wide_m = wide.m.data, *wide_v = wide.v.data;
            assert_int_equal(m_bits[i], bf16_from_float_noise(wide_m[i], (uint16_t)noise));
            assert_int_equal(v_bits[i], bf16_from_float_noise(wide_v[i], (uint16_t)(noise >> 16)));
            wide_m[i] = bf16_to_float(m_bits[i]);
            wide_v[i] = bf16_to_float(v_bits[i]);
        }
    }
}

/* Right on average, never further off than the neighbour, exact where bf16 is. */
static void test_noise(void **state)
{
    (void)state;
    static const float values[] = {1.0F,     -1.0F, 1.00390625F, 1.001F, -1.007F,
                                   3.1e-39F, 0.0F,  2.5e30F,     -0.3F,  1.99999F};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        double sum = 0;
        const double value = (double)values[i];
        for (uint32_t noise = 0; noise < 65536; noise++) {
            const double rounded =
                (double)bf16_to_float(bf16_from_float_noise(values[i], (uint16_t)noise));
            assert_true(fabs(rounded - value) <= 0x1p-7 * fabs(value) + 0x1p-133);
            sum += rounded;
        }
        assert_true(fabs(sum / 65536 - value) <= 1e-9 * fabs(value) + 1e-44);
    }
    assert_int_equal(bf16_from_float_noise(INFINITY, 65535), 0x7f80);
    assert_true(isnan(bf16_to_float(bf16_from_float_noise(NAN, 65535))));
}

/* Gradients shrink a hundredfold; beta2 = 0.999: to nearest, the second moment would stay where it
 * was, since a thousandth is less than half of bf16's unit. Ours follows the f32 one. */
static void run_fall(struct check *c, const void *arg)
{
    (void)arg;
    enum { COUNT = 512, FALL = 3000 };
    struct setting args = {1e-3F, 0.9F, 0.999F, 1e-8F, 0, 1, 1, {0}};
    float param[2][COUNT] = {{0}}, m[COUNT] = {0}, v[COUNT] = {0}, grad[COUNT];
    uint16_t small_m[COUNT] = {0}, small_v[COUNT] = {0}, nearest = 0;
    check_name(c, "adamw in bf16, falling gradients");
    for (; args.step <= FALL; args.step++) {
        const float size = args.step <= FALL / 3 ? 1.0F : 0.01F;
        for (int i = 0; i < COUNT; i++) {
            grad[i] = size * (i % 2 == 0 ? 1.0F : -1.0F);
        }
        const float before = bf16_to_float(nearest);
        nearest = bf16_from_float(before + 0.001F * (size * size - before));
        args.moments = (struct moments){.dtype = DTYPE_F32};
        adamw(c, param[0], m, v, NULL, grad, COUNT, args);
        args.moments = (struct moments){DTYPE_BF16, c->seed * 10000 + (uint64_t)args.step, 0};
        adamw(c, param[1], small_m, small_v, NULL, grad, COUNT, args);
    }
    double sum = 0, far = 0;
    for (int i = 0; i < COUNT; i++) {
        sum += (double)bf16_to_float(small_v[i]) / (double)v[i] / COUNT;
        far = fmax(far, (double)fabsf(param[1][i] / param[0][i] - 1.0F));
    }
    assert_true(bf16_to_float(nearest) > 2 * v[0]); /* what we avoid */
    if (!(fabs(sum - 1) < 0.02 && far < 0.05)) {
        fail_msg("second moment %.4g of f32's, weights up to %.4g off", sum, far);
    }
}

/* What stays has itself as average, to the last bit, at every decay that a config accepts; what
 * moved once is followed at the rate that was asked for. */
static void run_average(struct check *c, const void *arg)
{
    (void)arg;
    static const double decays[] = {1e-9, 0.3, 0.9, 0.9999, 0.999999, 0.99999999};
    enum { COUNT = 301, TIMES = 2000 };
    float x[COUNT], ema[COUNT];
    for (size_t d = 0; d < sizeof decays / sizeof decays[0]; d++) {
        for (int i = 0; i < COUNT; i++) {
            x[i] = ema[i] = (float)rng_normal(c->seed, (uint64_t)i);
        }
        for (int time = 0; time < TIMES; time++) {
            c->ops->ema(c->device, ema, x, COUNT, decays[d]);
        }
        if (memcmp(ema, x, sizeof x) != 0) {
            fail_msg("decay %.9g: the average of a constant moved from %.9g to %.9g", decays[d],
                     (double)x[0], (double)ema[0]);
        }
    }
    memset(ema, 0, sizeof ema);
    for (int time = 0; time < TIMES; time++) {
        c->ops->ema(c->device, ema, x, COUNT, 0.999);
    }
    for (int i = 0; i < COUNT; i++) {
        const double expected = (double)x[i] * (1 - pow(0.999, TIMES));
        assert_true(fabs((double)ema[i] - expected) <= 1e-3 * fabs(expected));
    }
}

/* Close to 1 the rate is right too: how far the average of e comes towards 5 e, over all elements
 * (each step rounds, by up to a tenth of what it moves). */
static void run_rate(struct check *c, const void *arg)
{
    (void)arg;
    enum { COUNT = 301, TIMES = 2000 };
    const double decay = 0.9999999;
    float x[COUNT], ema[COUNT], start[COUNT];
    double moved = 0;
    for (int i = 0; i < COUNT; i++) {
        start[i] = ema[i] = (float)rng_normal(c->seed, (uint64_t)i);
        x[i] = 5 * start[i];
    }
    for (int time = 0; time < TIMES; time++) {
        c->ops->ema(c->device, ema, x, COUNT, decay);
    }
    for (int i = 0; i < COUNT; i++) {
        const double whole = (double)(x[i] - start[i]) * (1 - pow(decay, TIMES));
        moved += (double)(ema[i] - start[i]) / whole / COUNT;
    }
    if (!(fabs(moved - 1) < 0.02)) {
        fail_msg("the average moved %.4g times as far as it should", moved);
    }
}

static void test_average(void **state)
{
    check_run(*state, run_average, NULL, 0);
    check_run(*state, run_rate, NULL, 0);
}

static void test_adamw(void **state)
{
    for (int i = 0; i < VARIANTS; i++) {
        check_run(*state, run_adamw, &variants[i], 0);
        check_run(*state, run_shards, &variants[i], 0);
        check_run(*state, run_bf16, &variants[i], 0);
    }
}

static void test_known(void **state)
{
    check_run(*state, run_known, NULL, 0);
    check_run(*state, run_fall, NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_average),
        cmocka_unit_test(test_known),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
