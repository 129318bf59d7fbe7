/* The FP8 products against sums in double precision.
 *
 * Bound, element by element: products of codes are exact in f32; with S the sum of their absolute
 * values times their scales, a step of 128 in f32 is off by at most 127 U of its part of S, the
 * scales cost 3 U more and each of T steps U of S; bf16 half a unit of what is stored. Hopper's
 * tensor cores keep 13 bits behind the point of the largest of a wgmma's 32 products and the sum so
 * far, which are cut off: 33 2^-13 of S for each of four wgmma, which is what a device must keep
 * and EMU_HOPPER_FP8 models. Small integers are exact either way and compared with ==.
 *
 * Rows must not depend on each other, nor results on the tile: bit by bit. */
#include "kernels/cuda/cuda_ops_fp8.h"
#include "ops_case.h"

extern "C" {
#include "kernels/base/small_float.h"
}

#ifdef REAL_CUDA
static const bool COARSE = true;
#else
static const bool COARSE = getenv("EMU_HOPPER_FP8") != nullptr;
#endif

enum kind { RANDOM, INTEGERS };

struct group_rows {
    std::vector<int64_t> offset; /* empty: one group of all rows */
    int64_t spare;               /* rows past the last group's */

    int64_t groups() const
    {
        return offset.empty() ? 1 : (int64_t)offset.size() - 1;
    }
    int64_t begin(int64_t g) const
    {
        return offset.empty() ? 0 : offset[(size_t)g];
    }
    int64_t end(int64_t g, int64_t rows) const
    {
        return offset.empty() ? rows : offset[(size_t)g + 1];
    }
};

/* ---- operands ---- */

/* Codes of a matrix, and scales of its tiles, in device memory; cells that nobody wrote are NaN. */
struct coded {
    operand *code, *scale;
    int64_t rows, cols, pitch;

    struct fp8_rows on_cuda() const
    {
        return {code->on_cuda<uint8_t>(), scale->on_cuda<float>(), rows, cols, pitch};
    }
    double value(int64_t row, int64_t col) const
    {
        return (double)e4m3_to_float(code->on_cpu<uint8_t>()[row * cols + col]);
    }
    float row_scale(int64_t row, int64_t col) const
    {
        return scale->on_cpu<float>()[col / FP8_TILE * pitch + row];
    }
};

/* INTEGERS: sparse -1, 0 and 1. */
static uint8_t random_code(enum kind kind, uint64_t key, int64_t i)
{
    const double u = rng_uniform(key, (uint64_t)i);
    if (kind == INTEGERS) {
        return e4m3_from_float(u < 0.15 ? -1.0F : u < 0.3 ? 1.0F : 0.0F);
    }
    const uint8_t any = (uint8_t)(u * 256);
    return i % 7 == 0 && any % 128 != FP8_NAN
               ? any
               : e4m3_from_float((float)(60 * rng_normal(key, (uint64_t)i)));
}

/* INTEGERS: powers of two. */
static float random_scale(enum kind kind, uint64_t key, int64_t i)
{
    const double u = rng_uniform(key, (uint64_t)i + (1U << 30));
    return kind == INTEGERS ? (u < 0.5 ? 1.0F : 2.0F) : (float)exp2(6 * u - 8);
}

static struct coded row_tiles_of(ops_case &c, const char *name, enum kind kind, int64_t rows,
                                 int64_t cols)
{
    const int64_t pitch = (rows + 7) / 4 * 4;
    const uint64_t key = rng_key(7, name);
    struct coded x = {&c.poison(name, DTYPE_U8, rows, cols),
                      &c.poison("scales", DTYPE_F32, fp8_tiles(cols), pitch), rows, cols, pitch};
    for (int64_t i = 0; i < rows * cols; i++) {
        x.code->on_cpu<uint8_t>()[i] = random_code(kind, key, i);
    }
    for (int64_t i = 0; i < fp8_tiles(cols) * pitch; i++) {
        if (i % pitch < rows) {
            x.scale->on_cpu<float>()[i] = random_scale(kind, key, i);
        }
    }
    return x;
}

