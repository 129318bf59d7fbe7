/* Norm, embedding and SwiGLU. */
#include "ops_check.h"

struct shape {
    int64_t rows, width;
};

/* Odd widths; more rows than the 64 of norm_backward's blocks; wider than swiglu's parts of 512. */
static const struct shape shapes[] = {{0, 8},   {1, 1},    {1, 130}, {7, 5},
                                      {65, 33}, {130, 17}, {3, 1025}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void run_all(void **state, void (*run)(struct check *, const void *))
{
    for (int i = 0; i < SHAPES; i++) {
        check_run(*state, run, &shapes[i], CHECK_BF16);
    }
}

static void name_case(struct check *c, const char *op, const struct shape *s)
{
    check_name(c, "%s rows=%lld width=%lld", op, (long long)s->rows, (long long)s->width);
}

/* Sums of `width` products and a few more roundings. */
static double sum_error(int64_t width)
{
    return CHECK_U * (6 + sqrt((double)width));
}

/* --- norm --- */

static const float EPS = 1e-2F; /* large: its place in the formula must show */

static double inverse_deviation(const double *row, int64_t width)
{
    double squares = 0;
    for (int64_t i = 0; i < width; i++) {
        squares += row[i] * row[i];
    }
    return 1.0 / sqrt(squares / (double)width + (double)EPS);
}

/* Given rstd, y is two f32 products with a cast in between, and sum one f32 sum: exact. */
static void check_norm_rows(struct check *c, struct tensor y, const double *sum,
                            const struct tensor *rstd, const double *w)
{
    const struct tensor expected = check_tensor(c, "y expected", c->dtype, y.dim[0], y.dim[1]);
    struct tensor out = expected;
    for (int64_t i = 0; i < tensor_count(&y); i++) {
        const float scale = (float)check_get(rstd, i / y.dim[1]);
        const float middle = (float)sum[i] * scale;
        const float cast = (float)check_round((double)middle, c->dtype);
        check_set(&out, i, (double)(cast * (float)w[i % y.dim[1]]));
    }
    check_exact(c, "y", y, expected, "not w * cast(sum * rstd)");
}

static void run_norm_forward(struct check *c, const void *args)
{
    const struct shape *s = args;
    const struct tensor x = check_random(c, "x", c->dtype, s->rows, s->width, 1),
                        delta = check_random(c, "delta", c->dtype, s->rows, s->width, 2),
                        w = check_random(c, "w", c->dtype, 1, s->width, 1), none = {.data = NULL};
    double *rstd_expected = check_doubles(c, s->rows);
    for (int fused = 0; fused < 2; fused++) {
        name_case(c, fused ? "norm_forward of x + delta" : "norm_forward", s);
        const struct tensor y = check_tensor(c, "y", c->dtype, s->rows, s->width),
                            sum = check_tensor(c, "sum", c->dtype, s->rows, s->width),
                            rstd = check_tensor(c, "rstd", DTYPE_F32, s->rows, 1);
        double *in = check_values(c, x), *untouched = check_values(c, sum);
        const double *d = check_values(c, delta), *weight = check_values(c, w);
        for (int64_t i = 0; i < s->rows * s->width && fused; i++) {
            in[i] = check_round((double)((float)in[i] + (float)d[i]), c->dtype);
        }
        for (int64_t n = 0; n < s->rows; n++) {
            rstd_expected[n] = inverse_deviation(in + n * s->width, s->width);
        }
        c->ops->norm_forward(c->device, y, sum, rstd.data, x, fused ? delta : none, w, EPS);
        check_close(c, "sum", sum, fused ? in : untouched, 0); /* acc 0: one exact store */
        check_close(c, "rstd", rstd, rstd_expected, sum_error(s->width));
        check_norm_rows(c, y, in, &rstd, weight);
        const struct tensor other = check_tensor(c, "y", c->dtype, s->rows, s->width),
                            as_sum = check_tensor(c, "sum", c->dtype, s->rows, s->width),
                            as_rstd = check_tensor(c, "rstd", DTYPE_F32, s->rows, 1);
        const bool vectors = check_set_vectors(c, false);
        c->ops->norm_forward(c->device, other, as_sum, as_rstd.data, x, fused ? delta : none, w,
                             EPS);
        check_set_vectors(c, vectors);
        check_as_vectors(c, "y", other, y);
        check_as_vectors(c, "sum", as_sum, sum);
        check_as_vectors(c, "rstd", as_rstd, rstd);
        for (int i = 0; i < CHECK_PARTS; i++) {
            const struct check_part p = check_part(s->rows, i);
            const struct tensor part = check_tensor(c, "y", c->dtype, p.count, s->width),
                                total = check_tensor(c, "sum", c->dtype, p.count, s->width),
                                scale = check_tensor(c, "rstd", DTYPE_F32, p.count, 1);
            c->ops->norm_forward(c->device, part, total, scale.data,
                                 tensor_rows(&x, p.first, p.count),
                                 fused ? tensor_rows(&delta, p.first, p.count) : none, w, EPS);
            check_exact(c, "y", part, tensor_rows(&y, p.first, p.count), "depends on other rows");
            check_exact(c, "rstd", scale, tensor_rows(&rstd, p.first, p.count), "depends on rows");
        }
    }
}

struct norm {
    const struct shape *shape;
    double *dy, *x, *w;
};

/* <dy, w x rstd(x)>, no rounding in between */
static double norm_loss(const void *args)
{
    const struct norm *r = args;
    const int64_t width = r->shape->width;
    double sum = 0;
    for (int64_t n = 0; n < r->shape->rows; n++) {
        const double scale = inverse_deviation(r->x + n * width, width);
        for (int64_t i = 0; i < width; i++) {
            sum += r->dy[n * width + i] * r->w[i] * r->x[n * width + i] * scale;
        }
    }
    return sum;
}

/* dx += r (dy w - x r^2 mean(dy w x)), dw += dy x r */
static void norm_gradient(const struct norm *in, const double *rstd, double *dx, double *dw)
{
    const int64_t width = in->shape->width;
    for (int64_t n = 0; n < in->shape->rows; n++) {
        const double *dy = in->dy + n * width, *x = in->x + n * width, r = rstd[n];
        double mean = 0;
        for (int64_t i = 0; i < width; i++) {
            mean += dy[i] * in->w[i] * x[i] / (double)width;
        }
        for (int64_t i = 0; i < width; i++) {
            dx[n * width + i] += r * (dy[i] * in->w[i] - x[i] * r * r * mean);
            dw[i] += dy[i] * x[i] * r;
        }
    }
}

static void run_norm_backward(struct check *c, const void *args)
{
    const struct shape *s = args;
    name_case(c, "norm_backward", s);
    const struct tensor dy = check_random(c, "dy", c->dtype, s->rows, s->width, 1),
                        x = check_random(c, "x", c->dtype, s->rows, s->width, 1),
                        w = check_random(c, "w", c->dtype, 1, s->width, 1),
                        before = check_random(c, "dx", c->dtype, s->rows, s->width, 1),
                        dx = check_copy(c, "dx", before), other_dx = check_copy(c, "dx", before),
                        dw = check_random(c, "dw", DTYPE_F32, 1, s->width, 1),
                        other_dw = check_copy(c, "dw", dw);
    struct tensor rstd = check_tensor(c, "rstd", DTYPE_F32, s->rows, 1);
    const struct norm r = {s, check_values(c, dy), check_values(c, x), check_values(c, w)};
    double *dx_expected = check_values(c, dx), *dw_expected = check_values(c, dw),
           *dx_before = check_values(c, dx), *dw_before = check_values(c, dw);
    for (int64_t n = 0; n < s->rows; n++) {
        check_set(&rstd, n, inverse_deviation(r.x + n * s->width, s->width));
    }
    c->floor = 1; /* of the terms: few of them may cancel */
    norm_gradient(&r, check_values(c, rstd), dx_expected, dw_expected);
    c->ops->norm_backward(c->device, dx, dw, dy, x, rstd.data, w);
    check_close(c, "dx", dx, dx_expected, sum_error(s->width));
    check_close(c, "dw", dw, dw_expected, sum_error(s->rows));
    const bool vectors = check_set_vectors(c, false);
    c->ops->norm_backward(c->device, other_dx, other_dw, dy, x, rstd.data, w);
    check_set_vectors(c, vectors);
    check_as_vectors(c, "dx", other_dx, dx);
    check_as_vectors(c, "dw", other_dw, dw);
    check_gradient(c, "dx", dx, dx_before, r.x, norm_loss, &r, sum_error(s->width));
    check_gradient(c, "dw", dw, dw_before, r.w, norm_loss, &r, sum_error(s->rows));
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(s->rows, i);
        const struct tensor part = check_copy(c, "dx part", tensor_rows(&before, p.first, p.count)),
                            sink = check_random(c, "dw", DTYPE_F32, 1, s->width, 1);
        c->ops->norm_backward(c->device, part, sink, tensor_rows(&dy, p.first, p.count),
                              tensor_rows(&x, p.first, p.count),
                              tensor_rows(&rstd, p.first, p.count).data, w);
        check_exact(c, "dx", part, tensor_rows(&dx, p.first, p.count), "depends on other rows");
    }
}

