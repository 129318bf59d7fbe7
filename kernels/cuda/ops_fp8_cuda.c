/* The CUDA device's struct fp8_ops: each op calls its launcher. */
#include <assert.h>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops_fp8.h"

static void quantize(struct device *device, struct fp8_rows q, struct fp8_rows t, struct tensor x,
                     const int32_t *row, int64_t rows, const int64_t *offset, int64_t groups,
                     const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_quantize");
    cuda_fp8_quantize(self->stream, q, t, x, row, rows, offset, groups, how);
    cuda_end(self);
}

static void transpose(struct device *device, struct fp8_rows t, struct fp8_rows q,
                      const int64_t *offset, int64_t groups, const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_transpose");
    cuda_fp8_transpose(self->stream, t, q, offset, groups, how);
    cuda_end(self);
}

static void pack(struct device *device, uint8_t *packed, struct tensor x, const int32_t *row,
                 int64_t rows, const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_pack");
    cuda_fp8_pack(self->stream, packed, x, row, rows, how);
    cuda_end(self);
}

static void unpack(struct device *device, struct fp8_rows q, const uint8_t *packed, int64_t rows,
                   const int32_t *row)
{
    struct cuda_device *self = cuda_begin(device, "fp8_unpack");
    cuda_fp8_unpack(self->stream, q, packed, rows, row);
    cuda_end(self);
}

static void quantize_weights(struct device *device, struct fp8_weights w, struct fp8_weights t,
                             const void *src, int64_t stride, const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_quantize_weights");
    cuda_fp8_quantize_weights(self->stream, w, t, src, stride, how);
    cuda_end(self);
}

static void norm_forward(struct device *device, struct fp8_rows q, struct tensor y,
                         struct tensor sum, float *rstd, struct tensor x, struct tensor delta,
                         struct tensor w, float eps, const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_norm_forward");
    cuda_fp8_norm_forward(self->stream, q, y, sum, rstd, x, delta, w, eps, how);
    cuda_end(self);
}

static void swiglu_forward(struct device *device, struct fp8_rows h, struct fp8_rows kept,
                           struct tensor gate_up, const int64_t *offset, int64_t groups,
                           const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_swiglu_forward");
    cuda_fp8_swiglu_forward(self->stream, h, kept, gate_up, offset, groups, how);
    cuda_end(self);
}

static void swiglu_backward(struct device *device, struct fp8_rows d, struct fp8_rows dt,
                            struct fp8_rows ht, struct tensor dh, struct tensor gate_up,
                            struct fp8_rows kept, const int64_t *offset, int64_t groups,
                            const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_swiglu_backward");
    cuda_fp8_swiglu_backward(self->stream, d, dt, ht, dh, gate_up, kept, offset, groups, how);
    cuda_end(self);
}

static void combine_rows_backward(struct device *device, struct fp8_rows q, uint8_t *packed,
                                  float *dweight, struct tensor dy, struct tensor x,
                                  const int32_t *slot_row, const float *weight, int64_t top_k,
                                  const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_combine_rows_backward");
    cuda_fp8_combine_rows_backward(self->stream, q, packed, dweight, dy, x, slot_row, weight, top_k,
                                   how);
    cuda_end(self);
}

static void linear(struct device *device, struct tensor y, struct fp8_rows x, struct fp8_weights w,
                   const int64_t *offset, bool add, const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_linear");
    const struct cuda_fp8_by any_rows = {.tile = -1, .rows = CUDA_FP8_ANY_ROWS};
    assert(how->accumulate == FP8_ACCUMULATE_DEVICE);
    if (!(self->layout && offset != NULL &&
          cuda_fp8_linear_by(self->stream, any_rows, y, x, w, offset, add))) {
        cuda_fp8_linear(self->stream, y, x, w, offset, add);
    }
    cuda_end(self);
}

static void linear_weight(struct device *device, float *dw, int64_t stride, struct fp8_rows dyt,
                          struct fp8_rows xt, const int64_t *offset, int64_t groups, int64_t tokens,
                          const struct fp8_how *how)
{
    struct cuda_device *self = cuda_begin(device, "fp8_linear_weight");
    assert(how->accumulate == FP8_ACCUMULATE_DEVICE);
    cuda_fp8_linear_weight(self->stream, dw, stride, dyt, xt, offset, groups, tokens);
    cuda_end(self);
}

static void e5m6_pack(struct device *device, uint8_t *packed, struct tensor x)
{
    struct cuda_device *self = cuda_begin(device, "e5m6_pack");
    cuda_fp8_e5m6_pack(self->stream, packed, x);
    cuda_end(self);
}

static void e5m6_unpack(struct device *device, struct tensor x, const uint8_t *packed)
{
    struct cuda_device *self = cuda_begin(device, "e5m6_unpack");
    cuda_fp8_e5m6_unpack(self->stream, x, packed);
    cuda_end(self);
}

const struct fp8_ops cuda_fp8_ops = {
    .quantize = quantize,
    .transpose = transpose,
    .pack = pack,
    .unpack = unpack,
    .quantize_weights = quantize_weights,
    .norm_forward = norm_forward,
    .swiglu_forward = swiglu_forward,
    .swiglu_backward = swiglu_backward,
    .combine_rows_backward = combine_rows_backward,
    .linear = linear,
    .linear_weight = linear_weight,
    .e5m6_pack = e5m6_pack,
    .e5m6_unpack = e5m6_unpack,
};