struct weights {
    operand *code, *scale;
    int64_t matrices, rows, cols;

    struct fp8_weights on_cuda() const
    {
        return {code->on_cuda<uint8_t>(), scale->on_cuda<float>(), matrices, rows, cols};
    }
};

static struct weights weights_of(ops_case &c, enum kind kind, int64_t matrices, int64_t rows,
                                 int64_t cols)
{
    const int64_t tiles = matrices * fp8_tiles(rows) * fp8_tiles(cols);
    const uint64_t key = rng_key(7, "w");
    struct weights w = {&c.poison("w", DTYPE_U8, matrices, rows * cols),
                        &c.poison("w scales", DTYPE_F32, 1, tiles), matrices, rows, cols};
    for (int64_t i = 0; i < matrices * rows * cols; i++) {
        w.code->on_cpu<uint8_t>()[i] = random_code(kind, key, i);
    }
    for (int64_t i = 0; i < tiles; i++) {
        w.scale->on_cpu<float>()[i] = random_scale(kind, key, i);
    }
    return w;
}

/* Rows r of x[R,C] transposed, group by group, as ops_fp8.h has it; columns of nobody are NaN. */
static struct coded transposed_of(ops_case &c, const char *name, enum kind kind, int64_t channels,
                                  int64_t rows, const struct group_rows &groups)
{
    const int64_t cols = fp8_token_columns(rows, groups.groups()) + 16;
    const int64_t pitch = (channels + 3) / 4 * 4;
    const uint64_t key = rng_key(7, name);
    struct coded x = {&c.poison(name, DTYPE_U8, channels, cols),
                      &c.poison("scales", DTYPE_F32, fp8_tiles(cols), pitch), channels, cols,
                      pitch};
    int64_t begin = 0;
    for (int64_t g = 0; g < groups.groups(); g++) {
        const int64_t count = groups.end(g, rows) - groups.begin(g);
        const int64_t end = begin + fp8_tiles(count) * FP8_TILE;
        for (int64_t i = 0; i < channels; i++) {
            for (int64_t j = begin; j < end; j++) {
                x.code->on_cpu<uint8_t>()[i * cols + j] =
                    j - begin < count ? random_code(kind, key, i * cols + j) : 0;
            }
            for (int64_t t = begin / FP8_TILE; t < end / FP8_TILE; t++) {
                x.scale->on_cpu<float>()[t * pitch + i] = random_scale(kind, key, t * pitch + i);
            }
        }
        begin = end;
    }
    return x;
}

static const int64_t *offsets_on_cuda(ops_case &c, const struct group_rows &g)
{
    if (g.offset.empty()) {
        return nullptr;
    }
    operand &o = c.poison("offset", DTYPE_I64, 1, (int64_t)g.offset.size());
    memcpy(o.cpu.data, g.offset.data(), g.offset.size() * sizeof(int64_t));
    return o.on_cuda<int64_t>();
}

/* ---- reference ---- */

struct expected {
    std::vector<double> value, sum; /* sum: of absolute values; < 0: not to be written */
    int64_t steps;                  /* tiles of the longest sum */
};

/* Scaled values of a row as doubles. */
template <class F> static std::vector<double> row_of(int64_t cols, F value)
{
    std::vector<double> row((size_t)cols);
    for (int64_t i = 0; i < cols; i++) {
        row[(size_t)i] = value(i);
    }
    return row;
}

static void dot(double *value, double *sum, const double *a, const double *b, int64_t count)
{
    double v = 0, s = 0;
    for (int64_t i = 0; i < count; i++) {
        v += a[i] * b[i];
        s += fabs(a[i] * b[i]);
    }
    *value = v;
    *sum = s;
}

