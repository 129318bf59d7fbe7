/* embedding, norm, rope and swiglu kernels against the CPU device. */
#include "ops_case.h"

static bool embedding(struct device *device, enum dtype dtype, int shift)
{
    const int64_t shapes[][3] = {{1, 1, 0}, {1, 1, 1}, {7, 5, 13}, {50, 64, 70}, {5, 536, 9}};
    bool right = true;
    for (const int64_t(&s)[3] : shapes) {
        const int64_t vocab = s[0], width = s[1], tokens = s[2];
        ops_case c(device, dtype, shift, "embedding V=%d C=%d N=%d", (int)vocab, (int)width,
                   (int)tokens);
        operand &w = c.random("w", dtype, vocab, width), &y = c.poison("y", dtype, tokens, width);
        operand &dy = c.random("dy", dtype, tokens, width);
        operand &dw = c.random("dw", DTYPE_F32, vocab, width);
        operand &ids = c.integers("ids", tokens, 1, 0, (int)vocab);
        operand &some = c.integers("some", tokens, 1, -1, (int)vocab + 1);
        operand &part = c.random("part", DTYPE_F32, vocab, width);
        scratch work(cuda_embedding_backward_scratch(tokens));
        c.upload();
        c.ops->embedding_forward(device, y.cpu, ids.on_cpu<int32_t>(), w.cpu);
        c.ops->embedding_backward(device, dw.cpu, ids.on_cpu<int32_t>(), dy.cpu);
        c.ops->embedding_backward(device, part.cpu, some.on_cpu<int32_t>(), dy.cpu);
        cuda_embedding_forward(nullptr, y.cuda, ids.on_cuda<int32_t>(), w.cuda);
        cuda_embedding_backward(nullptr, dw.cuda, ids.on_cuda<int32_t>(), dy.cuda, work.data);
        cuda_embedding_backward(nullptr, part.cuda, some.on_cuda<int32_t>(), dy.cuda, work.data);
        c.download();
        c.exact(y);
        c.exact(part);
        c.exact(dw); /* sums in token order on both */
        right = c.finish() && right;
    }
    return right;
}

static bool norm_forward(struct device *device, enum dtype dtype, int shift)
{
    const int64_t shapes[][3] = {{0, 8, 1},   {1, 1, 0},    {3, 7, 1},   {4, 64, 0},
                                 {3, 264, 1}, {2, 2072, 1}, {2, 2072, 0}};
    bool right = true;
    for (const int64_t(&s)[3] : shapes) {
        const int64_t rows = s[0], width = s[1];
        const bool residual = s[2] != 0;
        ops_case c(device, dtype, shift, "norm_forward N=%d C=%d%s", (int)rows, (int)width,
                   residual ? " with delta" : "");
        operand &x = c.random("x", dtype, rows, width), &w = c.random("w", dtype, 1, width);
        operand &delta = residual ? c.random("delta", dtype, rows, width) : c.none("delta");
        operand &y = c.poison("y", dtype, rows, width), &sum = c.poison("sum", dtype, rows, width);
        operand &rstd = c.poison("rstd", DTYPE_F32, rows, 1);
        c.upload();
        c.ops->norm_forward(device, y.cpu, sum.cpu, rstd.on_cpu<float>(), x.cpu, delta.cpu, w.cpu,
                            1e-5F);
        cuda_norm_forward(nullptr, y.cuda, sum.cuda, rstd.on_cuda<float>(), x.cuda, delta.cuda,
                          w.cuda, 1e-5F);
        c.download();
        const double acc = U * (8 + sqrt((double)width));
        c.exact(sum);
        c.close(rstd, acc);
        /* In bf16 a flip of the inner cast is a unit of what the weight then multiplies. */
        c.close(y, acc);
        right = c.finish() && right;
    }
    return right;
}

