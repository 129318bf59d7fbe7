/* fp8_case: operands of the tests of FP8's movers: codes with scales, counters, groups of rows, and
 * numbers that become every kind of code. */
#ifndef EMULATOR_FP8_CASE_H
#define EMULATOR_FP8_CASE_H

#include <algorithm>

#include "ops_case.h"

#include "kernels/cuda/cuda_ops_fp8.h"

extern "C" {
#include "kernels/base/small_float.h"
}

/* Codes with their scales on both sides. */
struct fp8_operand {
    operand &code, &scale;
    int64_t rows, cols, pitch;

    struct fp8_rows on_cpu() const
    {
        return {code.on_cpu<uint8_t>(), scale.on_cpu<float>(), rows, cols, pitch};
    }
    struct fp8_rows on_cuda() const
    {
        return {code.on_cuda<uint8_t>(), scale.on_cuda<float>(), rows, cols, pitch};
    }
};

static inline fp8_operand fp8_rows_of(ops_case &c, const char *name, int64_t rows, int64_t cols,
                                      bool wanted = true)
{
    const int64_t pitch = rows / 4 * 4 + 8;
    if (!wanted) {
        return {c.none(name), c.none(name), rows, cols, pitch};
    }
    return {c.poison(name, DTYPE_U8, rows, cols), c.poison(name, DTYPE_F32, fp8_tiles(cols), pitch),
            rows, cols, pitch};
}

/* Transposed rows [cols, tokens], with some columns more than needed. */
static inline fp8_operand fp8_tokens_of(ops_case &c, const char *name, int64_t rows, int64_t cols,
                                        int64_t groups, bool wanted = true)
{
    return fp8_rows_of(c, name, cols, fp8_token_columns(rows, groups > 0 ? groups : 1) + 16,
                       wanted);
}

/* What both sides quantise by; counters begin at other numbers than 0. */
struct fp8_hows {
    operand &counters;
    struct fp8_how cpu, cuda;
};

static inline fp8_hows fp8_hows_of(ops_case &c, bool power_of_two, bool counted = true)
{
    operand &counters = counted ? c.fill("counters", DTYPE_I32, 1, sizeof(struct fp8_counters) / 4,
                                         [](int64_t) { return 1.0; })
                                : c.none("counters");
    return {counters,
            {power_of_two, FP8_ACCUMULATE_DEVICE, counters.on_cpu<struct fp8_counters>()},
            {power_of_two, FP8_ACCUMULATE_DEVICE, counters.on_cuda<struct fp8_counters>()}};
}

/* offset[groups + 1] of `rows` rows, the last few of which are in no group; groups empty, of one
 * row, of whole tiles. groups 0: no offsets. */
static inline operand &fp8_groups_of(ops_case &c, int64_t rows, int64_t groups)
{
    if (groups == 0) {
        return c.none("offset");
    }
    operand &o = c.poison("offset", DTYPE_I64, 1, groups + 1);
    int64_t *offset = o.on_cpu<int64_t>(), most = rows > 3 ? rows - 3 : rows;
    offset[0] = 0;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t kinds[6] = {1, 0, 128, 3, 0, 2 * most / (groups + 1)};
        offset[g + 1] = std::min(most, offset[g] + kinds[g % 6]);
    }
    return o;
}

/* Normal numbers of very different sizes within a tile, zeros of both signs; `bad`: NaN and
 * infinities here and there. */
static inline operand &fp8_numbers(ops_case &c, const char *name, int64_t rows, int64_t cols,
                                   bool bad = false)
{
    const uint64_t key = rng_key(7, name);
    return c.fill(name, DTYPE_BF16, rows, cols, [=](int64_t i) {
        const uint64_t kind = rng_permute(5, (uint64_t)i, (uint64_t)(rows * cols)) % 1009;
        const int64_t tile = i % cols / 128 + i / cols;
        if (bad && kind < 2) {
            return kind == 0 ? NAN : i % 2 == 0 ? (double)INFINITY : -(double)INFINITY;
        }
        if (kind < 20) {
            return kind % 2 == 0 ? 0.0 : -0.0;
        }
        const int spread = kind % 3 == 0 ? (int)(kind % 23) : 0;
        return ldexp(rng_normal(key, (uint64_t)i), (int)(tile * 7 % 40) - 25 - spread);
    });
}

static inline bool same_bytes(ops_case &c, operand &a, operand &b)
{
    a.compared = b.compared = true;
    if (a.there() && memcmp(c.got_data(a), c.got_data(b), tensor_bytes(&a.cpu)) != 0) {
        const uint8_t *x = (const uint8_t *)c.got_data(a), *y = (const uint8_t *)c.got_data(b);
        size_t i = 0;
        while (x[i] == y[i]) {
            i++;
        }
        c.wrong(a, (int64_t)(i / dtype_bytes(a.cpu.dtype)), "not what the plain ops give");
        c.right = false;
    }
    return c.right;
}

/* Fused codes are those of the plain ops, `want`; against the CPU's at most neighbours, and few:
 * `fraction` of them and of the tiles whose scales are another power of two. */
static inline void fp8_fused(ops_case &c, fp8_operand &have, fp8_operand &want, double fraction)
{
    same_bytes(c, have.code, want.code);
    same_bytes(c, have.scale, want.scale);
    if (!have.code.there()) {
        return;
    }
    const uint8_t *a = (const uint8_t *)c.got_data(have.code), *b = have.code.on_cpu<uint8_t>();
    const float *s = (const float *)c.got_data(have.scale), *t = have.scale.on_cpu<float>();
    const auto place = [](uint8_t code) { return code & 0x80 ? -(code & 0x7f) : (int)code; };
    double flips = 0, tiles = 0;
    for (int64_t r = 0; r < have.rows; r++) {
        for (int64_t i = 0; i < have.cols; i++) {
            const int64_t at = r * have.cols + i, tile = i / 128 * have.pitch + r;
            const bool untouched = memcmp(&s[tile], &t[tile], 4) == 0 && s[tile] != s[tile];
            if (!untouched && !(fabsf(s[tile] - t[tile]) <= 0x1p-7F * t[tile])) {
                tiles += i % 128 == 0;
                continue;
            }
            if (abs(place(a[at]) - place(b[at])) > 1) {
                c.wrong(have.code, at, "not a neighbour");
                return;
            }
            flips += a[at] != b[at];
        }
    }
    if (flips > 4 + fraction * (double)(have.rows * have.cols) ||
        tiles > 1 + fraction * (double)(have.rows * fp8_tiles(have.cols))) {
        printf("%g codes and %g tiles differ\n", flips, tiles);
        c.wrong(have.code, 0, "too many differ");
    }
}

#endif