static struct expected linear_reference(const struct coded &x, const struct weights &w,
                                        const struct group_rows &groups)
{
    struct expected e = {std::vector<double>((size_t)(x.rows * w.rows), 0),
                         std::vector<double>((size_t)(x.rows * w.rows), -1), fp8_tiles(x.cols)};
    for (int64_t g = 0; g < groups.groups(); g++) {
        std::vector<std::vector<double>> columns;
        for (int64_t n = 0; n < w.rows; n++) {
            const uint8_t *code = w.code->on_cpu<uint8_t>() + (g * w.rows + n) * w.cols;
            const float *scale = w.scale->on_cpu<float>() +
                                 (g * fp8_tiles(w.rows) + n / FP8_TILE) * fp8_tiles(w.cols);
            columns.push_back(row_of(w.cols, [&](int64_t k) {
                return (double)e4m3_to_float(code[k]) * (double)scale[k / FP8_TILE];
            }));
        }
        for (int64_t m = groups.begin(g); m < groups.end(g, x.rows); m++) {
            const std::vector<double> row = row_of(
                x.cols, [&](int64_t k) { return x.value(m, k) * (double)x.row_scale(m, k); });
            for (int64_t n = 0; n < w.rows; n++) {
                const size_t at = (size_t)(m * w.rows + n);
                dot(&e.value[at], &e.sum[at], row.data(), columns[(size_t)n].data(), x.cols);
            }
        }
    }
    return e;
}

/* dw of group g stands at g * stride. */
static struct expected weight_reference(const struct coded &dyt, const struct coded &xt,
                                        const struct group_rows &groups, int64_t rows,
                                        int64_t stride)
{
    const size_t count = (size_t)(groups.groups() * stride);
    struct expected e = {std::vector<double>(count, 0), std::vector<double>(count, -1), 1};
    int64_t begin = 0;
    for (int64_t g = 0; g < groups.groups(); g++) {
        const int64_t tokens = groups.end(g, rows) - groups.begin(g);
        auto part = [&](const struct coded &x, int64_t row) {
            return row_of(tokens, [&](int64_t k) {
                return x.value(row, begin + k) * (double)x.row_scale(row, begin + k);
            });
        };
        std::vector<std::vector<double>> columns;
        for (int64_t n = 0; n < xt.rows && tokens > 0; n++) {
            columns.push_back(part(xt, n));
        }
        for (int64_t m = 0; m < dyt.rows && tokens > 0; m++) {
            const std::vector<double> row = part(dyt, m);
            for (int64_t n = 0; n < xt.rows; n++) {
                const size_t at = (size_t)(g * stride + m * xt.rows + n);
                dot(&e.value[at], &e.sum[at], row.data(), columns[(size_t)n].data(), tokens);
            }
        }
        e.steps = std::max(e.steps, fp8_tiles(tokens));
        begin += fp8_tiles(tokens) * FP8_TILE;
    }
    return e;
}

/* `old`: what the sums are added to, or nothing. */
static void compare(ops_case &c, operand &o, const struct expected &e, enum kind kind, bool add)
{
    const bool narrow = o.cpu.dtype == DTYPE_BF16;
    const size_t width = dtype_bytes(o.cpu.dtype);
    const double step = COARSE ? 4 * 33 * 0x1p-13 : 127 * U;
    const double error = step + ((double)e.steps + 4) * U;
    o.compared = true;
    for (int64_t i = 0; i < tensor_count(&o.cpu); i++) {
        const unsigned char *got = (const unsigned char *)c.got_data(o) + (size_t)i * width;
        const unsigned char *before = o.on_cpu<unsigned char>() + (size_t)i * width;
        if (e.sum[(size_t)i] < 0) {
            if (memcmp(got, before, width) != 0) {
                return c.wrong(o, i, "written, though of no group");
            }
            continue;
        }
        const double old = add ? value_at(o.cpu, o.cpu.data, i) : 0;
        const double want = e.value[(size_t)i] + old, have = value_at(o.cpu, c.got_data(o), i);
        const double bound = kind == INTEGERS ? 0
                                              : error * e.sum[(size_t)i] + U * fabs(want) +
                                                    (narrow ? 0x1.02p-8 * fabs(want) : 0);
        if (isnan(want) ? !isnan(have) : !(fabs(have - want) <= bound)) {
            char why[120];
            snprintf(why, sizeof why, "want %.9g within %.3g", want, bound);
            return c.wrong(o, i, why);
        }
    }
}

