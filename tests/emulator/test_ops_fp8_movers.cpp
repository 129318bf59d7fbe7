/* FP8's movers that compute nothing before they quantise: the CPU device's bytes, counters too. */
#include "fp8_case.h"

struct shape {
    int64_t rows, cols, groups;
};
/* The wide one, once per op: it takes as long as all the others. */
static constexpr int64_t WIDE = 7168;
static const shape shapes[] = {{0, 48, 0},   {1, 16, 0},    {127, 48, 1},  {129, 144, 0},
                               {129, 16, 5}, {300, 272, 4}, {129, 32, 70}, {33, WIDE, 2}};

/* Where rows come from: shuffled, some from nowhere. NULL where even. */
static operand &picks(ops_case &c, int64_t rows, int64_t sources, bool wanted)
{
    return wanted ? c.integers("row", rows, 1, -1, (int)sources + 1) : c.none("row");
}

static bool quantize(struct device *device)
{
    bool right = true;
    int number = 0;
    for (const shape &s : shapes) {
        /* q, t, both */
        for (int which = s.cols == WIDE ? 3 : 1; which < 4; which++, number++) {
            const bool two = number % 4 != 0, gather = number % 2 == 0, bad = number % 3 == 0;
            const int64_t sources = gather ? s.rows / 2 + 1 : s.rows;
            ops_case c(device, DTYPE_BF16, SHIFT_NONE, "quantize R=%d C=%d groups=%d %s%s",
                       (int)s.rows, (int)s.cols, (int)s.groups, which & 1 ? "q" : "",
                       which & 2 ? "t" : "");
            operand &x = fp8_numbers(c, "x", sources, s.cols, bad);
            operand &row = picks(c, s.rows, sources, gather);
            operand &offset = fp8_groups_of(c, s.rows, s.groups);
            fp8_operand q = fp8_rows_of(c, "q", s.rows, s.cols, which & 1);
            fp8_operand t = fp8_tokens_of(c, "t", s.rows, s.cols, s.groups, which & 2);
            fp8_hows how = fp8_hows_of(c, two, number % 5 != 4);
            c.upload();
            c.ops->fp8->quantize(device, q.on_cpu(), t.on_cpu(), x.cpu, row.on_cpu<int32_t>(),
                                 s.rows, offset.on_cpu<int64_t>(), s.groups, &how.cpu);
            cuda_fp8_quantize(nullptr, q.on_cuda(), t.on_cuda(), x.cuda, row.on_cuda<int32_t>(),
                              s.rows, offset.on_cuda<int64_t>(), s.groups, &how.cuda);
            c.download();
            right = c.finish() && right;
        }
    }
    return right;
}

static bool transpose(struct device *device)
{
    bool right = true;
    for (const shape &s : shapes) {
        for (int two = s.cols == WIDE; two < 2; two++) {
            ops_case c(device, DTYPE_BF16, SHIFT_NONE, "transpose R=%d C=%d groups=%d", (int)s.rows,
                       (int)s.cols, (int)s.groups);
            operand &x = fp8_numbers(c, "x", s.rows, s.cols, two);
            operand &offset = fp8_groups_of(c, s.rows, s.groups);
            fp8_operand q = fp8_rows_of(c, "q", s.rows, s.cols);
            fp8_operand t = fp8_tokens_of(c, "t", s.rows, s.cols, s.groups);
            fp8_hows how = fp8_hows_of(c, two);
            const struct fp8_how plain = {how.cpu.power_of_two, FP8_ACCUMULATE_DEVICE, nullptr};
            c.ops->fp8->quantize(device, q.on_cpu(), {}, x.cpu, nullptr, s.rows, nullptr, 0,
                                 &plain);
            c.upload();
            c.ops->fp8->transpose(device, t.on_cpu(), q.on_cpu(), offset.on_cpu<int64_t>(),
                                  s.groups, &how.cpu);
            cuda_fp8_transpose(nullptr, t.on_cuda(), q.on_cuda(), offset.on_cuda<int64_t>(),
                               s.groups, &how.cuda);
            c.download();
            right = c.finish() && right;
        }
    }
    return right;
}

