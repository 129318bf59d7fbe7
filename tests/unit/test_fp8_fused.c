/* Fused FP8 ops: bit for bit what the ops they join give one after the other. */
#include "fp8_check.h"

/* --- norm --- */

struct norm_shape {
    int64_t rows, width;
    bool delta, keeps; /* keeps: y is wanted too */
};
static const struct norm_shape norm_shapes[] = {
    {0, 16, false, false},  {1, 16, true, true},    {9, 144, true, false},
    {33, 272, false, true}, {65, 1040, true, true}, {2, 7168, true, false},
};

static void run_norm(struct check *c, const void *args)
{
    const struct norm_shape *s = args;
    for (int power = 0; power < 2; power++) {
        check_name(c, "fp8 norm_forward %lld x %lld%s%s", (long long)s->rows, (long long)s->width,
                   s->delta ? " delta" : "", s->keeps ? " y" : "");
        const struct tensor x = fp8_check_random(c, "x", s->rows, s->width, s->width == 272),
                            w = check_random(c, "w", DTYPE_BF16, 1, s->width, 1),
                            nothing = {.dtype = DTYPE_BF16};
        struct tensor delta = nothing, sum[2] = {nothing, nothing}, y[2], rstd[2];
        struct fp8_rows q[2];
        const struct fp8_rows none = {0};
        struct fp8_counters count[2] = {{0}, {0}};
        if (s->delta) {
            delta = fp8_check_random(c, "delta", s->rows, s->width, false);
        }
        for (int i = 0; i < 2; i++) {
            y[i] = check_tensor(c, "y", DTYPE_BF16, s->rows, s->width);
            rstd[i] = check_tensor(c, "rstd", DTYPE_F32, s->rows, 1);
            q[i] = fp8_check_rows(c, "q", s->rows, s->width);
            if (s->delta) {
                sum[i] = check_tensor(c, "sum", DTYPE_BF16, s->rows, s->width);
            }
        }
        struct fp8_how how = {.power_of_two = power != 0, .counters = &count[0]};
        c->ops->fp8->norm_forward(c->device, q[0], s->keeps ? y[0] : nothing, sum[0], rstd[0].data,
                                  x, delta, w, 1e-6F, &how);
        how.counters = &count[1];
        c->ops->norm_forward(c->device, y[1], sum[1], rstd[1].data, x, delta, w, 1e-6F);
        c->ops->fp8->quantize(c->device, q[1], none, y[1], NULL, s->rows, NULL, 0, &how);
        fp8_expect_same(c, "q", q[0], q[1]);
        fp8_expect_counters(c, count[0], count[1]);
        check_exact(c, "rstd", rstd[0], rstd[1], "not norm_forward's");
        if (s->keeps) {
            check_exact(c, "y", y[0], y[1], "not norm_forward's");
        }
        if (s->delta) {
            check_exact(c, "sum", sum[0], sum[1], "not norm_forward's");
        }
    }
}

/* --- SwiGLU --- */

struct swiglu_shape {
    int64_t rows, width;
    int64_t groups, offset[5];
    bool kept, special; /* kept: backward reads codes */
};
static const struct swiglu_shape swiglu_shapes[] = {
    {0, 16, 0, {0}, false, false},
    {1, 16, 0, {0}, true, false},
    {7, 48, 0, {0}, true, true},
    {130, 128, 0, {0}, false, false},
    {33, 144, 3, {0, 0, 20, 33}, true, false},
    {300, 208, 4, {0, 128, 129, 129, 300}, true, true},
    {140, 1040, 2, {0, 3, 130}, false, false}, /* the last rows are not there */
    {200, 128, 2, {0, 100, 150}, true, true},
};

static struct tensor gate_up_of(struct check *c, const struct swiglu_shape *s)
{
    struct tensor x = check_random(c, "gate_up", DTYPE_BF16, s->rows, 2 * s->width, 3);
    if (s->special) {
        check_set(&x, s->rows * s->width, (double)INFINITY);
        check_set(&x, s->rows * s->width / 2, (double)NAN);
    }
    return x;
}

