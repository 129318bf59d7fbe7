/* Products: linear, grouped and router logits, by oneDNN and by our own kernel. */
#include "ops_check.h"

/* Experts' rows stand one after another; a linear layer is one expert. */
struct group {
    int64_t experts, in, out, gap; /* gap: elements between the experts' matrices */
    int64_t offset[9];
};

/* Tiles of our own kernels are 6 x 16 in 96 x 256, 256 of k at a time, and by AVX-512 14 x 32 in 56
 * x 128 or 112 x 128, 512 words of k at a time (one, or pairs of bf16), a thread's tasks of at most
 * 2^16 words of B, or 2^19 of columns that are packed on both sides, and a 16th of its work;
 * rows in bands of 2048 for each thread, if there are as many; gradients over more than 512 words,
 * others over more than 4096, slice by slice; oneDNN's rows go by 32. */
static const struct group linears[] = {
    {1, 5, 3, 0, {0, 0}},       {1, 1, 1, 0, {0, 1}},      {1, 33, 17, 0, {0, 1}},
    {1, 5, 3, 0, {0, 7}},       {1, 64, 48, 0, {0, 33}},   {1, 130, 71, 0, {0, 65}},
    {1, 1, 40, 0, {0, 31}},     {1, 40, 1, 0, {0, 32}},    {1, 257, 259, 0, {0, 97}},
    {1, 16, 96, 0, {0, 64}},    {1, 600, 11, 0, {0, 34}},  {1, 10, 40, 0, {0, 4300}},
    {1, 150, 70, 0, {0, 1100}}, {1, 3, 8300, 0, {0, 115}}, {1, 8300, 17, 0, {0, 5}},
};
static const struct group groups[] = {
    {4, 5, 3, 0, {0, 0, 0, 0, 0}},
    {1, 7, 9, 2, {0, 13}},
    {3, 17, 5, 3, {0, 0, 5, 6}},
    {3, 16, 32, 0, {0, 6, 6, 6}},
    {8, 33, 19, 1, {0, 33, 33, 97, 98, 98, 131, 133, 133}},
    {2, 64, 130, 0, {0, 97, 102}},
    {3, 130, 66, 2, {0, 57, 57, 130}},
    {2, 1100, 40, 0, {0, 3, 20}},
    {2, 40, 1100, 0, {0, 3, 20}},
    {1, 1040, 420, 0, {0, 2}},
    {2, 10, 6, 0, {0, 1, 1060}},
    {1, 4, 240, 0, {0, 1001}},
    {2, 2048, 40, 0, {0, 15, 72}}, /* rows so many bytes apart are copied */
    {2, 40, 2048, 0, {0, 15, 72}},
};
/* Of several tasks: of columns and of rows, which threads take from each other; and for
 * gradients of weights of long rows. */
static const struct group tasks = {8, 860, 1720, 0, {0, 113, 226, 339, 452, 565, 678, 791, 904}},
                          tasks_of_rows = {
                              8, 3, 1050, 0, {0, 999, 1999, 2999, 3999, 4999, 5999, 6999, 7999}};
/* A gradient of weights in several parts of both, the last of each smaller, and k odd. */
static const struct group deep = {1, 300, 600, 0, {0, 1101}};
/* f32 by bf16: more than a tile's rows, k beyond a block's. */
static const struct group routers[] = {{1, 40, 600, 0, {0, 300}}, {1, 33, 20, 0, {0, 1060}}};
enum { LINEARS = sizeof linears / sizeof linears[0], GROUPS = sizeof groups / sizeof groups[0] };

static int64_t rows_of(const struct group *g)
{
    return g->offset[g->experts];
}

static int64_t stride_of(const struct group *g)
{
    return g->in * g->out + g->gap;
}

/* Sums of k products: one rounding each, of partial sums that grow like sqrt(k); 2 for the sum with
 * what stood there and for the store. */
static double sum_error(int64_t k)
{
    return CHECK_U * (2 + sqrt((double)k));
}

static void name_case(struct check *c, const char *op, const struct group *g)
{
    c->floor = 1; /* of the terms: few of them may cancel */
    check_name(c, "%s rows=%lld in=%lld out=%lld experts=%lld", op, (long long)rows_of(g),
               (long long)g->in, (long long)g->out, (long long)g->experts);
}

/* --- reference --- */

struct reference {
    const struct group *group;
    double *x, *w, *y; /* y, or its gradient */
};

enum target { TO_Y, TO_X, TO_W };

