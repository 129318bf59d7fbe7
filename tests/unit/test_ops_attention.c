/* Attention. */
#include "attention_check.h"

/* Each sample of the batch alone: the same bits. */
static void run_alone(struct check *c, const struct attention *a)
{
    for (int64_t b = 0; b < a->shape.batch; b++) {
        const int64_t rows = a->shape.sequence, at = b * rows, heads = a->shape.heads;
        struct attention_shape shape = a->shape;
        shape.batch = 1;
        shape.first = shape.first != NULL ? shape.first + at : NULL;
        const struct tensor o = check_tensor(c, "o alone", c->dtype, rows, shape.o_stride),
                            lse = check_tensor(c, "lse alone", DTYPE_F32, heads, rows),
                            dq = check_tensor(c, "dq alone", c->dtype, rows, shape.q_stride),
                            dk = check_tensor(c, "dk alone", c->dtype, rows, shape.k_stride),
                            dk_rope = check_tensor(c, "dk_rope alone", c->dtype, rows,
                                                   shape.k_rope_stride),
                            dv = check_tensor(c, "dv alone", c->dtype, rows, shape.v_stride);
        const void *q = row_at(a->q, at), *k = row_at(a->k, at), *k_rope = row_at(a->k_rope, at),
                   *v = row_at(a->v, at);
        c->ops->attention_forward(c->device, o.data, lse.data, q, k, k_rope, v, &shape);
        c->ops->attention_backward(c->device, dq.data, dk.data, dk_rope.data, dv.data,
                                   row_at(a->d_o, at), row_at(a->o, at), row_at(a->lse, b * heads),
                                   q, k, k_rope, v, &shape);
        check_exact(c, "o", o, tensor_rows(&a->o, at, rows), "depends on other samples");
        check_exact(c, "lse", lse, tensor_rows(&a->lse, b * heads, heads), "depends on others");
        check_exact(c, "dq", dq, tensor_rows(&a->dq, at, rows), "depends on other samples");
        check_exact(c, "dk", dk, tensor_rows(&a->dk, at, rows), "depends on other samples");
        check_exact(c, "dk_rope", dk_rope, tensor_rows(&a->dk_rope, at, rows), "depends on others");
        check_exact(c, "dv", dv, tensor_rows(&a->dv, at, rows), "depends on other samples");
    }
}

static void run_attention(struct check *c, const void *args)
{
    const struct layout *l = args;
    struct attention a = make_case(c, l);
    const struct tensor gradient[4] = {a.dq, a.dk, a.dv, a.dk_rope};
    static const char *const names[4] = {"dq", "dk", "dv", "dk_rope"};
    const double error = attention_error(l);
    const bool rounds = c->dtype == DTYPE_BF16; /* weights and gradients of scores, as factors */
    c->ops->attention_forward(c->device, a.o.data, a.lse.data, a.q.data, a.k.data, a.k_rope.data,
                              a.v.data, &a.shape);
    if (c->threads == 1) { /* two threads have to give the same bits anyway */
        const struct result o = new_result(c, a.o);
        double *lse = check_doubles(c, tensor_count(&a.lse));
        reference_forward(&a, o, lse);
        c->mass = rounds ? o.mass : NULL;
        check_close(c, "o", a.o, o.sum, error);
        c->mass = NULL;
        c->floor = 1;
        check_close(c, "lse", a.lse, lse, error);
    }
    c->ops->attention_backward(c->device, a.dq.data, a.dk.data, a.dk_rope.data, a.dv.data,
                               a.d_o.data, a.o.data, a.lse.data, a.q.data, a.k.data, a.k_rope.data,
                               a.v.data, &a.shape);
    if (c->threads == 1) {
        struct result out[4];
        for (int i = 0; i < 4; i++) {
            out[i] = new_result(c, gradient[i]);
        }
        reference_backward(&a, check_values(c, a.o), check_values(c, a.lse), out);
        for (int i = 0; i < 4; i++) { /* one visible key: its score's gradient cancels to 0 */
            c->floor = l->sequence == 1 || l->window == 1 ? 1 : 0;
            c->mass = rounds ? out[i].mass : NULL;
            check_close(c, names[i], gradient[i], out[i].sum, error);
            if (i != 1 || l->rope < l->qk) { /* there is a dk */
                check_gradient(c, names[i], gradient[i], NULL, a.in[i], attention_loss, &a, error);
            }
        }
    }
    run_alone(c, &a);
}

