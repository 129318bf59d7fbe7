/* The head and its cross-entropy. */
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/head_wide.h"
#include "ops_check.h"

struct shape {
    int64_t rows, width, vocab;
    int labels; /* percent that count */
};

/* More rows than the op's chunk of 1024, whole and broken; blocks of 256 of the vocabulary. Where
 * it is 16 times the width (even, as the wide kernel wants it in bf16): head_wide, whose rows
 * go by chunks of 2048, in f32 of 1024, and sums by 128 of the vocabulary; of the last rows parts
 * that are no multiples of these, one row, no labels. */
static const struct shape shapes[] = {
    {0, 8, 5, 100},     {1, 1, 1, 100},    {1, 7, 33, 100},   {7, 19, 257, 0},
    {7, 19, 257, 70},   {65, 33, 515, 80}, {1024, 3, 16, 90}, {1030, 9, 37, 80},
    {2049, 5, 17, 100}, {7, 6, 515, 70},   {113, 2, 70, 80},  {2300, 4, 90, 90},
    {230, 32, 700, 80}, {300, 3, 70, 80},  {1, 10, 256, 100}, {33, 8, 128, 0},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };
static const float SCALE = 0.37F;
static const double POWER_SHIFT = 1.5;

struct head {
    const struct shape *shape;
    const int32_t *label;
    double *x, *w;
    bool wide; /* head_wide takes it */
};

/* Gradients are products of p - onehot, whose p is off by 3e-7 (vector_math.h) and a few roundings.
 * In bf16 p - onehot is stored in bf16: where p's error moves it to the other neighbour, with a
 * chance of about 16 * 2^8 * 5e-7 = 2e-3 (see ops_check.h), it is off by 2^-8, so the L2 error is
 * 2^-8 * sqrt(2e-3). There head_wide rounds p times something, and the rows that become weights'
 * gradients, each by 2^-9 at most. */
static double gradient_error(const struct shape *s, enum dtype dtype, bool wide)
{
    const double sums = sqrt((double)s->width) + sqrt((double)s->vocab) + sqrt((double)s->rows);
    const double f32 = 2 * 3e-7 + CHECK_U * (6 + sums);
    return dtype != DTYPE_BF16 ? f32 : f32 + 0x1p-8 * (wide ? 1 : sqrt(2e-3));
}

/* A row's loss is off by the relative error of a sum of exp and by the rounding of two logits. */
static double loss_error(const struct shape *s)
{
    return (double)s->rows * (3e-7 + CHECK_U * (6 + 2 * sqrt((double)s->width)));
}

/* --- reference --- */

/* The row's probabilities into p; returns -log p of the label. */
static double row_loss(const struct head *h, int64_t n, double *p)
{
    const int64_t width = h->shape->width, vocab = h->shape->vocab;
    double most = -INFINITY, sum = 0;
    for (int64_t v = 0; v < vocab; v++) {
        p[v] = 0;
        for (int64_t i = 0; i < width; i++) {
            p[v] += h->x[n * width + i] * h->w[v * width + i];
        }
        most = fmax(most, p[v]);
    }
    const double own = p[h->label[n]];
    for (int64_t v = 0; v < vocab; v++) {
        p[v] = exp(p[v] - most);
        sum += p[v];
    }
    for (int64_t v = 0; v < vocab; v++) {
        p[v] /= sum;
    }
    return log(sum) + most - own;
}

static double whole_loss(const void *args)
{
    const struct head *h = args;
    double *p = malloc((size_t)h->shape->vocab * sizeof *p), sum = 0;
    assert_non_null(p);
    for (int64_t n = 0; n < h->shape->rows; n++) {
        sum += h->label[n] < 0 ? 0 : row_loss(h, n, p);
    }
    free(p);
    return (double)SCALE * sum;
}

