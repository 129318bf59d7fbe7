/* fp8_rule: how a tile of numbers becomes a scale and codes, once for all devices, so that their
 * bytes are equal (DeepSeek-V3, arXiv 2412.19437, 3.3.2; models.md 6).
 *
 * The largest absolute value of a tile is found as the largest bit pattern without its sign, which
 * is exact in any order and sees NaN and infinity: fp8_is_bad. Value = code x scale; a code is the
 * E4M3 number nearest to x x inverse, a product rounded to f32 (ties to even, at most 448; what
 * becomes 0 keeps its sign). Tiles of small values take the scale of FP8_LEAST, so that zeros do
 * not divide.
 *
 * E5M6, 12 bits (sign, 5 of exponent with bias 15, 6 of mantissa; exponent 31 is not used): between
 * E4M3 and bfloat16, for tensors whose values are needed a second time by something more exact.
 */
#ifndef KERNELS_BASE_FP8_RULE_H
#define KERNELS_BASE_FP8_RULE_H

#include <stdbool.h>
#include <stdint.h>

#ifndef FP8_RULE /* .cu files define it as their DEVICE */
#define FP8_RULE static inline
#endif

#define FP8_LEAST 1e-4F    /* as DeepGEMM clamps the largest value */
#define FP8_LARGEST 448.0F /* of E4M3 */
#define E5M6_LARGEST 65024.0F

enum { FP8_TILE = 128, FP8_NAN = 0x7f };

struct fp8_scale {
    float scale, inverse;
};

FP8_RULE uint32_t fp8_bits(float x)
{
    union {
        float f;
        uint32_t u;
    } value;
    value.f = x;
    return value.u & 0x7fffffffU;
}

FP8_RULE float fp8_from_bits(uint32_t bits)
{
    union {
        uint32_t u;
        float f;
    } value;
    value.u = bits;
    return value.f;
}

/* amax: the largest fp8_bits of a tile. Whether the tile holds NaN or infinity: its codes are then
 * FP8_NAN, its scale 1. */
FP8_RULE bool fp8_is_bad(uint32_t amax)
{
    return amax >= 0x7f800000U;
}

/* The least power of two that brings amax to at most (1 + limit / 2^23) 2^above. */
FP8_RULE struct fp8_scale fp8_power_scale(uint32_t amax, uint32_t limit, uint32_t above)
{
    const uint32_t exponent = (amax >> 23) + ((amax & 0x7fffffU) > limit) - above;
    struct fp8_scale s;
    s.scale = fp8_from_bits(exponent << 23);
    s.inverse = fp8_from_bits((254 - exponent) << 23);
    return s;
}

/* Of an E4M3 tile that is not bad. power_of_two: 2^ceil(log2(amax / 448)). */
FP8_RULE struct fp8_scale fp8_scale_of(uint32_t amax, bool power_of_two)
{
    const uint32_t least = fp8_bits(FP8_LEAST), a = amax > least ? amax : least;
    struct fp8_scale s;
    if (power_of_two) {
        return fp8_power_scale(a, 0x600000U, 8);
    }
    s.scale = fp8_from_bits(a) / FP8_LARGEST;
    s.inverse = FP8_LARGEST / fp8_from_bits(a);
    return s;
}

/* Of an E5M6 tile that is not bad: a power of two, amax comes to at most E5M6_LARGEST. */
FP8_RULE struct fp8_scale e5m6_scale_of(uint32_t amax)
{
    const uint32_t least = fp8_bits(FP8_LEAST), a = amax > least ? amax : least;
    return fp8_power_scale(a, 0x7e0000U, 15);
}

/* 12 bits of a finite x of at most E5M6_LARGEST, to nearest even; below 2^-14 subnormal. */
FP8_RULE uint32_t e5m6_from_float(float x)
{
    union {
        float f;
        uint32_t u;
    } value;
    value.f = x;
    const uint32_t sign = value.u >> 31 << 11, bits = value.u & 0x7fffffffU;
    if (bits < 113U << 23) { /* in units of 2^-20: adding 2^3 leaves 20 bits behind the point */
        return sign | (fp8_bits(fp8_from_bits(bits) + 8.0F) - (130U << 23));
    }
    return sign | ((bits - (112U << 23) + 0xffffU + ((bits >> 17) & 1U)) >> 17);
}

FP8_RULE float e5m6_to_float(uint32_t code)
{
    const uint32_t sign = (code & 0x800U) << 20, magnitude = code & 0x7ffU;
    /* 2^112 moves the bias from 15 to 127 and makes subnormals normal. */
    const float x = fp8_from_bits(magnitude << 17) * 5192296858534827628530496329220096.0F;
    return fp8_from_bits(fp8_bits(x) | sign);
}

#endif