/* One row of x (`in` elements), of w and of y: the three products that belong to y[n,o]. */
static void reference_row(enum target target, double *x, double *w, double *y, int64_t in)
{
    double sum = 0;
    for (int64_t i = 0; i < in && target == TO_Y; i++) {
        sum += x[i] * w[i];
    }
    for (int64_t i = 0; i < in && target == TO_X; i++) {
        x[i] += *y * w[i];
    }
    for (int64_t i = 0; i < in && target == TO_W; i++) {
        w[i] += *y * x[i];
    }
    *y += sum;
}

static void reference_add(const struct reference *r, enum target target, double *out)
{
    const struct group *g = r->group;
    double *x = target == TO_X ? out : r->x, *w = target == TO_W ? out : r->w,
           *y = target == TO_Y ? out : r->y;
    for (int64_t e = 0; e < g->experts; e++) {
        for (int64_t n = g->offset[e]; n < g->offset[e + 1]; n++) {
            for (int64_t o = 0; o < g->out; o++) {
                reference_row(target, x + n * g->in, w + e * stride_of(g) + o * g->in,
                              y + n * g->out + o, g->in);
            }
        }
    }
}

/* With two threads the bits of one thread are expected: no reference. */
static void reference(const struct check *c, const struct reference *r, enum target target,
                      double *out)
{
    if (c->threads == 1) {
        reference_add(r, target, out);
    }
}

/* <dy, x w^T> */
static double loss(const void *args)
{
    const struct reference *r = args;
    const int64_t count = rows_of(r->group) * r->group->out;
    double *y = calloc((size_t)count + 1, sizeof *y), sum = 0;
    assert_non_null(y);
    reference_add(r, TO_Y, y);
    for (int64_t i = 0; i < count; i++) {
        sum += r->y[i] * y[i];
    }
    free(y);
    return sum;
}

/* Finite differences; of the largest products once only: each takes ten whole products. */
static void slopes(const struct check *c, const char *name, struct tensor grad,
                   const double *before, double *variable, const struct reference *r, double acc)
{
    const struct group *g = r->group;
    if (rows_of(g) * g->in * g->out < 1000000 || (c->seed == 1 && c->way == CHECK_CHOSEN)) {
        check_gradient(c, name, grad, before, variable, loss, r, acc);
    }
}

/* --- linear --- */

static void run_linear_forward(struct check *c, const void *args)
{
    const struct group *g = args;
    const int64_t rows = rows_of(g);
    const struct tensor x = check_random(c, "x", c->dtype, rows, g->in, 1),
                        w = check_random(c, "w", c->dtype, g->out, g->in, 1);
    const struct reference r = {g, check_values(c, x), check_values(c, w), NULL};
    for (int form = 0; form < 4; form++) {
        const bool add = form >= 2;
        const enum dtype dtype = form % 2 == 0 ? c->dtype : DTYPE_F32;
        name_case(c, add ? "linear_forward add" : "linear_forward", g);
        const struct tensor before = add ? check_random(c, "y", dtype, rows, g->out, 3)
                                         : check_tensor(c, "y", dtype, rows, g->out);
        const struct tensor y = check_copy(c, "y", before);
        double *expected = add ? check_values(c, before) : check_doubles(c, rows * g->out);
        reference(c, &r, TO_Y, expected);
        c->ops->linear_forward(c->device, y, x, w, add);
        check_close(c, "y", y, expected, sum_error(g->in));
        for (int i = 0; i < CHECK_PARTS; i++) {
            const struct check_part p = check_part(rows, i);
            const struct tensor part =
                check_copy(c, "y part", tensor_rows(&before, p.first, p.count));
            c->ops->linear_forward(c->device, part, tensor_rows(&x, p.first, p.count), w, add);
            check_exact(c, "y", part, tensor_rows(&y, p.first, p.count), "depends on other rows");
        }
    }
}

