#include "kernels/cpu/fp8.h"

const struct fp8_ops cpu_fp8_ops = {
    .quantize = cpu_fp8_quantize,
    .transpose = cpu_fp8_transpose,
    .pack = cpu_fp8_pack,
    .unpack = cpu_fp8_unpack,
    .quantize_weights = cpu_fp8_quantize_weights,
    .norm_forward = cpu_fp8_norm_forward,
    .swiglu_forward = cpu_fp8_swiglu_forward,
    .swiglu_backward = cpu_fp8_swiglu_backward,
    .combine_rows_backward = cpu_fp8_combine_rows_backward,
    .linear = cpu_fp8_linear,
    .linear_weight = cpu_fp8_linear_weight,
    .e5m6_pack = cpu_e5m6_pack,
    .e5m6_unpack = cpu_e5m6_unpack,
};