/* --- embedding: copies and sums in token order, so exact --- */

static void run_embedding(struct check *c, const void *args)
{
    enum { VOCAB = 11 };
    const struct shape *s = args;
    const struct tensor w = check_random(c, "w", c->dtype, VOCAB, s->width, 1),
                        dy = check_random(c, "dy", c->dtype, s->rows, s->width, 1),
                        ids = check_tensor(c, "ids", DTYPE_I32, s->rows, 1),
                        y = check_tensor(c, "y", c->dtype, s->rows, s->width),
                        dw = check_random(c, "dw", DTYPE_F32, VOCAB, s->width, 1),
                        dw_expected = check_copy(c, "dw expected", dw);
    int32_t *id = ids.data;
    float *sum = dw_expected.data;
    for (int64_t n = 0; n < s->rows; n++) {
        id[n] = (int32_t)(rng_uniform(c->seed, (uint64_t)n) * VOCAB);
        for (int64_t i = 0; i < s->width; i++) {
            sum[id[n] * s->width + i] += (float)check_get(&dy, n * s->width + i);
        }
    }
    name_case(c, "embedding_forward", s);
    c->ops->embedding_forward(c->device, y, ids.data, w);
    for (int64_t n = 0; n < s->rows; n++) {
        check_exact(c, "y", tensor_rows(&y, n, 1), tensor_rows(&w, id[n], 1), "not its row of w");
    }
    name_case(c, "embedding_backward", s);
    c->ops->embedding_backward(c->device, dw, ids.data, dy);
    check_exact(c, "dw", dw, dw_expected, "not the f32 sum in token order");
    for (int64_t n = 0; n < s->rows; n++) { /* every other one is nobody's */
        for (int64_t i = 0; i < s->width && n % 2 == 0; i++) {
            sum[id[n] * s->width + i] += (float)check_get(&dy, n * s->width + i);
        }
        id[n] = n % 2 == 0 ? id[n] : -1;
    }
    c->ops->embedding_backward(c->device, dw, ids.data, dy);
    check_exact(c, "dw", dw, dw_expected, "rows without an id were added");
}

