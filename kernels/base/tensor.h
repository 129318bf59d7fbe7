/* tensor: a contiguous row-major view. It never owns its data. */
#ifndef KERNELS_BASE_TENSOR_H
#define KERNELS_BASE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_I32,
    DTYPE_I64,
    DTYPE_F64,
    DTYPE_U8,
    DTYPE_F16,  /* IEEE half: small_float.h */
    DTYPE_E4M3, /* float8 e4m3fn: small_float.h */
    DTYPE_COUNT
};

struct tensor {
    void *data; /* borrowed */
    enum dtype dtype;
    int ndim;
    int64_t dim[4];
};

size_t dtype_bytes(enum dtype dtype);     /* of one element */
const char *dtype_name(enum dtype dtype); /* "float32", "bfloat16", "int32", ... */

struct tensor tensor_1d(void *data, enum dtype dtype, int64_t count);
struct tensor tensor_2d(void *data, enum dtype dtype, int64_t rows, int64_t cols);
int64_t tensor_count(const struct tensor *tensor); /* elements */
size_t tensor_bytes(const struct tensor *tensor);
bool tensor_is(const struct tensor *tensor, enum dtype dtype, int64_t rows,
               int64_t cols); /* exactly this 2-D shape */

/* Rows [first, first + count) of a 2-D tensor. */
struct tensor tensor_rows(const struct tensor *tensor, int64_t first, int64_t count);

/* bfloat16 is the upper half of a float32; round to nearest even, NaN stays NaN. */
static inline float bf16_to_float(uint16_t bits)
{
    union {
        uint32_t u;
        float f;
    } value = {.u = (uint32_t)bits << 16};
    return value.f;
}

static inline uint16_t bf16_from_float(float number)
{
    union {
        float f;
        uint32_t u;
    } value = {.f = number};
    /* NaN: up to a quiet one. Added to all alike: for vectors that is half as long as two results
     */
    const bool nan = (value.u << 1) > 0xff000000u;
    const uint32_t up = nan ? ~value.u & 0x400000u : 0x7fffu + ((value.u >> 16) & 1u);
    return (uint16_t)((value.u + up) >> 16);
}

/* Stochastic rounding: up (away from zero) for as many of the 65536 values of `noise` as the part
 * cut off is in 65536ths, so right on average; what bfloat16 holds exactly stays. */
static inline uint16_t bf16_from_float_noise(float number, uint16_t noise)
{
    union {
        float f;
        uint32_t u;
    } value = {.f = number};
    const bool nan = (value.u & 0x7fffffffu) > 0x7f800000u;
    return (uint16_t)((nan ? value.u | 0x400000u : value.u + noise) >> 16);
}

#endif