static double reference(const struct head *h, double *dx, double *dw, enum dtype dtype)
{
    const int64_t width = h->shape->width, vocab = h->shape->vocab;
    double *p = malloc((size_t)vocab * sizeof *p), sum = 0;
    assert_non_null(p);
    for (int64_t n = 0; n < h->shape->rows; n++) {
        if (h->label[n] < 0) {
            continue;
        }
        sum += row_loss(h, n, p);
        p[h->label[n]] -= 1;
        for (int64_t v = 0; v < vocab; v++) {
            const double exact = (double)SCALE * p[v],
                         grad = h->wide ? exact : check_round(exact, dtype);
            for (int64_t i = 0; i < width; i++) {
                dx[n * width + i] += grad * h->w[v * width + i];
                dw[v * width + i] += grad * h->x[n * width + i];
            }
        }
    }
    free(p);
    return sum;
}

/* --- cases --- */

static struct tensor random_labels(struct check *c, const struct shape *s)
{
    const struct tensor labels = check_tensor(c, "labels", DTYPE_I32, s->rows, 1); /* poison: -1 */
    for (int64_t n = 0; n < s->rows; n++) {
        if (rng_uniform(c->seed, (uint64_t)n) * 100 < s->labels) {
            const double u = rng_uniform(c->seed + 100, (uint64_t)n);
            ((int32_t *)labels.data)[n] = (int32_t)(u * (double)s->vocab);
        }
    }
    return labels;
}

static double cross_entropy(struct check *c, struct tensor dx, struct tensor dw, struct tensor x,
                            struct tensor w, const int32_t *labels)
{
    double loss = 0;
    c->ops->cross_entropy(c->device, &loss, dx, dw, x, w, labels, SCALE);
    return loss;
}

/* Rows do not depend on the others: their gradients run alone, their losses among uncounted ones.
 */
static void check_rows(struct check *c, const struct shape *s, struct tensor x, struct tensor w,
                       struct tensor labels, struct tensor dx)
{
    const struct tensor none = {.data = NULL};
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(s->rows, i);
        const struct tensor part = check_tensor(c, "dx part", c->dtype, p.count, s->width),
                            sink = check_random(c, "dw", DTYPE_F32, s->vocab, s->width, 1),
                            mine = tensor_rows(&labels, p.first, p.count),
                            others = check_tensor(c, "labels", DTYPE_I32, s->rows, 1),
                            in = tensor_rows(&x, p.first, p.count);
        const double alone = cross_entropy(c, part, sink, in, w, mine.data);
        check_exact(c, "dx", part, tensor_rows(&dx, p.first, p.count), "depends on other rows");
        if (p.count == 1) {
            const struct tensor place = tensor_rows(&others, p.first, 1);
            memcpy(place.data, mine.data, sizeof(int32_t));
            assert_true(alone == cross_entropy(c, none, none, x, w, others.data));
        }
    }
}