/* --- SwiGLU --- */

/* The fast exp is off by up to 3e-7 relative (vector_math.h), the rest are a few roundings. */
static const double SWIGLU_ERROR = 3e-7 + 8 * 0x1p-24;

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

struct swiglu {
    const struct shape *shape;
    double *gate_up, *dh;
};

static double swiglu(const double *row, int64_t i, int64_t width)
{
    return row[i] * sigmoid(row[i]) * row[width + i];
}

static double swiglu_loss(const void *args)
{
    const struct swiglu *r = args;
    const int64_t width = r->shape->width;
    double sum = 0;
    for (int64_t i = 0; i < r->shape->rows * width; i++) {
        sum += r->dh[i] * swiglu(r->gate_up + i / width * 2 * width, i % width, width);
    }
    return sum;
}

static void run_swiglu_forward(struct check *c, const void *args)
{
    const struct shape *s = args;
    name_case(c, "swiglu_forward", s);
    const struct tensor gate_up = check_random(c, "gate_up", c->dtype, s->rows, 2 * s->width, 3),
                        h = check_tensor(c, "h", c->dtype, s->rows, s->width);
    const double *in = check_values(c, gate_up);
    double *expected = check_doubles(c, s->rows * s->width);
    for (int64_t i = 0; i < s->rows * s->width; i++) {
        expected[i] = swiglu(in + i / s->width * 2 * s->width, i % s->width, s->width);
    }
    c->ops->swiglu_forward(c->device, h, gate_up);
    check_close(c, "h", h, expected, SWIGLU_ERROR);
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(s->rows, i);
        const struct tensor part = check_tensor(c, "h part", c->dtype, p.count, s->width);
        c->ops->swiglu_forward(c->device, part, tensor_rows(&gate_up, p.first, p.count));
        check_exact(c, "h", part, tensor_rows(&h, p.first, p.count), "depends on other rows");
    }
}

