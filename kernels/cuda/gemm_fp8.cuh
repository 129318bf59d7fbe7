/* gemm_fp8: products of E4M3 codes in tiles with scales; what the kernels of gemm_fp8_sm90.cu and
 * gemm_fp8_mma.cu share. As gemm.cuh says, with
 *
 *   pass      A                    B                    C
 *   FORWARD   x   [m,k], rows      w   [n,k], blocks    y  bf16 or f32
 *   WEIGHT    dyt [m,k], rows      xt  [n,k], rows      dw f32, added to
 *
 * both operands k-major always (Hopper's 8-bit products know no other way), so there is no INPUT
 * pass: it is FORWARD on w transposed. A sum is taken over steps of 128 k, in ascending order:
 * scale of A x scale of B x (the products of one step), each step added in f32 to those before.
 * WEIGHT: k are the token columns of ops_fp8.h: a group's begin at a multiple of 128 and end in
 * codes 0.
 */
#ifndef KERNELS_CUDA_GEMM_FP8_CUH
#define KERNELS_CUDA_GEMM_FP8_CUH

#include "kernels/cuda/cuda_ops_fp8.h"
#include "kernels/cuda/gemm.cuh"

/* A kernel's parameter. g.a and g.b are codes, g.stride is of w's codes or of dw. */
struct gemm_fp8 {
    struct gemm g; /* WEIGHT: k is the number of tokens at most */
    const float *scale_a, *scale_b;
    int64_t pitch_a, pitch_b; /* from one tile of k to the next; FORWARD: pitch_b is the
                                 number of them */
    bool wide_y;              /* set by gemm_fp8_sm90_launch: rows of y in parts of 8 */
};

/* Enqueue a product; the caller has checked shapes and that nothing is empty. */
void gemm_fp8_mma_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm_fp8 *p);
/* by.tile -1: the best. false: not for this GPU or these operands, nothing was
 * enqueued; depends on neither m nor offset (WEIGHT: k nor offset). */
bool gemm_fp8_sm90_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm_fp8 *p,
                          struct cuda_fp8_by by);

#endif