static void run_cross_entropy(struct check *c, const void *args)
{
    const struct shape *s = args;
    check_name(c, "cross_entropy rows=%lld C=%lld V=%lld labels=%d%%", (long long)s->rows,
               (long long)s->width, (long long)s->vocab, s->labels);
    const struct tensor labels = random_labels(c, s), none = {.data = NULL},
                        x = check_random(c, "x", c->dtype, s->rows, s->width, 1),
                        w = check_random(c, "w", c->dtype, s->vocab, s->width, 1),
                        before = check_random(c, "dw", DTYPE_F32, s->vocab, s->width, 0.5),
                        dw = check_copy(c, "dw", before),
                        dx = check_tensor(c, "dx", c->dtype, s->rows, s->width),
                        loss = check_tensor(c, "loss", DTYPE_F64, 2, 1);
    const struct head h = {s, labels.data, check_values(c, x), check_values(c, w),
                           head_wide_takes(c->device, x, w)};
    double *out = loss.data, *dx_expected = check_doubles(c, s->rows * s->width),
           *dw_before = check_values(c, before), *dw_expected = check_values(c, before);
    const double error = gradient_error(s, c->dtype, h.wide);
    const double expected = reference(&h, dx_expected, dw_expected, c->dtype);
    out[0] = cross_entropy(c, dx, dw, x, w, labels.data);
    out[1] = cross_entropy(c, none, none, x, w, labels.data);
    if (!(fabs(out[0] - expected) <= loss_error(s)) || out[1] != out[0]) {
        check_fail(c, "loss", &loss, 0, out[0], expected, "out of tolerance, or not as without dx");
    }
    c->floor = s->vocab == 1 ? (double)SCALE : 0; /* p = 1: no gradient at all */
    check_close(c, "dx", dx, dx_expected, error);
    check_close(c, "dw", dw, dw_expected, error);
    if (s->rows < 1000) {
        check_gradient(c, "dx", dx, NULL, h.x, whole_loss, &h, error);
        check_gradient(c, "dw", dw, dw_before, h.w, whole_loss, &h, error);
    }
    for (int64_t i = 0; i < s->rows * s->width; i++) {
        if (h.label[i / s->width] < 0 && check_get(&dx, i) != 0) {
            check_fail(c, "dx", &dx, i, check_get(&dx, i), 0, "gradient of an uncounted row");
        }
    }
    if (s->labels == 0) {
        assert_true(out[0] == 0);
        check_exact(c, "dw", dw, before, "changed by uncounted rows");
    }
    check_rows(c, s, x, w, labels, dx);
}

/* --- the vocabulary in parts, as ranks have it --- */

static int64_t part_begin(int64_t vocab, int parts, int part)
{
    return vocab * part / parts;
}

/* grad [rows, V] = d loss/d logit. Returns the loss, the same of every part. */
static double divided(struct check *c, struct tensor grad, struct tensor x, struct tensor w,
                      const int32_t *labels, int parts)
{
    const int64_t rows = x.dim[0], vocab = w.dim[0];
    const struct tensor stats = check_tensor(c, "stats", DTYPE_F64, parts * rows, 3);
    struct tensor logits[CHECK_PARTS];
    double loss[CHECK_PARTS] = {0};
    for (int p = 0; p < parts; p++) {
        const int64_t first = part_begin(vocab, parts, p),
                      count = part_begin(vocab, parts, p + 1) - first;
        logits[p] = check_tensor(c, "logits", DTYPE_F32, rows, count);
        c->ops->linear_forward(c->device, logits[p], x, tensor_rows(&w, first, count), false);
        c->ops->loss_stats(c->device, (double *)stats.data + 3 * rows * p, logits[p], labels,
                           first);
    }
    for (int p = 0; p < parts; p++) {
        const int64_t first = part_begin(vocab, parts, p), count = logits[p].dim[1];
        const struct loss_parts merged = {stats.data, parts, p, first};
        const struct tensor own = c->dtype == DTYPE_BF16
                                      ? check_tensor(c, "part", DTYPE_BF16, rows, count)
                                      : logits[p],
                            none = {.data = NULL};
        c->ops->loss_gradient(c->device, &loss[p], none, logits[p], &merged, labels, SCALE);
        assert_true(loss[p] == loss[0]);
        c->ops->loss_gradient(c->device, NULL, own, logits[p], &merged, labels, SCALE);
        c->ops->copy_columns(c->device, grad, first, own, 0, count);
    }
    return loss[0];
}

