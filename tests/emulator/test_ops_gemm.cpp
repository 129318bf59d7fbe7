/* The linear, grouped and router products against the CPU device.
 *
 * Tolerance: both sides add k products in f32 (those of bf16 are exact), the CPU in one order, the
 * kernels in another; each sum of k terms is off by sqrt(k) U of its typical size, so they differ
 * by U (4 + 2 sqrt(k)). Rows must not depend on each other: bit by bit. */
#include "ops_case.h"

static double product_error(int64_t k)
{
    return U * (4 + 2 * sqrt((double)k));
}

static struct tensor rows_of(const struct tensor &t, int64_t first, int64_t count)
{
    return tensor_rows(&t, first, count);
}

enum { FORWARD = 1, INPUT = 2, WEIGHT = 4, ALL = 7 };

struct shape {
    int64_t rows, out, in;
};

static bool linear_shape(struct device *device, enum dtype dtype, int shift, struct shape s,
                         int passes, bool add, bool f32_out)
{
    const enum dtype y_dtype = f32_out ? DTYPE_F32 : dtype;
    ops_case c(device, dtype, shift, "linear N=%d O=%d I=%d%s%s", (int)s.rows, (int)s.out,
               (int)s.in, add ? " add" : "", f32_out ? " f32 out" : "");
    /* Random where one of these passes reads it. */
    auto make = [&](int readers, const char *name, enum dtype type, int64_t rows,
                    int64_t cols) -> operand & {
        return passes & readers ? c.random(name, type, rows, cols)
                                : c.poison(name, type, rows, cols);
    };
    operand &x = make(FORWARD | WEIGHT, "x", dtype, s.rows, s.in);
    operand &w = make(FORWARD | INPUT, "w", dtype, s.out, s.in);
    operand &dy = make(INPUT | WEIGHT, "dy", dtype, s.rows, s.out);
    operand &y = make(add ? FORWARD : 0, "y", y_dtype, s.rows, s.out);
    operand &dx = make(add ? INPUT : 0, "dx", dtype, s.rows, s.in);
    operand &dw = make(WEIGHT, "dw", DTYPE_F32, s.out, s.in);
    c.upload();
    if (passes & FORWARD) {
        c.ops->linear_forward(device, y.cpu, x.cpu, w.cpu, add);
        cuda_linear_forward(nullptr, y.cuda, x.cuda, w.cuda, add);
    }
    if (passes & INPUT) {
        c.ops->linear_backward_input(device, dx.cpu, dy.cpu, w.cpu, add);
        cuda_linear_backward_input(nullptr, dx.cuda, dy.cuda, w.cuda, add);
    }
    if (passes & WEIGHT) {
        c.ops->linear_backward_weight(device, dw.cpu, dy.cpu, x.cpu);
        cuda_linear_backward_weight(nullptr, dw.cuda, dy.cuda, x.cuda);
    }
    c.download();
    c.close(y, product_error(s.in));
    c.close(dx, product_error(s.out));
    c.close(dw, product_error(s.rows));
    return c.finish();
}

/* K of more than twice the stages' tiles, so that the ring goes round. Operands shifted one at a
 * time and the race check: a few shapes. */
static bool linear(struct device *device, enum dtype dtype, int shift)
{
    const struct shape shapes[] = {{7, 5, 13},   {9, 40, 296},  {65, 72, 40},
                                   {1, 1, 1},    {3, 8, 16},    {64, 64, 32},
                                   {70, 300, 9}, {33, 40, 290}, {300, 24, 88}};
    const int count = SLOW || shift >= 0 ? 3 : 9;
    bool right = true;
    for (int i = 0; i < count; i++) {
        right = linear_shape(device, dtype, shift, shapes[i], ALL, i % 2, i % 3 == 2) && right;
    }
    return right;
}

/* Products of enough blocks for large tiles. */
static bool linear_large(struct device *device, enum dtype dtype)
{
    const struct shape up = {129, 8190, 72}, down = {129, 40, 8192}, weight = {40, 129, 8192};
    return SLOW || (linear_shape(device, dtype, SHIFT_NONE, up, FORWARD, true, false) &&
                    linear_shape(device, dtype, SHIFT_NONE, down, INPUT, false, false) &&
                    linear_shape(device, dtype, SHIFT_NONE, weight, WEIGHT, false, false));
}