static bool norm_backward(struct device *device, enum dtype dtype, int shift)
{
    /* 12288 first of the wide ones: 48 KiB of dynamic shared memory, and some static */
    const int64_t shapes[][2] = {{0, 8},    {1, 1},     {5, 7},     {33, 24},
                                 {70, 264}, {2, 12288}, {2, 12808}, {4105, 8}};
    bool right = true;
    for (const int64_t(&s)[2] : shapes) {
        const int64_t rows = s[0], width = s[1];
        if (rows > 1000 && (SLOW || shift != SHIFT_NONE || dtype != DTYPE_BF16)) {
            continue; /* once: blocks of more rows than usual */
        }
        ops_case c(device, dtype, shift, "norm_backward N=%d C=%d", (int)rows, (int)width);
        operand &x = c.random("x", dtype, rows, width), &w = c.random("w", dtype, 1, width);
        operand &dy = c.random("dy", dtype, rows, width), &dx = c.random("dx", dtype, rows, width);
        operand &dw = c.random("dw", DTYPE_F32, 1, width);
        operand &rstd = c.fill("rstd", DTYPE_F32, rows, 1,
                               [](int64_t i) { return 0.9 + 0.01 * (double)(i % 20); });
        scratch work(cuda_norm_backward_scratch(rows, width));
        c.upload();
        c.ops->norm_backward(device, dx.cpu, dw.cpu, dy.cpu, x.cpu, rstd.on_cpu<float>(), w.cpu);
        cuda_norm_backward(nullptr, dx.cuda, dw.cuda, dy.cuda, x.cuda, rstd.on_cuda<float>(),
                           w.cuda, work.data);
        c.download();
        c.close(dx, U * (16 + 2 * sqrt((double)width)));
        c.close(dw, U * (8 + sqrt((double)rows)));
        right = c.finish() && right;
    }
    return right;
}

static bool rope(struct device *device, enum dtype dtype, int shift)
{
    /* rows, columns, then the shape: heads, stride, first, dim, interleaved. Last: MLA's two. */
    const struct {
        int64_t rows, columns;
        struct rope_shape shape;
    } cases[] = {{0, 8, {1, 8, 0, 8, false}},       {3, 2, {1, 2, 0, 2, false}},
                 {3, 7, {1, 2, 3, 4, true}},        {5, 48, {3, 16, 0, 16, false}},
                 {9, 70, {3, 20, 6, 10, true}},     {4, 384, {5, 64, 64, 64, false}},
                 {3, 304, {2, 144, 128, 16, true}}, {6, 88, {1, 16, 72, 16, true}}};
    bool right = true;
    for (const auto &k : cases) {
        for (int inverse = 0; inverse < 2; inverse++) {
            ops_case c(device, dtype, shift, "rope N=%d heads=%d dim=%d%s", (int)k.rows,
                       (int)k.shape.heads, (int)k.shape.dim,
                       k.shape.interleaved ? " interleaved" : "");
            operand &x = c.random("x", dtype, k.rows, k.columns);
            operand &positions = c.integers("positions", k.rows, 1, 0, 11);
            operand &table = c.random("table", DTYPE_F32, 11, k.shape.dim);
            c.upload();
            c.ops->rope(device, x.cpu, positions.on_cpu<int32_t>(), table.on_cpu<float>(), k.shape,
                        inverse != 0);
            cuda_rope(nullptr, x.cuda, positions.on_cuda<int32_t>(), table.on_cuda<float>(),
                      k.shape, inverse != 0);
            c.download();
            c.close(x, 4 * U);
            right = c.finish() && right;
        }
    }
    return right;
}