static void run_linear_backward_input(struct check *c, const void *args)
{
    const struct group *g = args;
    const int64_t rows = rows_of(g);
    const struct tensor dy = check_random(c, "dy", c->dtype, rows, g->out, 1),
                        w = check_random(c, "w", c->dtype, g->out, g->in, 1),
                        x = check_random(c, "x", c->dtype, rows, g->in, 1);
    const struct reference r = {g, check_values(c, x), check_values(c, w), check_values(c, dy)};
    for (int add = 0; add < 2; add++) {
        name_case(c, add ? "linear_backward_input add" : "linear_backward_input", g);
        const struct tensor before = add ? check_random(c, "dx", c->dtype, rows, g->in, 3)
                                         : check_tensor(c, "dx", c->dtype, rows, g->in);
        const struct tensor dx = check_copy(c, "dx", before);
        double *expected = add ? check_values(c, before) : check_doubles(c, rows * g->in);
        reference(c, &r, TO_X, expected);
        c->ops->linear_backward_input(c->device, dx, dy, w, add);
        check_close(c, "dx", dx, expected, sum_error(g->out));
        slopes(c, "dx", dx, add ? check_values(c, before) : NULL, r.x, &r, sum_error(g->out));
        for (int i = 0; i < CHECK_PARTS; i++) {
            const struct check_part p = check_part(rows, i);
            const struct tensor part =
                check_copy(c, "dx part", tensor_rows(&before, p.first, p.count));
            c->ops->linear_backward_input(c->device, part, tensor_rows(&dy, p.first, p.count), w,
                                          add);
            check_exact(c, "dx", part, tensor_rows(&dx, p.first, p.count), "depends on other rows");
        }
    }
}

static void run_linear_backward_weight(struct check *c, const void *args)
{
    const struct group *g = args;
    name_case(c, "linear_backward_weight", g);
    const struct tensor dy = check_random(c, "dy", c->dtype, rows_of(g), g->out, 1),
                        x = check_random(c, "x", c->dtype, rows_of(g), g->in, 1),
                        w = check_random(c, "w", c->dtype, g->out, g->in, 1),
                        dw = check_random(c, "dw", DTYPE_F32, g->out, g->in, 3);
    const struct reference r = {g, check_values(c, x), check_values(c, w), check_values(c, dy)};
    double *before = check_values(c, dw), *expected = check_values(c, dw);
    reference(c, &r, TO_W, expected);
    c->ops->linear_backward_weight(c->device, dw, dy, x);
    check_close(c, "dw", dw, expected, sum_error(rows_of(g)));
    slopes(c, "dw", dw, before, r.w, &r, sum_error(rows_of(g)));
}

/* --- router logits: f32 logits of act operands; backward mixes f32 and act --- */

static void run_router_logits(struct check *c, const void *args)
{
    const struct group *g = args;
    const int64_t rows = rows_of(g);
    name_case(c, "router_logits", g);
    const struct tensor x = check_random(c, "x", c->dtype, rows, g->in, 1),
                        w = check_random(c, "w", c->dtype, g->out, g->in, 1),
                        dlogits = check_random(c, "dlogits", DTYPE_F32, rows, g->out, 1),
                        before = check_random(c, "dx", c->dtype, rows, g->in, 3);
    const struct tensor logits = check_tensor(c, "logits", DTYPE_F32, rows, g->out),
                        dx = check_copy(c, "dx", before),
                        dw = check_random(c, "dw", DTYPE_F32, g->out, g->in, 3);
    const struct reference r = {g, check_values(c, x), check_values(c, w),
                                check_values(c, dlogits)};
    double *expected = check_doubles(c, rows * g->out), *dx_expected = check_values(c, dx),
           *dw_expected = check_values(c, dw), *dx_before = check_values(c, dx),
           *dw_before = check_values(c, dw);
    reference(c, &r, TO_Y, expected);
    reference(c, &r, TO_X, dx_expected);
    reference(c, &r, TO_W, dw_expected);
    c->ops->router_logits(c->device, logits, x, w);
    check_close(c, "logits", logits, expected, sum_error(g->in));
    name_case(c, "router_logits_backward", g);
    c->ops->router_logits_backward(c->device, dx, dw, dlogits, x, w, (struct router_chosen){0});
    check_close(c, "dx", dx, dx_expected, sum_error(g->out));
    check_close(c, "dw", dw, dw_expected, sum_error(rows));
    slopes(c, "dx", dx, dx_before, r.x, &r, sum_error(g->out));
    slopes(c, "dw", dw, dw_before, r.w, &r, sum_error(rows));
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(rows, i);
        const struct tensor y = check_tensor(c, "logits part", DTYPE_F32, p.count, g->out),
                            dy = tensor_rows(&dlogits, p.first, p.count),
                            in = tensor_rows(&x, p.first, p.count),
                            d = check_copy(c, "dx part", tensor_rows(&before, p.first, p.count)),
                            sink = check_random(c, "dw", DTYPE_F32, g->out, g->in, 3);
        c->ops->router_logits(c->device, y, in, w);
        c->ops->router_logits_backward(c->device, d, sink, dy, in, w, (struct router_chosen){0});
        check_exact(c, "logits", y, tensor_rows(&logits, p.first, p.count), "depends on others");
        check_exact(c, "dx", d, tensor_rows(&dx, p.first, p.count), "depends on other rows");
    }
}

