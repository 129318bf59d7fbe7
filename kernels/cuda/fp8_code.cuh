/* fp8_code: numbers to E4M3 codes and back, sixteen of a row per thread, and what becomes of them.
 * Code compiled for sm_89 and later converts by the hardware's instruction, older code (which an
 * sm_89 or a Blackwell GPU runs too where the binary has no code of its own for it) by integer
 * arithmetic that gives the same bytes. */
#ifndef KERNELS_CUDA_FP8_CODE_CUH
#define KERNELS_CUDA_FP8_CODE_CUH

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rows.cuh"

#define FP8_RULE DEVICE
#include "kernels/cuda/cuda_ops_fp8.h"

/* ---- codes ---- */

/* To nearest even, at most 448; NaN becomes FP8_NAN. Subnormals are counted in units of 2^-9:
 * adding 2^14 leaves 9 bits behind the point. */
DEVICE uint32_t e4m3_from_float_soft(float x)
{
    const uint32_t sign = __float_as_uint(x) >> 24 & 0x80u, bits = fp8_bits(x);
    const uint32_t u = min(bits, __float_as_uint(FP8_LARGEST));
    const uint32_t normal = (u - (120u << 23) + 0x7ffffu + (u >> 20 & 1u)) >> 20;
    const uint32_t small = __float_as_uint(__uint_as_float(u) + 16384.0F) - (141u << 23);
    return bits > 0x7f800000u ? (uint32_t)FP8_NAN : (u < 121u << 23 ? small : normal) | sign;
}

DEVICE float e4m3_to_float_soft(uint32_t code)
{
    const uint32_t sign = (code & 0x80u) << 24, magnitude = code & 0x7fu;
    /* 2^120 moves the bias from 7 to 127 and makes subnormals normal. */
    const float x = __uint_as_float(magnitude << 20) * 0x1p120F;
    return __uint_as_float((magnitude == FP8_NAN ? 0x7fc00000u : __float_as_uint(x)) | sign);
}

DEVICE uint32_t encode2(float a, float b)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    return e4m3_from_float_soft(a) | e4m3_from_float_soft(b) << 8;
#else
    return e4m3x2_from_floats(a, b);
#endif
}

DEVICE void decode2(float &a, float &b, uint32_t pair)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    a = e4m3_to_float_soft(pair & 0xffu), b = e4m3_to_float_soft(pair >> 8 & 0xffu);
#else
    e4m3x2_to_floats(a, b, pair);
#endif
}

DEVICE uint32_t encode4(float a, float b, float c, float d)
{
    return encode2(a, b) | encode2(c, d) << 16;
}

/* Of a tile whose largest fp8_bits are `most`. A bad one: scale 1, and an inverse with which every
 * number becomes FP8_NAN. */
DEVICE struct fp8_scale fp8_tile_scale(uint32_t most, bool power_of_two)
{
    if (fp8_is_bad(most)) {
        return {1.0F, __uint_as_float(0x7fc00000u)};
    }
    return fp8_scale_of(most, power_of_two);
}

/* How many of the four codes are not 0. */
DEVICE uint32_t fp8_nonzero(uint32_t codes)
{
    return (uint32_t)__popc((((codes & 0x7f7f7f7fu) + 0x7f7f7f7fu)) & 0x80808080u);
}

/* ---- sixteen numbers ---- */

enum { FP8_PART = 16 };

struct fp8_bf16s {
    uint32_t pair[FP8_PART / 2];
};

struct fp8_codes {
    uint32_t word[FP8_PART / 4];
    float scale;
};

DEVICE void fp8_load(uint32_t (&words)[4], const uint8_t *p)
{
    const uint4 a = __ldg((const uint4 *)p);
    words[0] = a.x, words[1] = a.y, words[2] = a.z, words[3] = a.w;
}

DEVICE void fp8_load(struct fp8_bf16s &x, const bf16 *p)
{
    const uint4 a = __ldg((const uint4 *)p), b = __ldg((const uint4 *)p + 1);
    x.pair[0] = a.x, x.pair[1] = a.y, x.pair[2] = a.z, x.pair[3] = a.w;
    x.pair[4] = b.x, x.pair[5] = b.y, x.pair[6] = b.z, x.pair[7] = b.w;
}

/* Rounded to bf16. */
DEVICE void fp8_set(struct fp8_bf16s &x, int c, float first, float second)
{
    const float both[2] = {first, second};
    x.pair[c / 2] = pack(both);
}

/* Number c; c is known when the loop round it is unrolled. */
DEVICE float fp8_value(const struct fp8_bf16s &x, int c)
{
    return __uint_as_float(c % 2 == 0 ? x.pair[c / 2] << 16 : x.pair[c / 2] & 0xffff0000u);
}

DEVICE float fp8_value(const struct fp8_codes &x, int c)
{
    float a, b;
    decode2(a, b, x.word[c / 4] >> (c % 4 < 2 ? 0 : 16) & 0xffffu);
    return __fmul_rn(c % 2 == 0 ? a : b, x.scale);
}

template <class H> DEVICE void fp8_values(float (&value)[FP8_PART], const H &x)
{
#pragma unroll
    for (int c = 0; c < FP8_PART; c++) {
        value[c] = fp8_value(x, c);
    }
}

/* ---- counters ---- */

/* A thread's share of struct fp8_counters. */
struct fp8_counts {
    uint32_t underflows, saturated, bad, most;
};

