/* vector_math: exp without a call, so that loops over it vectorise. */
#ifndef KERNELS_CPU_VECTOR_MATH_H
#define KERNELS_CPU_VECTOR_MATH_H

#include <stdint.h>

/* e^x in f32: 2^n * p(r), r = x - n ln 2 in two parts, p of degree 6 (Taylor): relative error below
 * 3e-7 for |r| <= ln 2 / 2. Below -87 the result is 0, above 88 it is e^88; NaN stays NaN through
 * r. */
static inline float fast_exp(float x)
{
    const float low = x < -87.0F ? -87.0F : x, in = low > 88.0F ? 88.0F : low;
    const float shifted =
        in * 1.44269504F + 12582912.0F; /* 1.5 * 2^23: the sum's low bits are round(x / ln 2) */
    const float n = shifted - 12582912.0F;
    const float r = (in - n * 0.693359375F) + n * 2.12194440e-4F;
    float p = 1.38888889e-3F;
    p = p * r + 8.33333333e-3F;
    p = p * r + 4.16666667e-2F;
    p = p * r + 1.66666667e-1F;
    p = p * r + 5.0e-1F;
    p = p * r + 1.0F;
    p = p * r + 1.0F;
    union {
        uint32_t u;
        float f;
    } scale = {.u = ((uint32_t)(int32_t)n + 127U) << 23}; /* unsigned: a NaN shifts anything */
    return x < -87.0F ? 0.0F : p * scale.f;
}

static inline float fast_sigmoid(float x)
{
    return 1.0F / (1.0F + fast_exp(-x));
}

#endif