static void name_swiglu(struct check *c, const char *op, const struct swiglu_shape *s, bool power)
{
    check_name(c, "fp8 %s R=%lld F=%lld groups=%lld, %s", op, (long long)s->rows,
               (long long)s->width, (long long)s->groups, power ? "2^k" : "amax/448");
}

static void run_swiglu_forward(struct check *c, const void *args)
{
    const struct swiglu_shape *s = args;
    const struct fp8_rows none = {0};
    for (int power = 0; power < 2; power++) {
        name_swiglu(c, "swiglu_forward", s, power != 0);
        const struct tensor gate_up = gate_up_of(c, s),
                            h = check_tensor(c, "h", DTYPE_BF16, s->rows, s->width);
        const struct fp8_rows q = fp8_check_rows(c, "h codes", s->rows, s->width),
                              both = fp8_check_rows(c, "h codes", s->rows, s->width),
                              kept = fp8_check_rows(c, "kept", s->rows, 2 * s->width),
                              h_expected = fp8_check_rows(c, "h expected", s->rows, s->width),
                              k_expected =
                                  fp8_check_rows(c, "kept expected", s->rows, 2 * s->width);
        const int64_t *offset = s->groups > 0 ? s->offset : NULL, groups = s->groups;
        struct fp8_counters count[4] = {{0}, {0}, {0}, {0}};
        struct fp8_how how = {.power_of_two = power != 0, .counters = &count[0]};
        c->ops->fp8->swiglu_forward(c->device, q, none, gate_up, offset, groups, &how);
        how.counters = &count[1];
        c->ops->fp8->swiglu_forward(c->device, both, kept, gate_up, offset, groups, &how);
        c->ops->swiglu_forward(c->device, h, gate_up);
        how.counters = &count[2];
        c->ops->fp8->quantize(c->device, h_expected, none, h, NULL, s->rows, offset, groups, &how);
        count[3] = count[2];
        how.counters = &count[3];
        c->ops->fp8->quantize(c->device, k_expected, none, gate_up, NULL, s->rows, offset, groups,
                              &how);
        fp8_expect_same(c, "h", q, h_expected);
        fp8_expect_same(c, "h with kept", both, h_expected);
        fp8_expect_same(c, "kept", kept, k_expected);
        fp8_expect_counters(c, count[0], count[2]);
        fp8_expect_counters(c, count[1], count[3]);
    }
}

/* gate_up as f32: kept's values are f32 where scales are arbitrary. */
static struct tensor in_f32(struct check *c, const char *name, const double *x, int64_t rows,
                            int64_t cols)
{
    struct tensor out = check_tensor(c, name, DTYPE_F32, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        check_set(&out, i, x[i]);
    }
    return out;
}

static struct tensor rounded(struct check *c, const char *name, struct tensor x)
{
    const struct tensor out = check_tensor(c, name, DTYPE_BF16, x.dim[0], x.dim[1]);
    c->ops->cast(c->device, out, x);
    return out;
}

/* d, dt, ht by the plain ops in f32, rounded, then quantised. */
static void expect_backward(struct check *c, const struct swiglu_shape *s, struct tensor gate_up,
                            struct tensor dh, const struct fp8_rows out[3],
                            const struct fp8_how *how)
{
    const int64_t *offset = s->groups > 0 ? s->offset : NULL, groups = s->groups;
    const struct fp8_how uncounted = {.power_of_two = how->power_of_two};
    const struct tensor grad = check_tensor(c, "gradient", DTYPE_F32, s->rows, 2 * s->width),
                        h = check_tensor(c, "h", DTYPE_F32, s->rows, s->width);
    const struct fp8_rows none = {0};
    c->ops->swiglu_backward(c->device, grad, (struct tensor){0}, dh, gate_up);
    c->ops->swiglu_forward(c->device, h, gate_up);
    const struct tensor narrow = rounded(c, "gradient", grad), narrow_h = rounded(c, "h", h);
    const struct fp8_ops *ops = c->ops->fp8;
    ops->quantize(c->device, out[0], out[1], narrow, NULL, s->rows, offset, groups, how);
    ops->quantize(c->device, none, out[2], narrow_h, NULL, s->rows, offset, groups, &uncounted);
}