/* No rows: nothing is written. No k: zeros, or nothing is added. */
static bool linear_empty(struct device *device, enum dtype dtype)
{
    const struct shape shapes[] = {{0, 8, 8}, {5, 0, 8}, {5, 8, 0}};
    bool right = true;
    for (const struct shape &s : shapes) {
        right = linear_shape(device, dtype, SHIFT_NONE, s, ALL, false, false) && right;
        right = linear_shape(device, dtype, SHIFT_NONE, s, ALL, true, false) && right;
    }
    return right;
}

/* Row r of the whole call, of a call with rows [r, rows), and of one with the row alone. */
static bool rows_independent(struct device *device, enum dtype dtype, int shift)
{
    const int64_t rows = SLOW ? 20 : 150, out = 80, in = 136;
    bool right = true;
    for (int64_t first : {1, SLOW ? 19 : 131}) {
        ops_case c(device, dtype, shift, "linear rows from %d on", (int)first);
        operand &x = c.random("x", dtype, rows, in), &w = c.random("w", dtype, out, in);
        operand &dy = c.random("dy", dtype, rows, out);
        operand &y = c.poison("y", dtype, rows, out), &dx = c.poison("dx", dtype, rows, in);
        operand &y2 = c.poison("y2", dtype, rows, out), &dx2 = c.poison("dx2", dtype, rows, in);
        c.upload();
        cuda_linear_forward(nullptr, y.cuda, x.cuda, w.cuda, false);
        cuda_linear_backward_input(nullptr, dx.cuda, dy.cuda, w.cuda, false);
        const int64_t parts[][2] = {{0, first}, {first, 1}, {first + 1, rows - first - 1}};
        for (const int64_t(&p)[2] : parts) {
            cuda_linear_forward(nullptr, rows_of(y2.cuda, p[0], p[1]), rows_of(x.cuda, p[0], p[1]),
                                w.cuda, false);
            cuda_linear_backward_input(nullptr, rows_of(dx2.cuda, p[0], p[1]),
                                       rows_of(dy.cuda, p[0], p[1]), w.cuda, false);
        }
        c.download();
        memcpy(y2.cpu.data, c.got_data(y), tensor_bytes(&y.cpu));
        memcpy(dx2.cpu.data, c.got_data(dx), tensor_bytes(&dx.cpu));
        c.exact(y2);
        c.exact(dx2);
        y.compared = dx.compared = true;
        right = c.finish() && right;
    }
    return right;
}

/* ---- experts ---- */

struct grouping {
    std::vector<int64_t> offset;
    int64_t spare; /* rows past the last expert's */
};

/* The offsets again in device memory. */
static const int64_t *offset_operand(ops_case &c, const struct grouping &g)
{
    operand &o = c.poison("offset", DTYPE_I64, 1, (int64_t)g.offset.size());
    memcpy(o.cpu.data, g.offset.data(), g.offset.size() * sizeof(int64_t));
    return o.on_cuda<int64_t>();
}