/* A tile's, by one thread. */
DEVICE void fp8_count_tile(struct fp8_counts &own, uint32_t most)
{
    own.bad += fp8_is_bad(most);
    own.most = max(own.most, fp8_is_bad(most) ? 0u : most);
}

DEVICE bool fp8_is_saturated(float scaled)
{
    return fp8_bits(scaled) > fp8_bits(FP8_LARGEST); /* NaN, of a bad tile, is not asked about */
}

/* All threads of the block, whole warps: one atomic per counter that changes. */
DEVICE void fp8_count(struct fp8_counters *all, struct fp8_counts own, int64_t values)
{
    SMEM(uint32_t, sum, [4]);
    const unsigned thread = threadIdx.x;
    if (thread < 4) {
        sum[thread] = 0;
    }
    __syncthreads();
    own.underflows = __reduce_add_sync(0xffffffffu, own.underflows);
    own.saturated = __reduce_add_sync(0xffffffffu, own.saturated);
    own.bad = __reduce_add_sync(0xffffffffu, own.bad);
    own.most = __reduce_max_sync(0xffffffffu, own.most);
    if (thread % 32 == 0) {
        atomicAdd(&sum[0], own.underflows);
        atomicAdd(&sum[1], own.saturated);
        atomicAdd(&sum[2], own.bad);
        atomicMax(&sum[3], own.most);
    }
    __syncthreads();
    using count = unsigned long long;
    if (thread == 0 && values != 0) {
        atomicAdd((count *)&all->values, (count)values);
    }
    if (thread == 0 && sum[0] != 0) {
        atomicAdd((count *)&all->underflows, (count)sum[0]);
    }
    if (thread == 0 && sum[1] != 0) {
        atomicAdd((count *)&all->saturated, (count)sum[1]);
    }
    if (thread == 0 && sum[2] != 0) {
        atomicAdd((count *)&all->bad_tiles, (count)sum[2]);
    }
    if (thread == 0 && sum[3] != 0) {
        atomicMax(&all->amax, sum[3]);
    }
}

/* ---- where rows of codes go ---- */

struct fp8_sink {
    uint8_t *code; /* row r at code + r * code_row */
    float *scale;  /* of row r and tile t: scale[r * scale_row + t * scale_tile] */
    int64_t cols, code_row, scale_row, scale_tile;
    int rest; /* scales' places at the end of a packed row that hold 0 */
};

static inline struct fp8_sink fp8_sink_of(struct fp8_rows q)
{
    assert(q.code == nullptr || (q.cols % FP8_PART == 0 && q.pitch >= q.rows && aligned(q.code)));
    return {q.code, q.scale, q.cols, q.cols, 1, q.pitch, 0};
}

static inline struct fp8_sink fp8_sink_packed(uint8_t *packed, int64_t cols)
{
    const int64_t bytes = fp8_packed_bytes(cols);
    assert(cols % FP8_PART == 0 && aligned(packed));
    return {packed,
            (float *)(packed + cols),
            cols,
            bytes,
            bytes / 4,
            1,
            (int)((bytes - cols) / 4 - fp8_tiles(cols))};
}

/* ---- eight numbers: a tile of a row is 16 lanes, for kernels whose sums want it so ---- */

enum { FP8_EIGHT = 8, FP8_EIGHT_LANES = 16 };

/* Quantises columns [column, column + 8) of row r, its numbers bf16's already; writes codes, scale
 * and, at the row's end, the rest of a packed row, where `there`. All lanes of the warp call it. */
DEVICE void fp8_eight_tile(const struct fp8_sink &q, const float (&x)[FP8_EIGHT], int64_t r,
                           int64_t column, bool there, bool power_of_two, bool counted,
                           struct fp8_counts &own)
{
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < FP8_EIGHT; j++) {
        most = max(most, fp8_bits(x[j]));
    }
#pragma unroll
    for (int bits = 1; bits < FP8_EIGHT_LANES; bits *= 2) {
        most = max(most, __shfl_xor_sync(0xffffffffu, most, bits));
    }
    const struct fp8_scale s = fp8_tile_scale(most, power_of_two);
    float y[FP8_EIGHT];
#pragma unroll
    for (int j = 0; j < FP8_EIGHT; j++) {
        y[j] = __fmul_rn(x[j], s.inverse);
    }
    const uint2 word = make_uint2(encode4(y[0], y[1], y[2], y[3]), encode4(y[4], y[5], y[6], y[7]));
    if (there) {
        *(uint2 *)(q.code + r * q.code_row + column) = word;
    }
    if (there && threadIdx.x % FP8_EIGHT_LANES == 0) {
        const int64_t tile = column / FP8_TILE;
        float *to = q.scale + r * q.scale_row + tile * q.scale_tile;
        *to = s.scale;
        for (int i = 1; (tile + 1) * FP8_TILE >= q.cols && i <= q.rest; i++) {
            to[i] = 0; /* packed: scale_tile is 1 */
        }
        fp8_count_tile(own, most);
    }
    if (counted && there && !fp8_is_bad(most)) {
        own.underflows -= fp8_nonzero(word.x) + fp8_nonzero(word.y);
#pragma unroll
        for (int j = 0; j < FP8_EIGHT; j++) {
            own.underflows += fp8_bits(x[j]) != 0;
            own.saturated += !power_of_two && fp8_is_saturated(y[j]);
        }
    }
}

#endif
