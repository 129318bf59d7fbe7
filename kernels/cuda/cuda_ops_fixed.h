/* cuda_ops_fixed: the launchers behind struct fixed_ops (kernels/ops_fixed.h). Private to
 * kernels/cuda and tests.
 */
#ifndef KERNELS_CUDA_CUDA_OPS_FIXED_H
#define KERNELS_CUDA_CUDA_OPS_FIXED_H

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/ops_fixed.h"

/* ---- fixed.cu ---- */
void cuda_fixed_add(void *stream, int64_t *sum, float *x, int64_t count, struct fixed_point *fixed);
void cuda_fixed_squares(void *stream, int64_t *square, const int64_t *sum, int64_t count);
void cuda_fixed_decode(void *stream, float *out, const int64_t *sum, int64_t count, float quantum);
void cuda_fixed_expert_sources(void *stream, int64_t *offset, const int32_t *message,
                               struct padded_shape shape);

/* ---- gemm_fp8.cu: cuda_fp8_linear_weight of group `group` of them, to dw ---- */
void cuda_fp8_linear_weight_of(void *stream, float *dw, struct fp8_rows dyt, struct fp8_rows xt,
                               const int64_t *offset, int64_t group, int64_t groups,
                               int64_t tokens);

#ifdef __cplusplus
}
#endif

#endif