static void run_swiglu_backward(struct check *c, const void *args)
{
    const struct swiglu_shape *s = args;
    const int64_t columns = fp8_token_columns(s->rows, s->groups > 0 ? s->groups : 1);
    for (int power = 0; power < 2; power++) {
        name_swiglu(c, "swiglu_backward", s, power != 0);
        const struct tensor gate_up = gate_up_of(c, s),
                            dh = check_random(c, "dh", DTYPE_BF16, s->rows, s->width, 1e-2),
                            nothing = {0};
        struct fp8_rows kept = {0}, out[6];
        const struct fp8_rows none = {0};
        struct fp8_counters count[2] = {{0}, {0}};
        struct fp8_how how = {.power_of_two = power != 0};
        for (int i = 0; i < 2; i++) {
            out[3 * i] = fp8_check_rows(c, "d", s->rows, 2 * s->width);
            out[3 * i + 1] = fp8_check_rows(c, "dt", 2 * s->width, columns);
            out[3 * i + 2] = fp8_check_rows(c, "ht", s->width, columns);
            memset(out[3 * i + 1].code, 0xEE, (size_t)(2 * s->width * columns));
            memset(out[3 * i + 2].code, 0xEE, (size_t)(s->width * columns));
            memset(out[3 * i + 1].scale, 0, (size_t)(fp8_tiles(columns) * out[1].pitch) * 4);
            memset(out[3 * i + 2].scale, 0, (size_t)(fp8_tiles(columns) * out[2].pitch) * 4);
        }
        const double *values = check_values(c, gate_up);
        if (s->kept) {
            kept = fp8_check_rows(c, "kept", s->rows, 2 * s->width);
            c->ops->fp8->quantize(c->device, kept, none, gate_up, NULL, s->rows, NULL, 0, &how);
            values = fp8_numbers(c, kept);
        }
        how.counters = &count[0];
        c->ops->fp8->swiglu_backward(c->device, out[0], out[1], out[2], dh,
                                     s->kept ? nothing : gate_up, kept,
                                     s->groups > 0 ? s->offset : NULL, s->groups, &how);
        how.counters = &count[1];
        expect_backward(c, s, in_f32(c, "gate_up", values, s->rows, 2 * s->width),
                        in_f32(c, "dh", check_values(c, dh), s->rows, s->width), out + 3, &how);
        fp8_expect_same(c, "d", out[0], out[3]);
        fp8_expect_same(c, "dt", out[1], out[4]);
        fp8_expect_same(c, "ht", out[2], out[5]);
        fp8_expect_counters(c, count[0], count[1]);
    }
}

/* --- combine --- */

struct combine_shape {
    int64_t tokens, top_k, width;
    int drop; /* every so many slots, 0: none */
};
static const struct combine_shape combine_shapes[] = {
    {0, 2, 16, 0}, {1, 1, 16, 0}, {7, 2, 144, 3}, {65, 3, 528, 5}, {9, 2, 1040, 0}, {3, 4, 32, 1},
};

