/* gather, scatter, copy_columns, combine and its backward against the CPU device. */
#include "ops_case.h"

static bool copies(struct device *device, enum dtype dtype, int shift)
{
    const int64_t shapes[][3] = {{0, 3, 8}, {1, 1, 1}, {9, 4, 7}, {13, 20, 24}, {3, 5, 1048}};
    bool right = true;
    for (const int64_t(&s)[3] : shapes) {
        const int64_t rows = s[0], sources = s[1], width = s[2], wide = width + 16;
        ops_case c(device, dtype, shift, "copies R=%d N=%d C=%d", (int)rows, (int)sources,
                   (int)width);
        operand &x = c.random("x", dtype, sources, width), &y = c.poison("y", dtype, rows, width);
        operand &from = c.integers("from", rows, 1, -1, (int)sources + 1);
        /* scattered: every other row of z, backwards, from rows of a wider tensor */
        operand &z = c.poison("z", dtype, 2 * rows + 1, width);
        operand &source = c.random("source", dtype, rows, wide);
        operand &to = c.fill("to", DTYPE_I32, rows, 1, [=](int64_t i) {
            return i % 3 == 2 ? -1.0 : (double)(2 * (rows - 1 - i));
        });
        operand &columns = c.poison("columns", dtype, rows, wide);
        c.upload();
        c.ops->gather_rows(device, y.cpu, x.cpu, from.on_cpu<int32_t>());
        c.ops->scatter_rows(device, z.cpu, source.cpu.data, wide, to.on_cpu<int32_t>(), rows);
        c.ops->copy_columns(device, columns.cpu, 8, source.cpu, 3, width);
        cuda_gather_rows(nullptr, y.cuda, x.cuda, from.on_cuda<int32_t>());
        cuda_scatter_rows(nullptr, z.cuda, source.cuda.data, wide, to.on_cuda<int32_t>(), rows);
        cuda_copy_columns(nullptr, columns.cuda, 8, source.cuda, 3, width);
        c.download();
        right = c.finish() && right; /* the same bits everywhere */
    }
    return right;
}

/* Tokens' slots in shuffled rows; every fifth dropped, so that some rows belong to nobody. */
static operand &slots(ops_case &c, int64_t tokens, int64_t top_k)
{
    const uint64_t count = (uint64_t)(tokens * top_k);
    return c.fill("slot_row", DTYPE_I32, tokens, top_k, [=](int64_t i) {
        return i % 5 == 4 ? -1.0 : (double)rng_permute(3, (uint64_t)i, count);
    });
}

static bool combine(struct device *device, enum dtype dtype, int shift)
{
    const int64_t shapes[][3] = {{0, 2, 8}, {1, 1, 1}, {7, 3, 5}, {9, 8, 40}, {2, 6, 1032}};
    bool right = true;
    for (const int64_t(&s)[3] : shapes) {
        const int64_t tokens = s[0], top_k = s[1], width = s[2];
        ops_case c(device, dtype, shift, "combine N=%d K=%d C=%d", (int)tokens, (int)top_k,
                   (int)width);
        operand &x = c.random("x", dtype, tokens * top_k, width);
        operand &slot_row = slots(c, tokens, top_k);
        operand &weight = c.random("weight", DTYPE_F32, tokens, top_k);
        operand &y = c.poison("y", dtype, tokens, width);
        operand &plain = c.poison("plain", dtype, tokens, width);
        operand &dy = c.random("dy", dtype, tokens, width);
        operand &dx = c.poison("dx", dtype, tokens * top_k, width);
        operand &dweight = c.poison("dweight", DTYPE_F32, tokens, top_k);
        c.upload();
        const int32_t *rows = slot_row.on_cpu<int32_t>();
        c.ops->combine_rows(device, y.cpu, x.cpu, rows, weight.on_cpu<float>(), top_k);
        c.ops->combine_rows(device, plain.cpu, x.cpu, rows, nullptr, top_k);
        c.ops->combine_rows_backward(device, dx.cpu, dweight.on_cpu<float>(), dy.cpu, x.cpu, rows,
                                     weight.on_cpu<float>(), top_k);
        rows = slot_row.on_cuda<int32_t>();
        cuda_combine_rows(nullptr, y.cuda, x.cuda, rows, weight.on_cuda<float>(), top_k);
        cuda_combine_rows(nullptr, plain.cuda, x.cuda, rows, nullptr, top_k);
        cuda_combine_rows_backward(nullptr, dx.cuda, dweight.on_cuda<float>(), dy.cuda, x.cuda,
                                   rows, weight.on_cuda<float>(), top_k);
        c.download();
        c.close(y, U * (2 + (double)top_k));
        c.exact(plain); /* sums in slot order on both */
        c.exact(dx);
        c.close(dweight, U * (4 + sqrt((double)width)));
        right = c.finish() && right;
    }
    return right;
}

static bool test()
{
    return for_kinds(cpu_device(), copies) & for_kinds(cpu_device(), combine);
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