static bool grouped_shape(struct device *device, enum dtype dtype, int shift,
                          const struct grouping &g, int64_t out, int64_t in, int64_t gap)
{
    const int64_t experts = (int64_t)g.offset.size() - 1, rows = g.offset.back() + g.spare;
    const int64_t stride = out * in + gap;
    ops_case c(device, dtype, shift, "grouped E=%d R=%d O=%d I=%d gap %d", (int)experts, (int)rows,
               (int)out, (int)in, (int)gap);
    operand &x = c.random("x", dtype, rows, in), &dy = c.random("dy", dtype, rows, out);
    operand &w = c.random("w", dtype, experts, stride);
    operand &y = c.poison("y", dtype, rows, out), &dx = c.poison("dx", dtype, rows, in);
    operand &dw = c.random("dw", DTYPE_F32, experts, stride);
    const int64_t *offset = offset_operand(c, g), *own = g.offset.data();
    c.upload();
    c.ops->grouped_forward(device, y.cpu, x.cpu, w.cpu.data, stride, own, experts);
    c.ops->grouped_backward_input(device, dx.cpu, dy.cpu, w.cpu.data, stride, own, experts);
    c.ops->grouped_backward_weight(device, dw.on_cpu<float>(), stride, dy.cpu, x.cpu, own, experts);
    cuda_grouped_forward(nullptr, y.cuda, x.cuda, w.cuda.data, stride, offset, experts);
    cuda_grouped_backward_input(nullptr, dx.cuda, dy.cuda, w.cuda.data, stride, offset, experts);
    cuda_grouped_backward_weight(nullptr, dw.on_cuda<float>(), stride, dy.cuda, x.cuda, offset,
                                 experts);
    c.download();
    c.close(y, product_error(in));
    c.close(dx, product_error(out));
    c.close(dw, product_error(rows));
    return c.finish();
}

static bool grouped(struct device *device, enum dtype dtype, int shift)
{
    const struct grouping some = {{0, 5, 5, 70, 135, 135, 136, 140}, 4}, none = {{0, 0, 0}, 3},
                          one = {{0, 33}, 0}, late = {{0, 0, 0, 3}, 0};
    bool right = grouped_shape(device, dtype, shift, late, 24, 16, 0);
    right = grouped_shape(device, dtype, shift, none, 8, 16, 8) && right;
    if (!SLOW && shift < 0) {
        right = grouped_shape(device, dtype, shift, some, 72, 88, 8) && right;
        right = grouped_shape(device, dtype, shift, some, 13, 7, 1) && right;
    }
    if (!SLOW) {
        right = grouped_shape(device, dtype, shift, one, 40, 328, 0) && right;
    }
    return right;
}

/* More experts than lanes; every expert's rows start anywhere. A row's result is the same in a call
 * of its expert alone. */
static bool many_experts(struct device *device, enum dtype dtype)
{
    struct grouping g = {{0}, 30};
    const int64_t out = 24, in = 40;
    const uint64_t key = rng_key(7, "rows of experts");
    for (int e = 0; e < (SLOW ? 34 : 75); e++) {
        const double u = rng_uniform(key, (uint64_t)e);
        g.offset.push_back(g.offset.back() + (int64_t)(u < 0.4 ? 0 : u * (e % 9 == 0 ? 90 : 6)));
    }
    const int64_t experts = (int64_t)g.offset.size() - 1, rows = g.offset.back() + g.spare;
    bool right = grouped_shape(device, dtype, SHIFT_NONE, g, out, in, 0);
    ops_case c(device, dtype, SHIFT_NONE, "an expert alone");
    operand &x = c.random("x", dtype, rows, in), &w = c.random("w", dtype, experts * out, in);
    operand &y = c.poison("y", dtype, rows, out), &alone = c.poison("alone", dtype, rows, out);
    const int64_t *offset = offset_operand(c, g);
    c.upload();
    cuda_grouped_forward(nullptr, y.cuda, x.cuda, w.cuda.data, out * in, offset, experts);
    for (int64_t e = 0; e < experts; e++) {
        const int64_t first = g.offset[(size_t)e], count = g.offset[(size_t)e + 1] - first;
        cuda_linear_forward(nullptr, rows_of(alone.cuda, first, count),
                            rows_of(x.cuda, first, count), rows_of(w.cuda, e * out, out), false);
    }
    c.download();
    memcpy(alone.cpu.data, c.got_data(y), tensor_bytes(&y.cpu));
    c.exact(alone);
    y.compared = true;
    return c.finish() && right;
}