/* To the wire, and from it in another order. */
static bool wire(struct device *device)
{
    bool right = true;
    for (const shape &s : shapes) {
        const int64_t bytes = fp8_packed_bytes(s.cols), sources = s.rows / 2 + 1;
        const bool gather = s.groups % 2 == 0;
        ops_case c(device, DTYPE_BF16, SHIFT_NONE, "wire R=%d C=%d", (int)s.rows, (int)s.cols);
        operand &x = fp8_numbers(c, "x", gather ? sources : s.rows, s.cols, s.groups > 0);
        operand &row = picks(c, s.rows, sources, gather),
                &packed = c.poison("packed", DTYPE_U8, s.rows, bytes);
        operand &place = picks(c, s.rows, s.rows, gather && s.rows > 0);
        fp8_operand q = fp8_rows_of(c, "q", s.rows, s.cols);
        fp8_hows how = fp8_hows_of(c, s.rows != 129);
        c.upload();
        c.ops->fp8->pack(device, packed.on_cpu<uint8_t>(), x.cpu, row.on_cpu<int32_t>(), s.rows,
                         &how.cpu);
        c.ops->fp8->unpack(device, q.on_cpu(), packed.on_cpu<uint8_t>(), s.rows,
                           place.on_cpu<int32_t>());
        cuda_fp8_pack(nullptr, packed.on_cuda<uint8_t>(), x.cuda, row.on_cuda<int32_t>(), s.rows,
                      &how.cuda);
        cuda_fp8_unpack(nullptr, q.on_cuda(), packed.on_cuda<uint8_t>(), s.rows,
                        place.on_cuda<int32_t>());
        c.download();
        right = c.finish() && right;
    }
    return right;
}

static bool e5m6(struct device *device)
{
    bool right = true;
    for (const shape &s : shapes) {
        for (int bad = s.cols == WIDE; bad < 2; bad++) {
            ops_case c(device, DTYPE_BF16, SHIFT_NONE, "e5m6 R=%d C=%d", (int)s.rows, (int)s.cols);
            operand &x = fp8_numbers(c, "x", s.rows, s.cols, bad);
            operand &packed = c.poison("packed", DTYPE_U8, s.rows, fp8_e5m6_bytes(s.cols));
            operand &y = c.poison("y", DTYPE_BF16, s.rows, s.cols);
            c.upload();
            c.ops->fp8->e5m6_pack(device, packed.on_cpu<uint8_t>(), x.cpu);
            c.ops->fp8->e5m6_unpack(device, y.cpu, packed.on_cpu<uint8_t>());
            cuda_fp8_e5m6_pack(nullptr, packed.on_cuda<uint8_t>(), x.cuda);
            cuda_fp8_e5m6_unpack(nullptr, y.cuda, packed.on_cuda<uint8_t>());
            c.download();
            if (bad) {
                c.close(y, 0); /* NaN and NaN */
            }
            right = c.finish() && right;
        }
    }
    return right;
}

static bool weights(struct device *device)
{
    const int64_t cases[][3] = {{0, 16, 16}, {1, 48, 16},   {2, 144, 272},
                                {3, 16, 48}, {1, 128, 256}, {1, 272, 1040}};
    bool right = true;
    for (const int64_t(&s)[3] : cases) {
        for (int way = 0; way < 4; way++) {
            const int64_t count = s[0], rows = s[1], cols = s[2], stride = rows * cols + 24;
            const bool turned = way & 1, two = way & 2;
            ops_case c(device, DTYPE_BF16, SHIFT_NONE, "weights %d of %d x %d%s", (int)count,
                       (int)rows, (int)cols, turned ? " turned" : "");
            operand &src = fp8_numbers(c, "src", count, stride, count == 2);
            const int64_t tiles = fp8_tiles(rows) * fp8_tiles(cols);
            operand &code = c.poison("w", DTYPE_U8, count, rows * cols);
            operand &scale = c.poison("w scale", DTYPE_F32, count, tiles);
            operand &t_code = turned ? c.poison("t", DTYPE_U8, count, rows * cols) : c.none("t");
            operand &t_scale =
                turned ? c.poison("t scale", DTYPE_F32, count, tiles) : c.none("t scale");
            fp8_hows how = fp8_hows_of(c, two);
            c.upload();
            c.ops->fp8->quantize_weights(
                device, {code.on_cpu<uint8_t>(), scale.on_cpu<float>(), count, rows, cols},
                {t_code.on_cpu<uint8_t>(), t_scale.on_cpu<float>(), count, cols, rows},
                src.cpu.data, stride, &how.cpu);
            cuda_fp8_quantize_weights(
                nullptr, {code.on_cuda<uint8_t>(), scale.on_cuda<float>(), count, rows, cols},
                {t_code.on_cuda<uint8_t>(), t_scale.on_cuda<float>(), count, cols, rows},
                src.cuda.data, stride, &how.cuda);
            c.download();
            right = c.finish() && right;
        }
    }
    return right;
}

static bool test()
{
    bool right = true;
    for (auto part : {quantize, transpose, wire, e5m6, weights}) {
        right = part(cpu_device()) && right;
    }
    return right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
