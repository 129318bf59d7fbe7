/* Dispatch and combine: rows to experts and back. */
#include "ops_check.h"

struct shape {
    int64_t tokens, top_k, width;
    int percent; /* of the slots that are dropped */
    bool weighted;
};

/* Wider than the parts of 512 the op works in; one token; all slots dropped. */
static const struct shape shapes[] = {
    {0, 2, 8, 0, true},    {1, 1, 1, 0, true},     {1, 4, 33, 50, true},
    {7, 2, 5, 20, true},   {65, 3, 17, 0, true},   {33, 2, 1030, 30, true},
    {5, 2, 513, 0, false}, {130, 6, 9, 10, false}, {4, 2, 6, 100, true},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0], SPARE = 3 }; /* rows that belong to no slot */

struct permuted {
    const struct shape *shape;
    struct tensor slot_row, row; /* slot -> row, row -> token; -1: none */
    int64_t kept;                /* slots that are not dropped */
    double *x, *weight, *dy;     /* x [R,C] in expert order */
};

static int64_t slots_of(const struct shape *s)
{
    return s->tokens * s->top_k;
}

/* A shuffle of slots and spare rows, some slots dropped. */
static void permute(struct check *c, struct permuted *p)
{
    const struct shape *s = p->shape;
    const int64_t slots = slots_of(s), rows = slots + SPARE;
    p->slot_row = check_tensor(c, "slot_row", DTYPE_I32, s->tokens, s->top_k);
    p->row = check_tensor(c, "row", DTYPE_I32, rows, 1); /* poison is -1 */
    for (int64_t i = 0; i < slots; i++) {
        const uint64_t to = rng_permute(c->seed, (uint64_t)i, (uint64_t)rows);
        const bool drop = rng_uniform(c->seed, (uint64_t)i) * 100 < s->percent;
        ((int32_t *)p->slot_row.data)[i] = drop ? -1 : (int32_t)to;
        if (!drop) {
            ((int32_t *)p->row.data)[to] = (int32_t)(i / s->top_k);
            p->kept++;
        }
    }
}

static void name_case(struct check *c, const char *op, const struct shape *s)
{
    check_name(c, "%s N=%lld K=%lld C=%lld dropped=%d%%%s", op, (long long)s->tokens,
               (long long)s->top_k, (long long)s->width, s->percent,
               s->weighted ? " weighted" : "");
}

static double combined(const struct permuted *p, int64_t at)
{
    const struct shape *s = p->shape;
    const int32_t *row = p->slot_row.data;
    double sum = 0;
    for (int64_t slot = at / s->width * s->top_k; slot < (at / s->width + 1) * s->top_k; slot++) {
        const double weight = p->weight != NULL ? p->weight[slot] : 1;
        sum += row[slot] < 0 ? 0 : weight * p->x[row[slot] * s->width + at % s->width];
    }
    return sum;
}

/* <dy, combine(x, weight)> */
static double combine_loss(const void *args)
{
    const struct permuted *p = args;
    double sum = 0;
    for (int64_t i = 0; i < p->shape->tokens * p->shape->width; i++) {
        sum += p->dy[i] * combined(p, i);
    }
    return sum;
}

/* Copies: exact. */
static void run_gather(struct check *c, const void *args)
{
    const struct shape *s = args;
    struct permuted p = {.shape = s};
    name_case(c, "gather_rows", s);
    permute(c, &p);
    const int64_t rows = slots_of(s) + SPARE;
    const struct tensor x = check_random(c, "x", c->dtype, s->tokens, s->width, 1),
                        y = check_tensor(c, "y", c->dtype, rows, s->width),
                        zeros = check_tensor(c, "zeros", c->dtype, 1, s->width);
    const int32_t *row = p.row.data;
    memset(zeros.data, 0, tensor_bytes(&zeros));
    c->ops->gather_rows(c->device, y, x, row);
    for (int64_t r = 0; r < rows; r++) {
        check_exact(c, "y", tensor_rows(&y, r, 1), row[r] < 0 ? zeros : tensor_rows(&x, row[r], 1),
                    "not its token's row");
    }
}

static void run_combine(struct check *c, const void *args)
{
    const struct shape *s = args;
    struct permuted p = {.shape = s};
    name_case(c, "combine_rows", s);
    permute(c, &p);
    const struct tensor x = check_random(c, "x", c->dtype, slots_of(s) + SPARE, s->width, 1),
                        weight = check_random(c, "weight", DTYPE_F32, s->tokens, s->top_k, 1),
                        y = check_tensor(c, "y", c->dtype, s->tokens, s->width);
    double *expected = check_doubles(c, s->tokens * s->width);
    p.x = check_values(c, x);
    p.weight = s->weighted ? check_values(c, weight) : NULL;
    for (int64_t i = 0; i < s->tokens * s->width; i++) {
        expected[i] = combined(&p, i);
    }
    c->ops->combine_rows(c->device, y, x, p.slot_row.data, s->weighted ? weight.data : NULL,
                         s->top_k);
    c->floor = 1; /* of the terms, which may cancel */
    check_close(c, "y", y, expected, CHECK_U * (1 + (double)s->top_k));
    const struct tensor other = check_tensor(c, "y", c->dtype, s->tokens, s->width);
    const bool vectors = check_set_vectors(c, false);
    c->ops->combine_rows(c->device, other, x, p.slot_row.data, s->weighted ? weight.data : NULL,
                         s->top_k);
    check_set_vectors(c, vectors);
    check_as_vectors(c, "y", other, y);
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part at = check_part(s->tokens, i);
        const struct tensor part = check_tensor(c, "y part", c->dtype, at.count, s->width);
        c->ops->combine_rows(c->device, part, x, tensor_rows(&p.slot_row, at.first, at.count).data,
                             s->weighted ? tensor_rows(&weight, at.first, at.count).data : NULL,
                             s->top_k);
        check_exact(c, "y", part, tensor_rows(&y, at.first, at.count), "depends on other rows");
    }
}