/* ---- cases ---- */

/* Few blocks, so that each has several tiles. */
static struct cuda_fp8_by by_tile(int tile)
{
    return {tile, 1 + tile % 3};
}

/* y of every tile, or of the portable kernel: the same bits from all of Hopper's. */
struct linear_shape {
    int64_t rows, out, in;
    struct group_rows groups;
    enum kind kind;
    bool add;
    enum dtype y;
};

static bool linear(struct device *device, const struct linear_shape &s, bool hopper)
{
    ops_case c(device, DTYPE_BF16, SHIFT_NONE, "fp8 linear R=%d O=%d I=%d G=%d%s%s%s%s",
               (int)s.rows, (int)s.out, (int)s.in, (int)s.groups.groups(), s.add ? " add" : "",
               s.y == DTYPE_F32 ? " f32" : "", s.kind == INTEGERS ? " exact" : "",
               hopper ? "" : " portable");
    const int tiles = hopper ? cuda_fp8_tiles(false, -1, nullptr) : 0;
    const struct coded x = row_tiles_of(c, "x", s.kind, s.rows, s.in);
    const struct weights w = weights_of(c, s.kind, s.groups.groups(), s.out, s.in);
    const int64_t *offset = offsets_on_cuda(c, s.groups);
    std::vector<operand *> y;
    for (int i = 0; i <= tiles; i++) { /* the last: whatever the launcher takes */
        y.push_back(s.add ? (s.kind == INTEGERS ? &c.fill("y", s.y, s.rows, s.out,
                                                          [](int64_t at) { return at % 5 - 2; })
                                                : &c.random("y", s.y, s.rows, s.out))
                          : &c.poison("y", s.y, s.rows, s.out));
    }
    if (s.kind == RANDOM && s.rows > 9 && s.in > 0) { /* a bad tile: its row alone is NaN */
        x.code->on_cpu<uint8_t>()[9 * s.in + 3] = FP8_NAN;
    }
    c.upload();
    const struct expected e = linear_reference(x, w, s.groups);
    for (int i = 0; i < tiles; i++) {
        if (!cuda_fp8_linear_by(nullptr, by_tile(i), y[(size_t)i]->cuda, x.on_cuda(), w.on_cuda(),
                                offset, s.add)) {
            printf("%s: WRONG, tile %d is refused\n", c.what, i);
            return false;
        }
    }
    cuda_fp8_linear(nullptr, y.back()->cuda, x.on_cuda(), w.on_cuda(), offset, s.add);
    c.download();
    for (operand *o : y) {
        compare(c, *o, e, s.kind, s.add);
        if (memcmp(c.got_data(*o), c.got_data(*y[0]), tensor_bytes(&o->cpu)) != 0) {
            printf("%s: WRONG, tiles give different bits\n", c.what);
            c.right = false;
        }
    }
    return c.finish();
}

struct weight_shape {
    int64_t out, in, rows, gap;
    struct group_rows groups;
    enum kind kind;
};

