/* gemm_cublaslt: the dense products of struct ops by NVIDIA's cuBLASLt, looked for when the program
 * runs.
 *
 * bf16 operands with bf16 or f32 results, f32 with f32 (CUBLAS_COMPUTE_32F: no TF32); sums in f32,
 * rounded once, what is added to counted in. The library chooses an algorithm by its heuristics,
 * once per shape, dtypes and alignment; the choice is kept. FLOPs 2 m n k, bytes those of the three
 * matrices; bound by the tensor cores (989 TFLOP/s on H100) from some 300 rows on.
 *
 * NOTE: the choice depends on the number of rows, and algorithms add in different orders, so a
 * row's result may differ in its last bits from the same row's in a call of other size. Runs that
 * need rows to be independent (struct ops promises it) open with `invariant`, which leaves every
 * product to the own kernels. The same call gives the same bits every time either way.
 */
#ifndef KERNELS_CUDA_GEMM_CUBLASLT_H
#define KERNELS_CUDA_GEMM_CUBLASLT_H

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

struct cublaslt; /* opaque: the library's handle, its choices, 32 MiB of device memory */

/* For the current GPU. invariant: *blas is NULL and nothing is opened. Error: STATUS_RESOURCE with
 * one line where the library is not there or does not work, or memory is short; *blas is NULL then.
 */
enum status cublaslt_open(struct cublaslt **blas, bool invariant)
    __attribute__((warn_unused_result));
void cublaslt_close(struct cublaslt *blas); /* accepts NULL; the stream must be idle */

/* The ops of the same names, enqueued on `stream` (a cudaStream_t; one at a time, as the workspace
 * is shared). Shapes were checked by the caller. false: nothing was enqueued, because blas is NULL,
 * the dtypes are mixed, a sum is empty or the library has no algorithm: use the own kernel. */
bool cublaslt_linear_forward(struct cublaslt *blas, void *stream, struct tensor y, struct tensor x,
                             struct tensor w, bool add);
bool cublaslt_linear_backward_input(struct cublaslt *blas, void *stream, struct tensor dx,
                                    struct tensor dy, struct tensor w, bool add);
bool cublaslt_linear_backward_weight(struct cublaslt *blas, void *stream, struct tensor dw,
                                     struct tensor dy, struct tensor x);

#endif