static void test_attention(void **state)
{
    for (int i = 0; i < LAYOUTS; i++) {
        check_run(*state, run_attention, &layouts[i], CHECK_BF16 | CHECK_VECTORS);
    }
}

/* Three threads take the heads in another order than one or two: the same bits, dk_rope's sum
 * included. */
static void run_threads(struct check *c, const void *args)
{
    const struct attention a = make_case(c, args);
    struct device *three;
    const struct device_options options = {.name = "cpu", .threads = 3};
    assert_int_equal(device_open(&three, &options), STATUS_OK);
    struct device *const devices[2] = {c->device, three};
    for (int i = 0; i < 2; i++) {
        const struct tensor before[6] = {a.o, a.lse, a.dq, a.dk, a.dk_rope, a.dv};
        struct tensor kept[6];
        for (int j = 0; j < 6; j++) {
            kept[j] = check_copy(c, "kept", before[j]);
        }
        c->ops->attention_forward(devices[i], a.o.data, a.lse.data, a.q.data, a.k.data,
                                  a.k_rope.data, a.v.data, &a.shape);
        c->ops->attention_backward(devices[i], a.dq.data, a.dk.data, a.dk_rope.data, a.dv.data,
                                   a.d_o.data, a.o.data, a.lse.data, a.q.data, a.k.data,
                                   a.k_rope.data, a.v.data, &a.shape);
        for (int j = 0; j < 6 && i == 1; j++) {
            check_exact(c, "output", before[j], kept[j], "differs with three threads");
        }
    }
    device_close(three);
}

static void test_threads(void **state)
{
    for (int i = 0; i < LAYOUTS; i++) {
        check_run(*state, run_threads, &layouts[i], CHECK_BF16);
    }
}

static void run_once(struct check *c, const struct attention *a)
{
    c->ops->attention_forward(c->device, a->o.data, a->lse.data, a->q.data, a->k.data,
                              a->k_rope.data, a->v.data, &a->shape);
    c->ops->attention_backward(c->device, a->dq.data, a->dk.data, a->dk_rope.data, a->dv.data,
                               a->d_o.data, a->o.data, a->lse.data, a->q.data, a->k.data,
                               a->k_rope.data, a->v.data, &a->shape);
}

/* What is no number: columns between heads are none, and nobody writes them. */
static int64_t count_bad(struct check *c, struct tensor t)
{
    const double *value = check_values(c, t);
    int64_t count = 0;
    for (int64_t i = 0; i < tensor_count(&t); i++) {
        count += !isfinite(value[i]);
    }
    return count;
}

/* Scores so large that their last bit is more than exp has room for: the largest still has all the
 * weight, and everything is a number. */
static void run_huge(struct check *c, const void *args)
{
    struct attention a = make_case(c, args);
    const struct tensor made[] = {a.o, a.dq, a.dk, a.dv};
    enum { MADE = sizeof made / sizeof made[0] };
    int64_t bad[MADE];
    run_once(c, &a);
    for (int i = 0; i < MADE; i++) {
        bad[i] = count_bad(c, made[i]);
    }
    a.shape.scale *= 1e12F;
    run_once(c, &a);
    for (int i = 0; i < MADE; i++) {
        assert_int_equal(count_bad(c, made[i]), bad[i]);
    }
    const double *lse = check_values(c, a.lse);
    for (int64_t j = 0; j < tensor_count(&a.lse); j++) {
        assert_true(isfinite(lse[j]) && lse[j] > -1e29); /* every query sees itself */
    }
}

static void test_huge(void **state)
{
    for (int i = 0; i < LAYOUTS; i++) {
        check_run(*state, run_huge, &layouts[i], CHECK_BF16 | CHECK_VECTORS);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_huge),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