static bool router(struct device *device, enum dtype dtype, int shift)
{
    const int64_t shapes[][3] = {{5, 8, 32}, {66, 7, 40}, {20, 160, 72}};
    bool right = true;
    for (const int64_t(&s)[3] : shapes) {
        const int64_t tokens = s[0], experts = s[1], width = s[2];
        ops_case c(device, dtype, shift, "router N=%d E=%d C=%d", (int)tokens, (int)experts,
                   (int)width);
        operand &x = c.random("x", dtype, tokens, width), &w = c.random("w", dtype, experts, width);
        operand &logits = c.poison("logits", DTYPE_F32, tokens, experts);
        operand &dlogits = c.random("dlogits", DTYPE_F32, tokens, experts);
        operand &dx = c.random("dx", dtype, tokens, width);
        operand &dw = c.random("dw", DTYPE_F32, experts, width);
        c.upload();
        c.ops->router_logits(device, logits.cpu, x.cpu, w.cpu);
        c.ops->router_logits_backward(device, dx.cpu, dw.cpu, dlogits.cpu, x.cpu, w.cpu,
                                      router_chosen{});
        cuda_router_logits(nullptr, logits.cuda, x.cuda, w.cuda);
        cuda_router_logits_backward(nullptr, dx.cuda, dw.cuda, dlogits.cuda, x.cuda, w.cuda);
        c.download();
        c.close(logits, product_error(width));
        c.close(dx, product_error(experts));
        c.close(dw, product_error(tokens));
        right = c.finish() && right;
    }
    return right;
}

/* Hopper's pipeline: 9 and more stages of 64 k, tiles of C cut on both sides, both widths of tiles
 * (a grid of 132 blocks and more takes the wide ones, and each block several of them). */
static bool hopper(struct device *device)
{
    const struct grouping ragged = {{0, 70, 70, 71, 135, 335, 400, 640}, 8};
    const struct shape narrow = {150, 136, 600}, back = {150, 600, 136}, tall = {600, 136, 152};
    bool right = linear_shape(device, DTYPE_BF16, SHIFT_NONE, narrow, FORWARD, true, true);
    right = linear_shape(device, DTYPE_BF16, SHIFT_NONE, back, INPUT, true, false) && right;
    right = linear_shape(device, DTYPE_BF16, SHIFT_NONE, tall, WEIGHT, true, false) && right;
    right = grouped_shape(device, DTYPE_BF16, SHIFT_NONE, ragged, 136, 200, 64) && right;
    if (!SLOW) {
        const struct shape up = {260, 11600, 64}, down = {260, 64, 11600},
                           weight = {72, 264, 11600};
        right = linear_shape(device, DTYPE_BF16, SHIFT_NONE, up, FORWARD, true, false) && right;
        right = linear_shape(device, DTYPE_BF16, SHIFT_NONE, down, INPUT, false, false) && right;
        right = linear_shape(device, DTYPE_BF16, SHIFT_NONE, weight, WEIGHT, true, false) && right;
    }
    return right;
}

/* Of bf16, whichever kernel takes it. */
static bool narrow(struct device *device)
{
    bool right = rows_independent(device, DTYPE_BF16, SHIFT_NONE);
    right = linear_empty(device, DTYPE_BF16) && right;
    return many_experts(device, DTYPE_BF16) && right;
}

static bool test()
{
    struct device *device = cpu_device();
    side_set_capability(8); /* bf16 by gemm_mma */
    bool right = for_kinds(device, linear);
    right = for_kinds(device, grouped) && right;
    right = for_kinds(device, router) && right;
    right = narrow(device) && right;
    for (enum dtype dtype : {DTYPE_F32, DTYPE_BF16}) {
        right = rows_independent(device, dtype, SHIFT_ALL) && right;
        right = linear_large(device, dtype) && right;
    }
    right = rows_independent(device, DTYPE_F32, SHIFT_NONE) && right;
    right = linear_empty(device, DTYPE_F32) && right;
    right = many_experts(device, DTYPE_F32) && right;
    side_set_capability(9); /* by gemm_sm90 where operands are aligned: of results, anything goes */
    for (int shift : {(int)SHIFT_NONE, 0, 1, 3, 4, 5}) {
        right = linear(device, DTYPE_BF16, shift) && right;
        right = grouped(device, DTYPE_BF16, shift) && right;
    }
    right = narrow(device) && right;
    return hopper(device) && right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