static void run_swiglu_backward(struct check *c, const void *args)
{
    const struct shape *s = args;
    const int64_t width = s->width;
    name_case(c, "swiglu_backward", s);
    const struct tensor gate_up = check_random(c, "gate_up", c->dtype, s->rows, 2 * width, 3),
                        dh = check_random(c, "dh", c->dtype, s->rows, width, 1),
                        grad = check_tensor(c, "dgate_up", c->dtype, s->rows, 2 * width),
                        h = check_tensor(c, "h", c->dtype, s->rows, width),
                        again = check_tensor(c, "h again", c->dtype, s->rows, width), none = {0};
    const struct swiglu r = {s, check_values(c, gate_up), check_values(c, dh)};
    double *expected = check_doubles(c, s->rows * 2 * width);
    for (int64_t i = 0; i < s->rows * width; i++) {
        const int64_t at = i / width * 2 * width + i % width;
        const double a = r.gate_up[at], up = r.gate_up[at + width], p = sigmoid(a);
        expected[at] = r.dh[i] * up * p * (1 + a * (1 - p));
        expected[at + width] = r.dh[i] * a * p;
    }
    c->ops->swiglu_forward(c->device, h, gate_up);
    c->ops->swiglu_backward(c->device, grad, again, dh, gate_up);
    check_exact(c, "h", again, h, "is not that of forward");
    check_close(c, "dgate_up", grad, expected, SWIGLU_ERROR);
    check_gradient(c, "dgate_up", grad, NULL, r.gate_up, swiglu_loss, &r, SWIGLU_ERROR);
    const struct tensor same = check_copy(c, "in place", gate_up);
    c->ops->swiglu_backward(c->device, same, none, dh, same);
    check_exact(c, "dgate_up", same, grad, "in place differs");
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(s->rows, i);
        const struct tensor part = check_tensor(c, "dgate_up part", c->dtype, p.count, 2 * width);
        c->ops->swiglu_backward(c->device, part, none, tensor_rows(&dh, p.first, p.count),
                                tensor_rows(&gate_up, p.first, p.count));
        check_exact(c, "dgate_up", part, tensor_rows(&grad, p.first, p.count), "depends on rows");
    }
}

/* Where exp overflows f32: the result is the limit, never NaN. Elsewhere the error is relative to
 * each element however small. */
static void run_swiglu_extremes(struct check *c, const void *args)
{
    (void)args;
    static const double gates[] = {-1e30, -1000, -90,  -88.5, -86.5, -60, -20, -1e-6, 0,
                                   1e-6,  20,    60.5, 87.5,  88.5,  90,  300, 1e30};
    enum { GATES = sizeof gates / sizeof gates[0] };
    check_name(c, "swiglu_forward of extremes");
    struct tensor gate_up = check_tensor(c, "gate_up", c->dtype, 1, 2 * GATES),
                  h = check_tensor(c, "h", c->dtype, 1, GATES);
    for (int i = 0; i < GATES; i++) {
        check_set(&gate_up, i, gates[i]);
        check_set(&gate_up, GATES + i, 1);
    }
    c->ops->swiglu_forward(c->device, h, gate_up);
    for (int i = 0; i < GATES; i++) {
        const double a = check_get(&gate_up, i), value = check_get(&h, i), exact = a * sigmoid(a);
        const double unit = c->dtype == DTYPE_BF16 ? 0x1p-8 : 0;
        const double slack = a < -86 ? 1e-7 : (SWIGLU_ERROR + unit) * fabs(exact); /* denormals */
        if (!(fabs(value - exact) <= slack)) {
            check_fail(c, "h", &h, i, value, exact, "extreme gate");
        }
    }
    check_set(&gate_up, 3, (double)NAN);
    c->ops->swiglu_forward(c->device, h, gate_up);
    assert_true(isnan(check_get(&h, 3)));
    assert_true(!isnan(check_get(&h, 4)));
}

/* --- tests --- */

static void test_norm_forward(void **state)
{
    run_all(state, run_norm_forward);
}

static void test_norm_backward(void **state)
{
    run_all(state, run_norm_backward);
}

static void test_embedding(void **state)
{
    run_all(state, run_embedding);
}

static void test_swiglu_forward(void **state)
{
    run_all(state, run_swiglu_forward);
}

static void test_swiglu_backward(void **state)
{
    run_all(state, run_swiglu_backward);
}

static void test_swiglu_extremes(void **state)
{
    check_run(*state, run_swiglu_extremes, NULL, CHECK_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm_forward),    cmocka_unit_test(test_norm_backward),
        cmocka_unit_test(test_embedding),       cmocka_unit_test(test_swiglu_forward),
        cmocka_unit_test(test_swiglu_backward), cmocka_unit_test(test_swiglu_extremes),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