/* Errors as of the fused op, whose bits one part has but where head_wide takes it. */
static void run_parts(struct check *c, const void *args)
{
    const struct shape *s = args;
    check_name(c, "loss in parts rows=%lld C=%lld V=%lld labels=%d%%", (long long)s->rows,
               (long long)s->width, (long long)s->vocab, s->labels);
    const struct tensor labels = random_labels(c, s),
                        x = check_random(c, "x", c->dtype, s->rows, s->width, 1),
                        w = check_random(c, "w", c->dtype, s->vocab, s->width, 1),
                        fused = check_tensor(c, "fused", c->dtype, s->rows, s->width),
                        dx = check_tensor(c, "dx", c->dtype, s->rows, s->width),
                        sink = check_random(c, "dw", DTYPE_F32, s->vocab, s->width, 1);
    const struct head h = {s, labels.data, check_values(c, x), check_values(c, w),
                           head_wide_takes(c->device, x, w)};
    double *expected = check_doubles(c, s->rows * s->vocab), loss = 0;
    for (int64_t n = 0; n < s->rows; n++) {
        double *row = expected + n * s->vocab;
        loss += h.label[n] < 0 ? 0 : row_loss(&h, n, row);
        for (int64_t v = 0; v < s->vocab && h.label[n] >= 0; v++) {
            row[v] = (double)SCALE * (row[v] - (v == h.label[n]));
        }
    }
    const double one = cross_entropy(c, fused, sink, x, w, labels.data);
    c->floor = s->vocab == 1 ? (double)SCALE : 0;
    for (int parts = 1; parts <= CHECK_PARTS && parts <= s->vocab; parts++) {
        const struct tensor grad = check_tensor(c, "grad", c->dtype, s->rows, s->vocab);
        const double got = divided(c, grad, x, w, labels.data, parts);
        if (!(fabs(got - loss) <= loss_error(s))) {
            check_fail(c, "loss", &grad, parts, got, loss, "out of tolerance");
        }
        check_close(c, "grad", grad, expected, gradient_error(s, DTYPE_F32, false));
        if (parts == 1 && s->rows <= 1024 && !h.wide) { /* of one chunk */
            assert_true(got == one);
            c->ops->linear_backward_input(c->device, dx, grad, w, false);
            check_exact(c, "dx", dx, fused, "of one part is not the fused op's");
        }
    }
}

/* Equal logits: ln V each. Logits of +-1e3: no overflow, the loss is their difference. */
static void run_known(struct check *c, const void *args)
{
    (void)args;
    enum { ROWS = 5, VOCAB = 1001 };
    const struct tensor none = {.data = NULL};
    check_name(c, "cross_entropy of known logits");
    struct tensor x = check_random(c, "x", c->dtype, ROWS, 3, 1),
                  w = check_tensor(c, "w", c->dtype, VOCAB, 3);
    memset(w.data, 0, tensor_bytes(&w));
    const int32_t labels[ROWS] = {0, 1000, 3, -1, 500};
    const double uniform = cross_entropy(c, none, none, x, w, labels);
    assert_true(fabs(uniform - 4 * log(VOCAB)) < 4 * 1e-6);
    x = check_tensor(c, "x", c->dtype, 1, 1);
    w = check_tensor(c, "w", c->dtype, 3, 1);
    check_set(&x, 0, 1);
    check_set(&w, 0, 1024), check_set(&w, 1, -1024), check_set(&w, 2, 1020);
    static const double expected[3] = {0.0181499279178, 2048.0181499279178, 4.0181499279178};
    for (int32_t label = 0; label < 3; label++) { /* log(1 + e^-4) */
        const double loss = cross_entropy(c, none, none, x, w, &label);
        assert_true(fabs(loss - expected[label]) < 1e-6);
    }
}

/* Rows of logits 1024, -1024, 1020 and others far below: from the label's, the largest is further
 * than a power reaches. Rows: fewer than pack weights, more, and more than a chunk. */