static void run_combine_backward(struct check *c, const void *args)
{
    const struct shape *s = args;
    struct permuted p = {.shape = s};
    name_case(c, "combine_rows_backward", s);
    permute(c, &p);
    const int64_t slots = slots_of(s), rows = slots + SPARE, width = s->width;
    const double error = CHECK_U * (2 + sqrt((double)width));
    const struct tensor x = check_random(c, "x", c->dtype, rows, width, 1),
                        weight = check_random(c, "weight", DTYPE_F32, s->tokens, s->top_k, 1),
                        dy = check_random(c, "dy", c->dtype, s->tokens, width, 1),
                        dx = check_tensor(c, "dx", c->dtype, rows, width),
                        dweight = check_tensor(c, "dweight", DTYPE_F32, s->tokens, s->top_k);
    double *dx_expected = check_values(c, dx), *dweight_expected = check_doubles(c, slots);
    const int32_t *row = p.slot_row.data;
    p.x = check_values(c, x), p.weight = check_values(c, weight), p.dy = check_values(c, dy);
    for (int64_t i = 0; i < slots * width; i++) {
        const int64_t slot = i / width, at = row[slot] * width + i % width;
        if (row[slot] >= 0) {
            const double grad = p.dy[slot / s->top_k * width + i % width];
            dx_expected[at] = p.weight[slot] * grad;
            dweight_expected[slot] += grad * p.x[at];
        }
    }
    c->floor = sqrt((double)width); /* of <dy, x>, which may cancel */
    c->ops->combine_rows_backward(c->device, dx, dweight.data, dy, x, row, weight.data, s->top_k);
    check_close(c, "dweight", dweight, dweight_expected, error);
    c->floor = 0;
    check_close(c, "dx", dx, dx_expected, CHECK_U); /* one product; rows of no slot untouched */
    check_gradient(c, "dweight", dweight, NULL, p.weight, combine_loss, &p, error);
    if (p.kept > 0) {
        check_gradient(c, "dx", dx, NULL, p.x, combine_loss, &p, error);
    }
    for (int64_t slot = 0; slot < slots; slot++) {
        if (row[slot] < 0 && check_get(&dweight, slot) != 0) {
            check_fail(c, "dweight", &dweight, slot, check_get(&dweight, slot), 0, "dropped slot");
        }
    }
    const struct tensor as_dx = check_tensor(c, "dx", c->dtype, rows, width),
                        as_dweight = check_tensor(c, "dweight", DTYPE_F32, s->tokens, s->top_k);
    const bool vectors = check_set_vectors(c, false);
    c->ops->combine_rows_backward(c->device, as_dx, as_dweight.data, dy, x, row, weight.data,
                                  s->top_k);
    check_set_vectors(c, vectors);
    check_as_vectors(c, "dx", as_dx, dx);
    check_as_vectors(c, "dweight", as_dweight, dweight);
    struct tensor none = dx;
    none.data = NULL;
    const struct tensor alone = check_tensor(c, "dweight alone", DTYPE_F32, s->tokens, s->top_k);
    c->ops->combine_rows_backward(c->device, none, alone.data, dy, x, row, weight.data, s->top_k);
    check_exact(c, "dweight", alone, dweight, "without dx");
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part at = check_part(s->tokens, i);
        const struct tensor part = check_tensor(c, "dweight part", DTYPE_F32, at.count, s->top_k),
                            sink = check_copy(c, "dx part", dx);
        c->ops->combine_rows_backward(c->device, sink, part.data,
                                      tensor_rows(&dy, at.first, at.count), x,
                                      tensor_rows(&p.slot_row, at.first, at.count).data,
                                      tensor_rows(&weight, at.first, at.count).data, s->top_k);
        check_exact(c, "dx", sink, dx, "depends on other rows");
        check_exact(c, "dweight", part, tensor_rows(&dweight, at.first, at.count), "rows");
    }
}

static void run_all(void **state, void (*run)(struct check *, const void *))
{
    for (int i = 0; i < SHAPES; i++) {
        check_run(*state, run, &shapes[i], CHECK_BF16);
    }
}

static void test_gather(void **state)
{
    run_all(state, run_gather);
}

static void test_combine(void **state)
{
    run_all(state, run_combine);
}

static void test_combine_backward(void **state)
{
    run_all(state, run_combine_backward);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gather),
        cmocka_unit_test(test_combine),
        cmocka_unit_test(test_combine_backward),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
