#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/fp8.h"
#include "kernels/cpu/rows.h"

CPU_CLONES static void encode(uint16_t *restrict code, const float *restrict x, float inverse,
                              int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        code[i] = (uint16_t)e5m6_from_float(x[i] * inverse);
    }
}

CPU_CLONES static void decode(float *restrict x, const uint16_t *restrict code, float scale,
                              int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        x[i] = e5m6_to_float(code[i]) * scale;
    }
}

static void put(uint8_t *out, const uint16_t *code, int64_t count)
{
    for (int64_t i = 0; i < count / 2; i++) {
        const uint32_t pair = code[2 * i] | (uint32_t)code[2 * i + 1] << 12;
        out[3 * i] = (uint8_t)pair;
        out[3 * i + 1] = (uint8_t)(pair >> 8);
        out[3 * i + 2] = (uint8_t)(pair >> 16);
    }
}

static void take(uint16_t *code, const uint8_t *in, int64_t count)
{
    for (int64_t i = 0; i < count / 2; i++) {
        const uint32_t pair =
            in[3 * i] | (uint32_t)in[3 * i + 1] << 8 | (uint32_t)in[3 * i + 2] << 16;
        code[2 * i] = (uint16_t)(pair & 0xfffU);
        code[2 * i + 1] = (uint16_t)(pair >> 12);
    }
}

static float pack_tile(uint8_t *out, const float *x, int64_t count)
{
    uint16_t code[FP8_TILE] = {0};
    uint32_t amax = 0;
    for (int64_t i = 0; i < count; i++) {
        amax = fp8_bits(x[i]) > amax ? fp8_bits(x[i]) : amax;
    }
    const bool bad = fp8_is_bad(amax);
    const struct fp8_scale s = e5m6_scale_of(bad ? 0 : amax);
    if (!bad) {
        encode(code, x, s.inverse, count);
    }
    put(out, code, count);
    return bad ? NAN : s.scale;
}

void cpu_e5m6_pack(struct device *device, uint8_t *packed, struct tensor x)
{
    const int64_t cols = x.dim[1], bytes = fp8_e5m6_bytes(cols), scales = cols / 2 * 3;
    assert(x.dtype == DTYPE_BF16 && cols % 16 == 0);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < x.dim[0]; r++) {
        uint8_t *out = packed + r * bytes;
        float tile[FP8_TILE];
        memset(out + scales, 0, (size_t)(bytes - scales));
        for (int64_t col = 0; col < cols; col += FP8_TILE) {
            const int64_t count = cols - col < FP8_TILE ? cols - col : FP8_TILE;
            row_load(tile, x.data, x.dtype, r * cols + col, count);
            const float scale = pack_tile(out + col / 2 * 3, tile, count);
            memcpy(out + scales + col / FP8_TILE * (int64_t)sizeof scale, &scale, sizeof scale);
        }
    }
}

void cpu_e5m6_unpack(struct device *device, struct tensor x, const uint8_t *packed)
{
    const int64_t cols = x.dim[1], bytes = fp8_e5m6_bytes(cols), scales = cols / 2 * 3;
    assert(x.dtype == DTYPE_BF16 && cols % 16 == 0);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < x.dim[0]; r++) {
        const uint8_t *in = packed + r * bytes;
        uint16_t code[FP8_TILE];
        float tile[FP8_TILE], scale;
        for (int64_t col = 0; col < cols; col += FP8_TILE) {
            const int64_t count = cols - col < FP8_TILE ? cols - col : FP8_TILE;
            memcpy(&scale, in + scales + col / FP8_TILE * (int64_t)sizeof scale, sizeof scale);
            take(code, in + col / 2 * 3, count);
            decode(tile, code, scale, count);
            row_store(x.data, x.dtype, r * cols + col, tile, count);
        }
    }
}
