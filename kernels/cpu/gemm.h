/* gemm: batches of matrix products whose rows do not depend on the other rows or on the threads.
 *
 * oneDNN's brgemm kernels where this machine has them (gemm_onednn.h); else the kernel of gemm.c,
 * where every element of C is a chain of fused multiply-adds over k in ascending order, whatever M,
 * N, the other rows, or the number of threads. It packs operands to f32 panels on the way, so any
 * strides and f32 or bf16 storage cost the same.
 */
#ifndef KERNELS_CPU_GEMM_H
#define KERNELS_CPU_GEMM_H

#include "kernels/cpu/cpu.h"

/* C[m,n] = (add ? C : 0) + sum_k A[m,k] B[k,n]. Strides in elements. */
struct gemm {
    int64_t m, n, k;
    const void *a, *b;
    void *c;
    int64_t a_row, a_col, b_row, b_col, c_row;
    enum dtype a_dtype, b_dtype, c_dtype;
    bool add;
    bool varies; /* m or k is how many tokens chose an expert: another one at every call */
};

/* Runs `count` independent products (no C overlaps another). */
void gemm_run(struct device *device, const struct gemm *batch, int64_t count);

#endif
