#include "kernels/base/small_float.h"

#include <stdbool.h>

enum { F32_MANTISSA = 23, F32_BIAS = 127 };

union word {
    float f;
    uint32_t u;
};

/* A small format: sign, `exponent` bits, `mantissa` bits; its codes without sign lie in an order.
 */
struct format {
    int mantissa, bias;
    uint32_t most; /* largest finite code without sign */
    uint32_t over; /* what larger values become */
    uint32_t nan;
};
static const struct format F16 = {10, 15, 0x7bff, 0x7c00, 0x7e00};
static const struct format E4M3 = {3, 7, 0x7e, 0x7e, 0x7f};

/* value >> shift, to nearest even. */
static uint32_t shift_round(uint32_t value, int shift)
{
    if (shift > 31) {
        return 0; /* below half of the smallest step: a mantissa has 24 bits */
    }
    const uint32_t half = 1u << (shift - 1), low = value & ((1u << shift) - 1);
    const uint32_t high = value >> shift;
    return high + (low > half || (low == half && (high & 1u) != 0));
}

/* The code without sign of a finite magnitude given by its f32 bits. */
static uint32_t narrow(const struct format *format, uint32_t bits)
{
    const int exponent = (int)(bits >> F32_MANTISSA) - F32_BIAS + format->bias;
    const uint32_t mantissa = bits & ((1u << F32_MANTISSA) - 1);
    const int drop = F32_MANTISSA - format->mantissa;
    if (bits >> F32_MANTISSA == 0) {
        return 0; /* f32's subnormals are far below the smallest value */
    }
    const uint32_t code = exponent > 0
                              ? shift_round((uint32_t)exponent << F32_MANTISSA | mantissa, drop)
                              : shift_round(1u << F32_MANTISSA | mantissa, drop + 1 - exponent);
    return code > format->most ? format->over : code;
}

static float widen(const struct format *format, uint32_t code)
{
    const int exponent = (int)(code >> format->mantissa);
    const uint32_t mantissa = code & ((1u << format->mantissa) - 1);
    union word value;
    if (exponent == 0) { /* mantissa * 2^(1 - bias - mantissa bits) */
        value.u = (uint32_t)(1 - format->bias - format->mantissa + F32_BIAS) << F32_MANTISSA;
        return (float)mantissa * value.f;
    }
    value.u = (uint32_t)(exponent - format->bias + F32_BIAS) << F32_MANTISSA |
              mantissa << (F32_MANTISSA - format->mantissa);
    return value.f;
}

float f16_to_float(uint16_t bits)
{
    union word value = {.f = 0};
    const uint32_t code = bits & 0x7fffu;
    if (code > F16.most) { /* infinity or NaN, its payload kept */
        value.u = 0x7f800000u | (code & 0x3ffu) << 13;
    } else {
        value.f = widen(&F16, code);
    }
    value.u |= (uint32_t)(bits & 0x8000u) << 16;
    return value.f;
}

static uint32_t convert(const struct format *format, uint32_t bits)
{
    if (bits > 0x7f800000u) {
        return format->nan;
    }
    return bits == 0x7f800000u ? format->over : narrow(format, bits);
}

uint16_t f16_from_float(float number)
{
    const union word value = {.f = number};
    return (uint16_t)(convert(&F16, value.u & 0x7fffffffu) | (value.u >> 16 & 0x8000u));
}

float e4m3_to_float(uint8_t code)
{
    union word value = {.f = 0};
    if ((code & 0x7fu) == E4M3.nan) {
        value.u = 0x7fc00000u;
    } else {
        value.f = widen(&E4M3, code & 0x7fu);
    }
    value.u |= (uint32_t)(code & 0x80u) << 24;
    return value.f;
}

uint8_t e4m3_from_float(float number)
{
    const union word value = {.f = number};
    return (uint8_t)(convert(&E4M3, value.u & 0x7fffffffu) | (value.u >> 24 & 0x80u));
}