/* --- grouped --- */

/* The experts' matrices, and gaps between them that no op may read into a result or write. */
static struct tensor random_matrices(struct check *c, const char *name, enum dtype dtype,
                                     const struct group *g)
{
    return check_random(c, name, dtype, g->experts, stride_of(g), 1);
}

static const void *matrix(const struct tensor *w, int64_t expert)
{
    return tensor_rows(w, expert, 1).data;
}

static void run_grouped_forward(struct check *c, const void *args)
{
    const struct group *g = args;
    name_case(c, "grouped_forward", g);
    const struct tensor x = check_random(c, "x", c->dtype, rows_of(g), g->in, 1),
                        w = random_matrices(c, "w", c->dtype, g),
                        y = check_tensor(c, "y", c->dtype, rows_of(g), g->out);
    const struct reference r = {g, check_values(c, x), check_values(c, w), NULL};
    double *expected = check_doubles(c, rows_of(g) * g->out);
    reference(c, &r, TO_Y, expected);
    c->ops->grouped_forward(c->device, y, x, w.data, stride_of(g), g->offset, g->experts);
    check_close(c, "y", y, expected, sum_error(g->in));
    for (int64_t e = 0; e < g->experts; e++) {
        for (int i = 0; i < CHECK_PARTS; i++) {
            struct check_part p = check_part(g->offset[e + 1] - g->offset[e], i);
            p.first += g->offset[e];
            const struct tensor part = check_tensor(c, "y part", c->dtype, p.count, g->out);
            c->ops->grouped_forward(c->device, part, tensor_rows(&x, p.first, p.count),
                                    matrix(&w, e), stride_of(g), (int64_t[]){0, p.count}, 1);
            check_exact(c, "y", part, tensor_rows(&y, p.first, p.count), "depends on other rows");
        }
    }
}

static void run_grouped_backward_input(struct check *c, const void *args)
{
    const struct group *g = args;
    name_case(c, "grouped_backward_input", g);
    const struct tensor dy = check_random(c, "dy", c->dtype, rows_of(g), g->out, 1),
                        x = check_random(c, "x", c->dtype, rows_of(g), g->in, 1),
                        w = random_matrices(c, "w", c->dtype, g),
                        dx = check_tensor(c, "dx", c->dtype, rows_of(g), g->in);
    const struct reference r = {g, check_values(c, x), check_values(c, w), check_values(c, dy)};
    double *expected = check_doubles(c, rows_of(g) * g->in);
    reference(c, &r, TO_X, expected);
    c->ops->grouped_backward_input(c->device, dx, dy, w.data, stride_of(g), g->offset, g->experts);
    check_close(c, "dx", dx, expected, sum_error(g->out));
    slopes(c, "dx", dx, NULL, r.x, &r, sum_error(g->out));
    for (int64_t e = 0; e < g->experts; e++) {
        for (int i = 0; i < CHECK_PARTS; i++) {
            struct check_part p = check_part(g->offset[e + 1] - g->offset[e], i);
            p.first += g->offset[e];
            const struct tensor part = check_tensor(c, "dx part", c->dtype, p.count, g->in);
            c->ops->grouped_backward_input(c->device, part, tensor_rows(&dy, p.first, p.count),
                                           matrix(&w, e), stride_of(g), (int64_t[]){0, p.count}, 1);
            check_exact(c, "dx", part, tensor_rows(&dx, p.first, p.count), "depends on others");
        }
    }
}

