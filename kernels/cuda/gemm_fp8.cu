/* gemm_fp8: the products of struct fp8_ops, told to the kernels. */
#include "kernels/cuda/cuda_ops_fixed.h"
#include "kernels/cuda/gemm_fp8.cuh"

static bool aligned_rows(const struct fp8_rows &x)
{
    return x.cols % 16 == 0 && x.pitch % 4 == 0 && x.pitch >= x.rows && aligned(x.code) &&
           aligned(x.scale);
}

/* y[m,n] = x[m,k] w[n,k]^T */
static struct gemm_fp8 forward(struct tensor y, struct fp8_rows x, struct fp8_weights w,
                               const int64_t *offset, bool add)
{
    struct gemm_fp8 p = {};
    assert(aligned_rows(x) && aligned(w.code) && x.cols == w.cols && w.matrices <= INT32_MAX);
    assert(y.dtype == DTYPE_BF16 || y.dtype == DTYPE_F32);
    assert(tensor_is(&y, y.dtype, x.rows, w.rows) && (offset != nullptr || w.matrices == 1));
    p.g.a = x.code, p.g.b = w.code, p.g.c = y.data;
    p.g.m = x.rows, p.g.n = w.rows, p.g.k = x.cols;
    p.g.lda = p.g.k, p.g.ldb = p.g.k, p.g.ldc = p.g.n;
    p.g.stride = w.rows * w.cols;
    p.g.offset = offset;
    p.g.experts = (int)w.matrices;
    p.g.c_dtype = y.dtype;
    p.g.add = add;
    p.scale_a = x.scale, p.pitch_a = x.pitch;
    p.scale_b = w.scale, p.pitch_b = fp8_tiles(w.cols);
    return p;
}

/* dw[m,n] += dyt[m,k] xt[n,k]^T */
static struct gemm_fp8 weight(float *dw, int64_t stride, struct fp8_rows dyt, struct fp8_rows xt,
                              const int64_t *offset, int64_t groups, int64_t tokens)
{
    struct gemm_fp8 p = {};
    assert(aligned_rows(dyt) && aligned_rows(xt) && groups <= INT32_MAX);
    assert(dyt.cols >= fp8_token_columns(tokens, groups) &&
           xt.cols >= fp8_token_columns(tokens, groups) && (offset != nullptr || groups == 1));
    p.g.a = dyt.code, p.g.b = xt.code, p.g.c = dw;
    p.g.m = dyt.rows, p.g.n = xt.rows, p.g.k = tokens;
    p.g.lda = dyt.cols, p.g.ldb = xt.cols, p.g.ldc = p.g.n;
    p.g.stride = stride;
    p.g.offset = offset;
    p.g.experts = (int)groups;
    p.g.c_dtype = DTYPE_F32;
    p.g.add = true;
    p.scale_a = dyt.scale, p.pitch_a = dyt.pitch;
    p.scale_b = xt.scale, p.pitch_b = xt.pitch;
    return p;
}

/* What the launchers take; and where rows come from the routing and the layout of ranks, which must
 * not decide (run.deterministic layout). */
static const struct cuda_fp8_by best = {-1, 0, 0}, any_rows = {-1, 0, CUDA_FP8_ANY_ROWS};

/* A sum over nothing is written as 0, or adds nothing. */
static bool empty(const struct gemm_fp8 &p)
{
    const struct gemm &g = p.g;
    return g.m == 0 || g.n == 0 || g.experts == 0 || (g.k == 0 && g.add);
}

void cuda_fp8_linear(void *stream, struct tensor y, struct fp8_rows x, struct fp8_weights w,
                     const int64_t *offset, bool add)
{
    const struct gemm_fp8 p = forward(y, x, w, offset, add);
    if (!empty(p) && !gemm_fp8_sm90_launch((cudaStream_t)stream, GEMM_FORWARD, &p, best)) {
        gemm_fp8_mma_launch((cudaStream_t)stream, GEMM_FORWARD, &p);
    }
}

void cuda_fp8_linear_weight(void *stream, float *dw, int64_t stride, struct fp8_rows dyt,
                            struct fp8_rows xt, const int64_t *offset, int64_t groups,
                            int64_t tokens)
{
    const struct gemm_fp8 p = weight(dw, stride, dyt, xt, offset, groups, tokens);
    if (!empty(p) && !gemm_fp8_sm90_launch((cudaStream_t)stream, GEMM_WEIGHT, &p, best)) {
        gemm_fp8_mma_launch((cudaStream_t)stream, GEMM_WEIGHT, &p);
    }
}

void cuda_fp8_linear_weight_of(void *stream, float *dw, struct fp8_rows dyt, struct fp8_rows xt,
                               const int64_t *offset, int64_t group, int64_t groups, int64_t tokens)
{
    struct gemm_fp8 p = weight(dw, 0, dyt, xt, offset, groups, tokens);
    p.g.first = (int)group;
    p.g.experts = 1;
    if (!empty(p) && !gemm_fp8_sm90_launch((cudaStream_t)stream, GEMM_WEIGHT, &p, any_rows)) {
        gemm_fp8_mma_launch((cudaStream_t)stream, GEMM_WEIGHT, &p);
    }
}

bool cuda_fp8_linear_by(void *stream, struct cuda_fp8_by by, struct tensor y, struct fp8_rows x,
                        struct fp8_weights w, const int64_t *offset, bool add)
{
    const struct gemm_fp8 p = forward(y, x, w, offset, add);
    return empty(p) || gemm_fp8_sm90_launch((cudaStream_t)stream, GEMM_FORWARD, &p, by);
}

bool cuda_fp8_linear_weight_by(void *stream, struct cuda_fp8_by by, float *dw, int64_t stride,
                               struct fp8_rows dyt, struct fp8_rows xt, const int64_t *offset,
                               int64_t groups, int64_t tokens)
{
    const struct gemm_fp8 p = weight(dw, stride, dyt, xt, offset, groups, tokens);
    return empty(p) || gemm_fp8_sm90_launch((cudaStream_t)stream, GEMM_WEIGHT, &p, by);
}