static void run_far(struct check *c, const void *args)
{
    const struct shape *s = args;
    static const double logit[3] = {1024, -1024, 1020}, p[3] = {0.98201379, 0, 0.01798621};
    check_name(c, "cross_entropy of logits far apart, rows=%lld", (long long)s->rows);
    struct tensor x = check_tensor(c, "x", c->dtype, s->rows, s->width),
                  w = check_tensor(c, "w", c->dtype, s->vocab, s->width);
    const struct tensor labels = check_tensor(c, "labels", DTYPE_I32, s->rows, 1),
                        dx = check_tensor(c, "dx", c->dtype, s->rows, s->width),
                        dw = check_tensor(c, "dw", DTYPE_F32, s->vocab, s->width),
                        none = {.data = NULL};
    double *expected = check_doubles(c, s->rows * s->width), losses = 0, each = 0;
    memset(dw.data, 0, tensor_bytes(&dw));
    for (int64_t i = 0; i < s->rows * s->width; i++) {
        check_set(&x, i, i % s->width == 0 ? 1 : 0);
    }
    for (int64_t i = 0; i < s->vocab * s->width; i++) {
        const int64_t row = i / s->width;
        check_set(&w, i, i % s->width != 0 ? 0 : row < 3 ? logit[row] : -2048);
    }
    for (int64_t n = 0; n < s->rows; n++) {
        const int32_t label = (int32_t)(n % 4) - 1;
        const double all = p[0] * logit[0] + p[2] * logit[2];
        ((int32_t *)labels.data)[n] = label;
        losses += label < 0 ? 0 : log1p(exp(-4)) + logit[0] - logit[label];
        expected[n * s->width] = label < 0 ? 0 : (double)SCALE * (all - logit[label]);
        each += label == 0 ? (double)SCALE : 0; /* as many rows have each label */
    }
    const double got = cross_entropy(c, dx, dw, x, w, labels.data);
    assert_true(fabs(got - losses) < 1e-6 * losses);
    assert_true(got == cross_entropy(c, none, none, x, w, labels.data));
    /* Products of thousands, of which 0.07 is left for the first label. */
    check_close(c, "dx", dx, expected, c->dtype == DTYPE_BF16 ? 0x1p-8 : 1e-6);
    const bool narrow = c->dtype == DTYPE_BF16;
    const double first = check_get(&dx, s->width) - expected[s->width],
                 rounded = narrow ? 0x1p-7 * p[2] * logit[2] : 0, sums = 8 * CHECK_U * logit[0],
                 weight = each * (narrow ? 0x1p-7 : 1e-6 + CHECK_U * (double)s->rows);
    assert_true(fabs(first) < (double)SCALE * (rounded + sums));
    assert_true(fabs(check_get(&dw, 0) - each * (3 * p[0] - 1)) < weight);
    assert_true(fabs(check_get(&dw, s->width) + each) < weight);
    assert_true(fabs(check_get(&dw, 3 * s->width)) < 1e-30);
    for (int64_t v = 0; v < s->vocab; v++) {
        assert_true(check_get(&dw, v * s->width + 1) == 0);
    }
    check_rows(c, s, x, w, labels, dx);
}

/* --- powers of sums so long that they are made slice by slice --- */

/* A row without a label has no powers; what its `own` holds is left alone. */
static void expect_powers(struct check *c, struct tensor x, struct tensor w, const int32_t *labels,
                          double *power, double *own, double *sum, double *most)
{
    const int64_t rows = x.dim[0], width = x.dim[1], vocab = w.dim[0],
                  pieces = gemm_exp_pieces(vocab);
    const double *a = check_values(c, x), *b = check_values(c, w);
    for (int64_t i = 0; i < rows * vocab; i++) {
        const int64_t n = i / vocab, v = i % vocab, piece = n * pieces + v / GEMM_EXP_COLUMNS;
        double logit = 0;
        for (int64_t k = 0; k < width && labels[n] >= 0; k++) {
            logit += a[n * width + k] * b[v * width + k];
        }
        const double x_less = logit - POWER_SHIFT;
        const bool is_label = v == labels[n];
        power[i] = labels[n] < 0 || is_label ? 0 : exp(x_less);
        sum[piece] += labels[n] < 0 ? 0 : exp(x_less);
        most[piece] = labels[n] < 0               ? 0
                      : v % GEMM_EXP_COLUMNS == 0 ? x_less
                                                  : fmax(most[piece], x_less);
        own[n] = is_label ? logit : own[n];
    }
}