static void run_grouped_backward_weight(struct check *c, const void *args)
{
    const struct group *g = args;
    name_case(c, "grouped_backward_weight", g);
    const struct tensor dy = check_random(c, "dy", c->dtype, rows_of(g), g->out, 1),
                        x = check_random(c, "x", c->dtype, rows_of(g), g->in, 1),
                        w = random_matrices(c, "w", c->dtype, g),
                        before = random_matrices(c, "dw", DTYPE_F32, g),
                        dw = check_copy(c, "dw", before);
    const struct reference r = {g, check_values(c, x), check_values(c, w), check_values(c, dy)};
    double *expected = check_values(c, before);
    reference(c, &r, TO_W, expected);
    c->ops->grouped_backward_weight(c->device, dw.data, stride_of(g), dy, x, g->offset, g->experts);
    check_close(c, "dw", dw, expected, sum_error(rows_of(g)));
    slopes(c, "dw", dw, check_values(c, before), r.w, &r, sum_error(rows_of(g)));
    for (int64_t e = 0; e < g->experts; e++) {
        const int64_t rows = g->offset[e + 1] - g->offset[e];
        const struct tensor alone = check_copy(c, "dw alone", tensor_rows(&before, e, 1)),
                            out = tensor_rows(&dw, e, 1), was = tensor_rows(&before, e, 1);
        c->ops->grouped_backward_weight(
            c->device, alone.data, stride_of(g), tensor_rows(&dy, g->offset[e], rows),
            tensor_rows(&x, g->offset[e], rows), (int64_t[]){0, rows}, 1);
        check_exact(c, "dw", alone, out, "depends on other experts");
        const struct tensor gap = tensor_1d((float *)out.data + g->in * g->out, DTYPE_F32, g->gap),
                            gap_was =
                                tensor_1d((float *)was.data + g->in * g->out, DTYPE_F32, g->gap);
        check_exact(c, "gap after dw", gap, gap_was, "written between matrices");
        if (rows == 0) {
            check_exact(c, "dw", out, was, "changed by an expert without rows");
        }
    }
}

/* What overwrites is what adds to zeros, and leaves what lies between matrices as it was. */
static void run_grouped_first_weight(struct check *c, const void *args)
{
    const struct group *g = args;
    name_case(c, "grouped_first_weight", g);
    const struct tensor dy = check_random(c, "dy", c->dtype, rows_of(g), g->out, 1),
                        x = check_random(c, "x", c->dtype, rows_of(g), g->in, 1),
                        dw = check_random(c, "dw", DTYPE_F32, g->experts, stride_of(g), 3),
                        sum = check_copy(c, "sum", dw);
    for (int64_t e = 0; e < g->experts; e++) {
        memset(tensor_rows(&sum, e, 1).data, 0, (size_t)(g->in * g->out) * sizeof(float));
    }
    c->ops->grouped_backward_weight(c->device, sum.data, stride_of(g), dy, x, g->offset,
                                    g->experts);
    c->ops->grouped_first_weight(c->device, dw.data, stride_of(g), dy, x, g->offset, g->experts);
    check_exact(c, "dw", dw, sum, "not what adds to zeros");
}

/* More threads than processors: some take what others have begun. */
static void check_threads(struct check *c, const struct group *g, struct tensor x, struct tensor w,
                          struct tensor y)
{
    const struct device_options options = {.name = "cpu", .threads = 5};
    struct device *many;
    const struct tensor same = check_tensor(c, "y of many", c->dtype, rows_of(g), g->out);
    assert_int_equal(device_open(&many, &options), STATUS_OK);
    c->ops->grouped_forward(many, same, x, w.data, stride_of(g), g->offset, g->experts);
    check_exact(c, "y", same, y, "depends on threads");
    device_close(many);
}

/* Products of several tasks give the bits of those that are one. */
static void run_tasks(struct check *c, const void *args)
{
    const struct group *g = args;
    enum { ROWS = 3 };
    name_case(c, "grouped products of several tasks", g);
    const struct tensor x = check_random(c, "x", c->dtype, rows_of(g), g->in, 1),
                        dy = check_random(c, "dy", c->dtype, rows_of(g), g->out, 1),
                        w = random_matrices(c, "w", c->dtype, g),
                        y = check_tensor(c, "y", c->dtype, rows_of(g), g->out),
                        dx = check_tensor(c, "dx", c->dtype, rows_of(g), g->in);
    const int64_t few[] = {0, ROWS};
    c->ops->grouped_forward(c->device, y, x, w.data, stride_of(g), g->offset, g->experts);
    c->ops->grouped_backward_input(c->device, dx, dy, w.data, stride_of(g), g->offset, g->experts);
    check_threads(c, g, x, w, y);
    for (int64_t e = 0; e < g->experts; e++) {
        const int64_t first = g->offset[e + 1] - ROWS;
        const struct tensor some_y = check_tensor(c, "some y", c->dtype, ROWS, g->out),
                            some_dx = check_tensor(c, "some dx", c->dtype, ROWS, g->in);
        c->ops->grouped_forward(c->device, some_y, tensor_rows(&x, first, ROWS), matrix(&w, e),
                                stride_of(g), few, 1);
        c->ops->grouped_backward_input(c->device, some_dx, tensor_rows(&dy, first, ROWS),
                                       matrix(&w, e), stride_of(g), few, 1);
        check_exact(c, "y", some_y, tensor_rows(&y, first, ROWS), "depends on tasks");
        check_exact(c, "dx", some_dx, tensor_rows(&dx, first, ROWS), "depends on tasks");
    }
}