static bool linear_weight(struct device *device, const struct weight_shape &s, bool hopper)
{
    ops_case c(device, DTYPE_BF16, SHIFT_NONE, "fp8 linear_weight O=%d I=%d R=%d G=%d%s%s",
               (int)s.out, (int)s.in, (int)s.rows, (int)s.groups.groups(),
               s.kind == INTEGERS ? " exact" : "", hopper ? "" : " portable");
    const int tiles = hopper ? cuda_fp8_tiles(true, -1, nullptr) : 0;
    const int64_t stride = s.out * s.in + s.gap, groups = s.groups.groups();
    const struct coded dyt = transposed_of(c, "dyt", s.kind, s.out, s.rows, s.groups);
    const struct coded xt = transposed_of(c, "xt", s.kind, s.in, s.rows, s.groups);
    const int64_t *offset = offsets_on_cuda(c, s.groups);
    std::vector<operand *> dw;
    for (int i = 0; i <= tiles; i++) {
        dw.push_back(s.kind == INTEGERS ? &c.fill("dw", DTYPE_F32, groups, stride,
                                                  [](int64_t at) { return at % 5 - 2; })
                                        : &c.random("dw", DTYPE_F32, groups, stride));
    }
    c.upload();
    const struct expected e = weight_reference(dyt, xt, s.groups, s.rows, stride);
    for (int i = 0; i <= tiles; i++) {
        float *to = dw[(size_t)i]->on_cuda<float>();
        if (i == tiles) {
            cuda_fp8_linear_weight(nullptr, to, stride, dyt.on_cuda(), xt.on_cuda(), offset, groups,
                                   s.rows);
        } else if (!cuda_fp8_linear_weight_by(nullptr, by_tile(i), to, stride, dyt.on_cuda(),
                                              xt.on_cuda(), offset, groups, s.rows)) {
            printf("%s: WRONG, tile %d is refused\n", c.what, i);
            return false;
        }
    }
    c.download();
    for (operand *o : dw) {
        compare(c, *o, e, s.kind, true);
        if (memcmp(c.got_data(*o), c.got_data(*dw[0]), tensor_bytes(&o->cpu)) != 0) {
            printf("%s: WRONG, tiles give different bits\n", c.what);
            c.right = false;
        }
    }
    return c.finish();
}

static bool linears(struct device *device, bool hopper)
{
    const struct group_rows none = {{}, 0}, empty = {{0, 0, 0}, 3}, late = {{0, 0, 0, 1}, 0},
                            ragged = {{0, 5, 5, 70, 71, 71, 139, 150}, 6},
                            large = {{0, 1, 300, 300, 320}, 2};
    const struct linear_shape slow[] = {
        {70, 96, 272, none, RANDOM, false, DTYPE_BF16},
        {9, 40, 2208, none, INTEGERS, false, DTYPE_BF16}, /* below */
        {7, 40, 144, {{0, 3, 3, 6}, 1}, INTEGERS, true, DTYPE_BF16},
        {9, 40, 144, none, RANDOM, false, DTYPE_F32}};
    /* 2 x 8 + 1 steps and more, so that every ring goes round twice; edges on all sides; blocks of
     * w inside tiles; rows of y not aligned to 8 or to 4 elements. */
    const struct linear_shape shapes[] = {{1, 24, 16, none, RANDOM, false, DTYPE_BF16},
                                          {70, 136, 2208, none, RANDOM, false, DTYPE_BF16},
                                          {65, 401, 144, none, RANDOM, true, DTYPE_BF16},
                                          {33, 132, 528, none, RANDOM, false, DTYPE_BF16},
                                          {156, 264, 272, ragged, RANDOM, false, DTYPE_BF16},
                                          {156, 200, 400, ragged, INTEGERS, true, DTYPE_BF16},
                                          {322, 200, 144, large, INTEGERS, false, DTYPE_BF16},
                                          {3, 40, 32, empty, RANDOM, false, DTYPE_BF16},
                                          {1, 128, 128, late, RANDOM, true, DTYPE_BF16},
                                          {0, 128, 128, none, RANDOM, false, DTYPE_BF16},
                                          {70, 136, 528, none, RANDOM, false, DTYPE_F32},
                                          {65, 401, 144, none, RANDOM, true, DTYPE_F32},
                                          {33, 128, 144, none, INTEGERS, false, DTYPE_F32}};
    bool right = true;
    if (SLOW) {
        for (const struct linear_shape &s : slow) {
            right = linear(device, s, hopper) && right;
        }
        return right;
    }
    for (const struct linear_shape &s : shapes) {
        right = linear(device, s, hopper) && right;
    }
    return right;
}

