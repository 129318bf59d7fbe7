/* gemm_cublaslt of builds without cublasLt.h. */
#include "kernels/cuda/gemm_cublaslt.h"

enum status cublaslt_open(struct cublaslt **blas, bool invariant)
{
    *blas = NULL;
    return invariant ? STATUS_OK
                     : status_fail(STATUS_RESOURCE,
                                   "cuBLASLt is not usable: built without cublasLt.h; install the "
                                   "CUDA toolkit's cuBLAS headers and build again");
}

void cublaslt_close(struct cublaslt *blas)
{
    (void)blas;
}

bool cublaslt_linear_forward(struct cublaslt *blas, void *stream, struct tensor y, struct tensor x,
                             struct tensor w, bool add)
{
    (void)blas, (void)stream, (void)y, (void)x, (void)w, (void)add;
    return false;
}

bool cublaslt_linear_backward_input(struct cublaslt *blas, void *stream, struct tensor dx,
                                    struct tensor dy, struct tensor w, bool add)
{
    (void)blas, (void)stream, (void)dx, (void)dy, (void)w, (void)add;
    return false;
}

bool cublaslt_linear_backward_weight(struct cublaslt *blas, void *stream, struct tensor dw,
                                     struct tensor dy, struct tensor x)
{
    (void)blas, (void)stream, (void)dw, (void)dy, (void)x;
    return false;
}