static void run_powers(struct check *c, const void *args)
{
    const struct shape *s = args;
    const int64_t pieces = gemm_exp_pieces(s->vocab);
    check_name(c, "powers of a product rows=%lld C=%lld V=%lld", (long long)s->rows,
               (long long)s->width, (long long)s->vocab);
    const struct tensor x = check_random(c, "x", c->dtype, s->rows, s->width, 1),
                        w = check_random(c, "w", c->dtype, s->vocab, s->width,
                                         1 / sqrt((double)s->width)),
                        labels = random_labels(c, s),
                        shift = check_tensor(c, "shift", DTYPE_F32, s->rows, 1),
                        power = check_tensor(c, "power", c->dtype, s->rows, s->vocab),
                        own = check_tensor(c, "own", DTYPE_F32, s->rows, 1),
                        sum = check_tensor(c, "sum", DTYPE_F32, s->rows, pieces),
                        most = check_tensor(c, "most", DTYPE_F32, s->rows, pieces);
    ((int32_t *)labels.data)[s->rows / 2] = -1;
    for (int64_t n = 0; n < s->rows; n++) {
        ((float *)shift.data)[n] = (float)POWER_SHIFT;
    }
    const struct gemm_exp exp = {shift.data, labels.data, own.data, sum.data, most.data};
    struct gemm gemm = gemm_forward(power, x, w);
    gemm.vast = true; /* as a head's */
    if (!gemm_is_wide(c->device, &gemm)) {
        return;
    }
    gemm.exp = &exp;
    gemm_run(c->device, &gemm, 1);
    for (int64_t i = s->rows / 2 * pieces; i < (s->rows / 2 + 1) * pieces; i++) {
        assert_true(check_get(&most, i) == -INFINITY);
        ((float *)most.data)[i] = 0;
    }
    if (c->threads > 1) {
        return; /* the same bits: check_run looks */
    }
    double *expected[] = {check_doubles(c, s->rows * s->vocab), check_doubles(c, s->rows),
                          check_doubles(c, s->rows * pieces), check_doubles(c, s->rows * pieces)};
    expected[1][s->rows / 2] = NAN; /* left alone */
    expect_powers(c, x, w, labels.data, expected[0], expected[1], expected[2], expected[3]);
    /* A logit, of deviation 1, is so many roundings of sums of that size; then the power's own. */
    const double error = 3e-7 + CHECK_U * sqrt((double)s->width);
    check_close(c, "power", power, expected[0], error);
    check_close(c, "own", own, expected[1], error);
    check_close(c, "sum", sum, expected[2], error);
    check_close(c, "most", most, expected[3], error);
}

static void test_cross_entropy(void **state)
{
    for (int i = 0; i < SHAPES; i++) {
        check_run(*state, run_cross_entropy, &shapes[i],
                  CHECK_BF16 | CHECK_KERNELS | CHECK_VECTORS);
    }
}

static void test_parts(void **state)
{
    for (int i = 0; i < SHAPES; i++) {
        check_run(*state, run_parts, &shapes[i], CHECK_BF16 | CHECK_KERNELS | CHECK_VECTORS);
    }
}

static void test_known(void **state)
{
    check_run(*state, run_known, NULL, CHECK_BF16 | CHECK_KERNELS | CHECK_VECTORS);
    static const struct shape far[] = {{100, 2, 150, 75}, {300, 2, 150, 75}, {2100, 2, 150, 75}};
    for (size_t i = 0; i < sizeof far / sizeof far[0]; i++) {
        check_run(*state, run_far, &far[i], CHECK_BF16 | CHECK_KERNELS | CHECK_VECTORS);
    }
}

/* Of one slice; of more than 4096 words, in f32 or in bf16 too, with more rows than a task. */
static void test_powers(void **state)
{
    static const struct shape long_sums[] = {
        {20, 66, 300, 100}, {9, 8200, 300, 100}, {530, 8200, 20, 100}};
    for (size_t i = 0; i < sizeof long_sums / sizeof long_sums[0]; i++) {
        check_run(*state, run_powers, &long_sums[i], CHECK_BF16 | CHECK_VECTORS);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_powers),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