static bool linear_weights(struct device *device, bool hopper)
{
    const struct group_rows none = {{}, 0}, empty = {{0, 0, 0}, 0}, late = {{0, 0, 0, 1}, 0},
                            ragged = {{0, 5, 5, 133, 134, 134, 400}, 0};
    const struct weight_shape slow[] = {{70, 96, 300, 0, none, RANDOM},
                                        {24, 40, 2200, 0, none, INTEGERS},
                                        {40, 24, 140, 8, {{0, 3, 3, 140}, 0}, INTEGERS}};
    const struct weight_shape shapes[] = {
        {136, 72, 2200, 0, none, RANDOM},     {264, 200, 400, 8, ragged, RANDOM},
        {136, 200, 400, 8, ragged, INTEGERS}, {65, 41, 100, 3, none, RANDOM},
        {40, 24, 0, 0, empty, RANDOM},        {24, 40, 1, 0, late, RANDOM}};
    bool right = true;
    if (SLOW) {
        for (const struct weight_shape &s : slow) {
            right = linear_weight(device, s, hopper) && right;
        }
        return right;
    }
    for (const struct weight_shape &s : shapes) {
        right = linear_weight(device, s, hopper) && right;
    }
    return right;
}

/* More groups than lanes. */
static bool many_groups(struct device *device, bool hopper)
{
    struct group_rows g = {{0}, 5};
    const uint64_t key = rng_key(7, "rows of experts");
    for (int e = 0; e < (SLOW ? 34 : 70); e++) {
        const double u = rng_uniform(key, (uint64_t)e);
        g.offset.push_back(g.offset.back() + (int64_t)(u < 0.4 ? 0 : u * (e % 9 == 0 ? 70 : 5)));
    }
    const int64_t rows = g.offset.back() + g.spare;
    const struct linear_shape forward = {rows, 24, 144, g, INTEGERS, false};
    const struct weight_shape weight = {24, 40, rows, 0, g, INTEGERS};
    return linear(device, forward, hopper) && linear_weight(device, weight, hopper);
}

/* A row among others, and alone: of its group, of a dense product with the same w. */
static bool rows_alone(struct device *device)
{
    const int64_t rows = SLOW ? 24 : 84, out = 136, in = 400, step = SLOW ? 8 : 4;
    ops_case c(device, DTYPE_BF16, SHIFT_NONE, "fp8 rows alone");
    const struct coded x = row_tiles_of(c, "x", RANDOM, rows, in);
    const struct weights w = weights_of(c, RANDOM, 2, out, in);
    const struct group_rows groups = {{0, 17, rows}, 0};
    const int64_t *offset = offsets_on_cuda(c, groups);
    operand &y = c.poison("y", DTYPE_BF16, rows, out),
            &alone = c.poison("y", DTYPE_BF16, rows, out);
    c.upload();
    cuda_fp8_linear(nullptr, y.cuda, x.on_cuda(), w.on_cuda(), offset, false);
    for (int64_t r = 0; r < rows; r += step) { /* multiples of 4: scales stay aligned */
        struct fp8_rows one = x.on_cuda();
        struct fp8_weights own = w.on_cuda();
        one.code += r * in, one.scale += r, one.rows = 1;
        own.matrices = 1;
        own.code += r < 17 ? 0 : out * in;
        own.scale += r < 17 ? 0 : fp8_tiles(out) * fp8_tiles(in);
        cuda_fp8_linear(nullptr, tensor_rows(&alone.cuda, r, 1), one, own, nullptr, false);
    }
    c.download();
    const uint16_t *a = (const uint16_t *)c.got_data(y), *b = (const uint16_t *)c.got_data(alone);
    for (int64_t r = 0; r < rows; r += step) {
        if (memcmp(a + r * out, b + r * out, (size_t)out * sizeof *a) != 0) {
            c.wrong(y, r * out, "not the bits of the row alone");
        }
    }
    y.compared = alone.compared = true;
    return c.finish();
}