static bool swiglu(struct device *device, enum dtype dtype, int shift)
{
    const int64_t shapes[][2] = {{0, 8}, {1, 1}, {5, 7}, {3, 40}, {2, 1032}};
    bool right = true;
    for (const int64_t(&s)[2] : shapes) {
        for (int in_place = 0; in_place < 2; in_place++) {
            const int64_t rows = s[0], width = s[1];
            ops_case c(device, dtype, shift, "swiglu R=%d F=%d%s", (int)rows, (int)width,
                       in_place ? " in place" : "");
            operand &gate_up = c.random("gate_up", dtype, rows, 2 * width, 3);
            operand &h = c.poison("h", dtype, rows, width),
                    &again = c.poison("h again", dtype, rows, width),
                    &dh = c.random("dh", dtype, rows, width);
            operand &other = c.poison("dgate_up", dtype, rows, 2 * width);
            operand &dgate_up = in_place ? gate_up : other;
            c.upload();
            c.ops->swiglu_forward(device, h.cpu, gate_up.cpu);
            c.ops->swiglu_backward(device, dgate_up.cpu, again.cpu, dh.cpu, gate_up.cpu);
            cuda_swiglu_forward(nullptr, h.cuda, gate_up.cuda);
            cuda_swiglu_backward(nullptr, dgate_up.cuda, again.cuda, dh.cuda, gate_up.cuda);
            c.download();
            c.close(h, EXP_ERROR + 6 * U);
            c.close(again, EXP_ERROR + 6 * U);
            c.close(dgate_up, EXP_ERROR + 8 * U);
            right = c.finish() && right;
        }
    }
    return right;
}

/* Rows [first, first + count) of a call alone have the bits they have among the others. */
static bool rows_alone(struct device *device, enum dtype dtype, int shift)
{
    const int64_t rows = 11, width = 24, first = 3, count = 5;
    if (shift >= 0) {
        return true; /* a fixed tree per alignment */
    }
    ops_case c(device, dtype, shift, "rows alone");
    operand &x = c.random("x", dtype, rows, width), &delta = c.random("delta", dtype, rows, width);
    operand &w = c.random("w", dtype, 1, width), &dw = c.random("dw", DTYPE_F32, 1, width);
    operand *out[2][6]; /* of all rows, of some */
    for (auto &o : out) {
        o[0] = &c.poison("y", dtype, rows, width);
        o[1] = &c.poison("sum", dtype, rows, width);
        o[2] = &c.poison("rstd", DTYPE_F32, rows, 1);
        o[3] = &c.random("dx", dtype, rows, width);
        o[4] = &c.poison("h", dtype, rows, width / 2);
        o[5] = &c.poison("dgate_up", dtype, rows, width);
    }
    scratch work(cuda_norm_backward_scratch(rows, width));
    c.upload();
    for (int alone = 0; alone < 2; alone++) {
        const auto part = [&](const operand &o) {
            return alone ? tensor_rows(&o.cuda, first, count) : o.cuda;
        };
        const auto to = [&](int i) { return part(*out[alone][i]); };
        float *rstd = (float *)to(2).data;
        cuda_norm_forward(nullptr, to(0), to(1), rstd, part(x), part(delta), w.cuda, 1e-6F);
        cuda_norm_backward(nullptr, to(3), dw.cuda, to(0), to(1), rstd, w.cuda, work.data);
        cuda_swiglu_forward(nullptr, to(4), part(x));
        cuda_swiglu_backward(nullptr, to(5), tensor{}, to(4), part(x));
    }
    c.download();
    for (int i = 0; i < 6; i++) {
        const operand &all = *out[0][i], &some = *out[1][i];
        const size_t row = tensor_bytes(&all.cpu) / (size_t)rows, skip = first * row;
        if (memcmp((const char *)c.got_data(all) + skip, (const char *)c.got_data(some) + skip,
                   count * row) != 0) {
            c.wrong(some, 0, "rows depend on the others");
        }
    }
    return c.right;
}

static bool test()
{
    bool right = true;
    for (auto part : {embedding, norm_forward, norm_backward, rope, swiglu, rows_alone}) {
        right = for_kinds(cpu_device(), part) && right;
    }
    return right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