static void run_combine(struct check *c, const void *args)
{
    const struct combine_shape *s = args;
    const int64_t slots = s->tokens * s->top_k, rows = slots + 2;
    for (int power = 0; power < 2; power++) {
        check_name(c, "fp8 combine_rows_backward N=%lld K=%lld C=%lld", (long long)s->tokens,
                   (long long)s->top_k, (long long)s->width);
        const struct tensor dy = fp8_check_random(c, "dy", s->tokens, s->width, s->width == 528),
                            x = fp8_check_random(c, "x", rows, s->width, false),
                            weight = check_random(c, "weight", DTYPE_F32, s->tokens, s->top_k, 1),
                            slot_row = check_tensor(c, "slot_row", DTYPE_I32, slots, 1),
                            dx = check_tensor(c, "dx", DTYPE_BF16, rows, s->width),
                            packed = check_tensor(c, "packed", DTYPE_U8, rows,
                                                  fp8_packed_bytes(s->width)),
                            packed_expected = check_copy(c, "packed", packed);
        struct tensor dweight[3];
        struct fp8_counters count[3] = {{0}, {0}, {0}};
        struct fp8_rows q[2];
        const struct fp8_rows none = {0};
        int32_t *row = slot_row.data;
        for (int i = 0; i < 3; i++) {
            dweight[i] = check_tensor(c, "dweight", DTYPE_F32, s->tokens, s->top_k);
        }
        for (int i = 0; i < 2; i++) {
            q[i] = fp8_check_rows(c, "q", rows, s->width);
        }
        for (int64_t i = 0; i < slots; i++) {
            row[i] = s->drop > 0 && i % s->drop == 0
                         ? -1
                         : (int32_t)rng_permute(c->seed, (uint64_t)i, (uint64_t)rows);
        }
        struct fp8_how how = {.power_of_two = power != 0, .counters = &count[0]};
        c->ops->fp8->combine_rows_backward(c->device, q[0], NULL, dweight[0].data, dy, x, row,
                                           weight.data, s->top_k, &how);
        how.counters = &count[1];
        c->ops->fp8->combine_rows_backward(c->device, none, packed.data, dweight[1].data, dy, x,
                                           row, weight.data, s->top_k, &how);
        c->ops->combine_rows_backward(c->device, dx, dweight[2].data, dy, x, row, weight.data,
                                      s->top_k);
        how.counters = &count[2];
        for (int64_t i = 0; i < slots; i++) { /* only rows of slots */
            const struct tensor one = tensor_rows(&dx, row[i] < 0 ? 0 : row[i], 1);
            struct fp8_rows at = q[1];
            if (row[i] >= 0) {
                at.code += row[i] * s->width;
                at.scale += row[i];
                at.rows = 1;
                c->ops->fp8->quantize(c->device, at, none, one, NULL, 1, NULL, 0, &how);
                how.counters = NULL;
                c->ops->fp8->pack(c->device,
                                  (uint8_t *)packed_expected.data +
                                      row[i] * fp8_packed_bytes(s->width),
                                  one, NULL, 1, &how);
                how.counters = &count[2];
            }
        }
        fp8_expect_same(c, "q", q[0], q[1]);
        check_exact(c, "packed", packed, packed_expected, "not pack of dx");
        check_exact(c, "dweight", dweight[0], dweight[2], "not combine_rows_backward's");
        check_exact(c, "dweight", dweight[1], dweight[2], "not combine_rows_backward's");
        fp8_expect_counters(c, count[0], count[2]);
        fp8_expect_counters(c, count[1], count[2]);
    }
}

/* --- tests --- */

static void test_norm(void **state)
{
    for (size_t i = 0; i < sizeof norm_shapes / sizeof norm_shapes[0]; i++) {
        fp8_run(*state, run_norm, &norm_shapes[i], false);
    }
}

static void test_swiglu_forward(void **state)
{
    for (size_t i = 0; i < sizeof swiglu_shapes / sizeof swiglu_shapes[0]; i++) {
        fp8_run(*state, run_swiglu_forward, &swiglu_shapes[i], false);
    }
}

static void test_swiglu_backward(void **state)
{
    for (size_t i = 0; i < sizeof swiglu_shapes / sizeof swiglu_shapes[0]; i++) {
        fp8_run(*state, run_swiglu_backward, &swiglu_shapes[i], false);
    }
}

static void test_combine(void **state)
{
    for (size_t i = 0; i < sizeof combine_shapes / sizeof combine_shapes[0]; i++) {
        fp8_run(*state, run_combine, &combine_shapes[i], false);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_swiglu_forward),
        cmocka_unit_test(test_swiglu_backward),
        cmocka_unit_test(test_combine),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