/* Recorded once, run with other offsets: nothing of them was read at the call. */
static bool captured(struct device *device)
{
    const int64_t rows = 40, out = 40, in = 144;
    const std::vector<int64_t> later = {0, 30, 31, 37};
    ops_case c(device, DTYPE_BF16, SHIFT_NONE, "fp8 captured");
    const struct coded x = row_tiles_of(c, "x", INTEGERS, rows, in);
    const struct weights w = weights_of(c, INTEGERS, 3, out, in);
    const struct group_rows groups = {{0, 0, 3, 8}, 0};
    const int64_t *offset = offsets_on_cuda(c, groups);
    operand &y = c.poison("y", DTYPE_BF16, rows, out);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    c.upload();
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    cuda_fp8_linear(stream, y.cuda, x.on_cuda(), w.on_cuda(), offset, false);
    must(cudaStreamEndCapture(stream, &graph), "capture");
    must(cudaGraphInstantiate(&exec, graph, 0), "graph");
    must(cudaMemcpy((void *)(uintptr_t)offset, later.data(), later.size() * sizeof(int64_t),
                    cudaMemcpyHostToDevice),
         "offsets");
    must(cudaGraphLaunch(exec, stream), "graph");
    must(cudaStreamSynchronize(stream), "graph");
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    c.download();
    compare(c, y, linear_reference(x, w, {later, 3}), INTEGERS, false);
    for (operand &o : c.operands) { /* the offsets have changed */
        o.compared = true;
    }
    return c.finish();
}

/* The table: more rows take larger tiles, a shape that fills the last wave is preferred. */
static bool choices()
{
    struct cuda_fp8_tile few = {}, many = {};
    struct cuda_fp8_shape shape = {1, 7168, 2048, 1, 132};
    cuda_fp8_tiles(false, cuda_fp8_tile_choice(false, &shape), &few);
    shape.rows = 8192;
    cuda_fp8_tiles(false, cuda_fp8_tile_choice(false, &shape), &many);
    bool right = few.rows == 64 && many.rows * many.cols >= 128 * 192;
    for (int weight = 0; weight < 2; weight++) {
        const int best = cuda_fp8_tile_choice(weight != 0, &shape);
        for (int i = 0; i < cuda_fp8_tiles(weight != 0, -1, nullptr); i++) {
            right = right && cuda_fp8_tile_cycles(weight != 0, i, &shape) >=
                                 cuda_fp8_tile_cycles(weight != 0, best, &shape);
        }
    }
    if (!right) {
        printf("fp8 tiles: WRONG, %d x %d for one row, %d x %d for many\n", few.rows, few.cols,
               many.rows, many.cols);
    }
    return right;
}

static bool test()
{
    struct device *device = cpu_device();
    bool right = choices();
    side_set_capability(9);
    right = linears(device, true) && right;
    right = linear_weights(device, true) && right;
    right = many_groups(device, true) && right;
    right = rows_alone(device) && right;
    right = captured(device) && right;
#ifndef REAL_CUDA /* a device has the kernels it has */
    side_set_capability(8);
    right = linears(device, false) && right;
    right = linear_weights(device, false) && right;
    right = many_groups(device, false) && right;
    right = rows_alone(device) && right;
    side_set_capability(9);
#endif
    return right;
}

int main(int argc, char **argv)
{
    side_set_hopper_fp8(COARSE);
    return for_seeds(argc, argv, two_passes<test>);
}