/* -2 to 2: sums of their products are exact in any order. */
static struct tensor integers(struct check *c, const char *name, int64_t rows, int64_t cols)
{
    struct tensor t = check_tensor(c, name, c->dtype, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        check_set(&t, i, floor(rng_uniform(c->seed + (uint64_t)cols, (uint64_t)i) * 5) - 2);
    }
    return t;
}

/* A gradient of weights is exact, by as many threads as there are, and by 5. */
static void run_deep(struct check *c, const void *args)
{
    const struct group *g = args;
    const struct device_options options = {.name = "cpu", .threads = 5};
    const int64_t tokens = rows_of(g);
    name_case(c, "linear_backward_weight of integers", g);
    const struct tensor dy = integers(c, "dy", tokens, g->out), x = integers(c, "x", tokens, g->in),
                        dw = check_tensor(c, "dw", DTYPE_F32, g->out, g->in),
                        many = check_tensor(c, "dw of many", DTYPE_F32, g->out, g->in),
                        expected = check_tensor(c, "expected", DTYPE_F32, g->out, g->in);
    double *const left = check_values(c, dy), *const right = check_values(c, x);
    struct device *device;
    for (int64_t i = 0; i < g->out * g->in; i++) {
        ((float *)dw.data)[i] = ((float *)many.data)[i] = ((float *)expected.data)[i] = 3;
    }
    for (int64_t n = 0; n < tokens; n++) {
        for (int64_t o = 0; o < g->out; o++) {
            float *const row = (float *)expected.data + o * g->in;
            const float factor = (float)left[n * g->out + o];
            for (int64_t i = 0; i < g->in; i++) {
                row[i] += factor * (float)right[n * g->in + i];
            }
        }
    }
    c->ops->linear_backward_weight(c->device, dw, dy, x);
    check_exact(c, "dw", dw, expected, "of integers");
    assert_int_equal(device_open(&device, &options), STATUS_OK);
    c->ops->linear_backward_weight(device, many, dy, x);
    check_exact(c, "dw", many, expected, "of integers, by 5 threads");
    device_close(device);
}

/* --- tests --- */

static void run_all(void **state, void (*run)(struct check *, const void *),
                    const struct group *table, int count)
{
    for (int i = 0; i < count; i++) {
        check_run(*state, run, &table[i], CHECK_BF16 | CHECK_KERNELS | CHECK_VECTORS);
    }
}

static void test_linear_forward(void **state)
{
    run_all(state, run_linear_forward, linears, LINEARS);
}

static void test_linear_backward_input(void **state)
{
    run_all(state, run_linear_backward_input, linears, LINEARS);
}

static void test_linear_backward_weight(void **state)
{
    run_all(state, run_linear_backward_weight, linears, LINEARS);
}

static void test_router_logits(void **state)
{
    run_all(state, run_router_logits, linears, LINEARS);
    run_all(state, run_router_logits, routers, sizeof routers / sizeof routers[0]);
}

static void test_grouped_forward(void **state)
{
    run_all(state, run_grouped_forward, groups, GROUPS);
}

static void test_grouped_backward_input(void **state)
{
    run_all(state, run_grouped_backward_input, groups, GROUPS);
}

static void test_grouped_backward_weight(void **state)
{
    run_all(state, run_grouped_backward_weight, groups, GROUPS);
}

static void test_grouped_first_weight(void **state)
{
    run_all(state, run_grouped_first_weight, groups, GROUPS);
}

static void test_tasks(void **state)
{
    check_run(*state, run_tasks, &tasks, 0);
    check_run(*state, run_grouped_backward_weight, &tasks_of_rows, 0);
}

static void test_deep(void **state)
{
    check_run(*state, run_deep, &deep, CHECK_BF16 | CHECK_VECTORS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear_forward),
        cmocka_unit_test(test_linear_backward_input),
        cmocka_unit_test(test_linear_backward_weight),
        cmocka_unit_test(test_router_logits),
        cmocka_unit_test(test_grouped_forward),
        cmocka_unit_test(test_grouped_backward_input),
        cmocka_unit_test(test_grouped_backward_weight),
        cmocka_unit_test(test_grouped_first_weight),
        cmocka_unit_test(test_tasks),
        cmocka_unit_test(test_deep),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
